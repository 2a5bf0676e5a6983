"""The role gateway's verify asks for a chat that is sampled, and says what the engine said if that fails."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ansible.plays import play

ROLES = Path(__file__).parents[2] / "ansible/roles"

PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Verify
      ansible.builtin.include_role:
        name: gateway
        tasks_from: verify
"""

COMPILER = "RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist"
#: Each gateway's answer to a chat.
ANSWERS: dict[str, tuple[int, dict[str, Any]]] = {
    "sampled": (200, {"choices": [{"message": {"content": " Paris"}}], "usage": {"completion_tokens": 9}}),
    "cut-off-in-its-thoughts": (200, {"choices": [{"message": {"content": None}}], "usage": {"completion_tokens": 16}}),
    "no-token": (200, {"choices": [{"message": {"content": ""}}], "usage": {"completion_tokens": 0}}),
    "no-compiler": (502, {"error": {"message": "The engine closed the connection."}}),
    "not-asked": (500, {}),
}


class Gateway(http.server.BaseHTTPRequestHandler):
    answer: tuple[int, dict[str, Any]]
    asked: list[dict[str, Any]]

    def do_GET(self) -> None:
        self.say(200, {})

    def do_POST(self) -> None:
        type(self).asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.say(*self.answer)

    def say(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        """Nothing into the tests' output."""


@pytest.fixture(scope="module")
def gateways() -> Iterator[dict[str, tuple[int, list[dict[str, Any]]]]]:
    """Of each, the port and what it was asked."""
    servers = {}
    for name, answer in ANSWERS.items():
        handler = type("Mine", (Gateway,), {"answer": answer, "asked": []})
        servers[name] = (http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler), handler)
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server, _ in servers.values()]
    for thread in threads:
        thread.start()
    yield {name: (server.server_address[1], handler.asked) for name, (server, handler) in servers.items()}  # type: ignore[attr-defined]
    for server, _ in servers.values():
        server.shutdown()
        server.server_close()
    for thread in threads:
        thread.join()


@pytest.fixture(scope="module")
def failures(
    gateways: dict[str, tuple[int, list[dict[str, Any]]]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What verify stopped with, for each gateway with which it did."""
    path = tmp_path_factory.mktemp("verify")
    (path / "bin").mkdir()
    for name, script in (("systemctl", "exit 0"), ("journalctl", f'echo "{COMPILER}"')):
        (path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (path / "bin" / name).chmod(0o755)
    hosts = {
        name: {
            "gateway_listen": f"127.0.0.1:{port}",
            "gateway_settings": {},
            **({"gateway_verify_chat": False} if name == "not-asked" else {}),
        }
        for name, (port, _) in gateways.items()
    }
    return play(path, PLAY, hosts, programs=path / "bin").failures


def test_only_what_gave_no_token_fails(failures: dict[str, str]) -> None:
    assert set(failures) == {"no-token", "no-compiler"}


def test_the_chat_needs_the_sampler_that_may_be_compiled(
    failures: dict[str, str], gateways: dict[str, tuple[int, list[dict[str, Any]]]]
) -> None:
    """vLLM takes FlashInfer's for top_p and top_k alone; a temperature of 0 samples nothing."""
    [asked] = gateways["sampled"][1]
    assert asked["temperature"] == 1
    assert asked["top_p"] < 1
    assert asked["max_tokens"] > 1
    assert gateways["not-asked"][1] == []


def test_the_failure_says_what_to_do(failures: dict[str, str]) -> None:
    said = failures["no-compiler"]
    assert "answered 502" in said
    assert "The engine closed the connection." in said
    assert COMPILER in said
    assert "set vllm_cuda_toolkit to minimal" in said
    assert "answered 200" in failures["no-token"]
