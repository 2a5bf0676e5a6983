"""`sluicegate run` and `sluicegate serve` as programs, with the real engine on a Unix socket.

Two runs at once, on two ports out of one cache: they take not much longer than one, for vLLM starts on one core.
"""

import os
import re
import shlex
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import trio

from sluicegate_run.prepare import EnginePaths
from tests.engine.programs import END_S, Program, family, running
from tests.engine.real import RealEngine, engine_environment, free_port
from tests.engine.waits import refused, until_status
from tests.engine_contract.raw import post
from tests.engine_contract.target import DIALECTS, PATIENCE_S, Target

pytestmark = pytest.mark.engine

STATISTICS = re.compile(r"(\d+) tokens, the first after (\d+\.\d+) s, then (\d+) tokens/s")


@dataclass(frozen=True)
class Runs:
    """`sluicegate run`, serving at `port` once it was started, and `sluicegate run --once`; `output` of the first."""

    serving: Program
    once: Program
    port: int
    directory: Path
    output: str

    @property
    def socket(self) -> Path:
        """Where the engine of the serving one listens."""
        (private,) = self.directory.joinpath("serving").iterdir()
        return private / "engine.sock"


@pytest.fixture(scope="module")
def runs(
    shared_engine: RealEngine, engine_paths: EnginePaths, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runs]:
    """Both, started; the serving one has answered its first question."""
    # A third engine is more than a machine of 16 GB has room for. It starts again if a test wants it.
    shared_engine.stop()
    directory = tmp_path_factory.mktemp("run")
    with ExitStack() as stack:

        def start(name: str, port: int, *options: str) -> Program:
            runtime = directory / name
            runtime.mkdir()
            environ = engine_environment() | {"LISTEN": f"127.0.0.1:{port}", "XDG_RUNTIME_DIR": str(runtime)}
            return stack.enter_context(running(["run", "--cpu", *options], environ, directory / f"{name}.err"))

        port = free_port()
        serving = start("serving", port)
        once = start("once", free_port(), "--once")
        output = serving.read_until("until Ctrl-C")
        assert "until Ctrl-C" in output, serving.errors.read_text()
        yield Runs(serving, once, port, directory, output)


def assert_answered(output: str) -> None:
    """The question, the model's answer, and what it took."""
    assert "> What is the capital of France?" in output
    assert "Paris" in output
    found = STATISTICS.search(output)
    assert found, output
    tokens, first_s, rate = int(found[1]), float(found[2]), int(found[3])
    assert 1 < tokens <= 200
    assert first_s > 0
    assert rate > 0


async def test_it_answers_and_says_how_to_go_on(runs: Runs) -> None:
    assert_answered(runs.output)
    url = f"http://127.0.0.1:{runs.port}"
    assert runs.output.endswith(f"Serving at {url} until Ctrl-C.\n")
    (line,) = [line for line in runs.output.splitlines() if line.strip().startswith("curl ")]
    curl, target, option, header, data_option, data = shlex.split(line)
    assert (curl, target, option, data_option) == ("curl", f"{url}{DIALECTS['chat']}", "-H", "-d")
    name, _, value = header.partition(": ")
    async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:
        answer = await client.post(target, headers={name: value}, content=data)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"]


async def test_once_it_ends_by_itself(runs: Runs) -> None:
    with trio.fail_after(PATIENCE_S + END_S):
        output = await trio.to_thread.run_sync(runs.once.read_all)
        status = await trio.to_thread.run_sync(runs.once.process.wait)
    assert status == 0, runs.once.errors.read_text()
    assert_answered(output)
    assert "until Ctrl-C" not in output


async def test_serve_finishes_its_streams_on_sigterm(runs: Runs, tmp_path: Path) -> None:
    port = free_port()
    environ = os.environ | {"LISTEN": f"127.0.0.1:{port}", "VLLM_BASE_URL": f"unix:{runs.socket}"}
    url = f"http://127.0.0.1:{port}"
    with running(["serve"], environ, tmp_path / "gateway.log") as gateway, trio.fail_after(2 * PATIENCE_S):
        async with httpx2.AsyncClient(base_url=url, trust_env=False) as client:
            await until_status(client, "/ready", 200)
            model = (await client.get("/v1/models")).json()["data"][0]["id"]
        gate = Target(url, model)
        async with await gate.connect() as reader:
            options = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
            await reader.stream.send_all(post(DIALECTS["chat"], gate.question("chat", limit=80) | options))
            await reader.until_events(4)
            gateway.process.send_signal(signal.SIGTERM)
            await refused("127.0.0.1", port)
            answer = await reader.answer()
        status = await trio.to_thread.run_sync(gateway.process.wait)
    assert answer.complete
    assert answer.data()[-1] == b"[DONE]"
    assert b'"completion_tokens":80' in answer.data()[-2]
    assert status == 0, gateway.errors.read_text()
    assert '"outcome":"served"' in gateway.errors.read_text()


async def test_ctrl_c_ends_all_of_it(runs: Runs) -> None:
    """The last test of the module: afterwards nothing runs any more."""
    started = family(runs.serving.process.pid)
    # The program, the gateway, the engine's three processes, and a guard before each of the two.
    assert len(started) >= 7
    private = runs.socket.parent
    assert runs.socket.is_socket()
    status = await trio.to_thread.run_sync(runs.serving.interrupt)
    assert status == 0, runs.serving.errors.read_text()
    assert [relative for relative in started if relative.lives()] == []
    assert not private.exists()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", runs.port))
        probe.listen()
