"""OpenAI's JavaScript client in a page of another origin, in headless Chromium. docs/browsers.md says what it finds."""

import functools
import http.server
import json
import queue
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trio

from sluicegate.config.schema import QueueMode
from tests.clients.install import node_clients
from tests.fakes.script import Behaviour
from tests.wire.visitors import at_rest, gate

PAGE = Path(__file__).parent / "browser/page.html"

#: Chromium starts in a second or two on an idle machine (seconds).
BROWSER_S = 50.0


class _Site(http.server.SimpleHTTPRequestHandler):
    """The page's own origin: the page, the client's modules, and what the page reports."""

    openai: Path
    reports: "queue.Queue[dict[str, Any]]"

    def translate_path(self, path: str) -> str:
        path = path.partition("?")[0]
        return str(self.openai / path.removeprefix("/openai/") if path.startswith("/openai/") else PAGE)

    def do_POST(self) -> None:
        self.reports.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@contextmanager
def _site() -> Iterator[tuple[int, "queue.Queue[dict[str, Any]]"]]:
    """Its port, on loopback, and what pages report."""
    reports: queue.Queue[dict[str, Any]] = queue.Queue()
    handler = type("Site", (_Site,), {"openai": node_clients() / "openai", "reports": reports})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_port, reports
        finally:
            server.shutdown()


async def _report(page: str, reports: "queue.Queue[dict[str, Any]]", home: Path) -> dict[str, Any]:
    """What the page at this URL reports."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={home}", page]
    with (home / "log").open("wb") as log:
        async with trio.open_nursery() as nursery:
            run = functools.partial(trio.run_process, command, stdout=log, stderr=log, check=False)
            await nursery.start(run)
            try:
                report = await trio.to_thread.run_sync(lambda: reports.get(timeout=BROWSER_S))
            except queue.Empty:
                raise AssertionError((home / "log").read_text(errors="replace")[-2000:]) from None
            nursery.cancel_scope.cancel()
    return report


@pytest.mark.clients
async def test_openai_in_a_page(tmp_path: Path) -> None:
    """A stream, a refusal with its message and its request's id, and nothing at all from a page that is not named.

    The page comes from 127.0.0.1, and then from localhost, which is another origin.
    """
    with _site() as (port, reports):
        page, foreign = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        settings: dict[str, Any] = {"max_active": 1, "queue_mode": QueueMode.REJECT, "origins": (page,)}
        async with gate(**settings) as (engine, running):
            engine.script.default = Behaviour(tokens=20, token_interval_s=0.05)
            found = await _report(f"{page}/?gate={quote(running.base_url)}", reports, _home(tmp_path, "page"))
            _check(found)
            await at_rest(running)
            ids = {line["request_id"] for line in running.log_lines("request")}
            assert {found["stream"]["id"], found["busy"]["id"], found["unknown model"]["id"]} <= ids
            asked = len(engine.posts())
            nothing = await _report(f"{foreign}/?gate={quote(running.base_url)}", reports, _home(tmp_path, "foreign"))
            assert nothing["stream"]["error"] == nothing["whole"]["error"] == "APIConnectionError"
            assert nothing["unknown route"]["error"] == "TypeError"
            assert len(engine.posts()) == asked, "its preflight was not answered"


def _home(tmp_path: Path, name: str) -> Path:
    home = tmp_path / name
    home.mkdir()
    return home


def _check(found: dict[str, Any]) -> None:
    assert "error" not in found, found
    streamed, busy = found["stream"], found["busy"]
    assert streamed["chunks"] > 20
    assert streamed["text"] == found["whole"] != ""
    assert re.fullmatch(r"queue;dur=[\d.]+, engine;dur=[\d.]+, total;dur=[\d.]+", streamed["timing"])
    assert (busy["error"], busy["status"], busy["retryAfter"]) == ("RateLimitError", 429, "1")
    assert busy["message"] == "429 The only slot is busy. Retry after 1 s."
    assert busy["timing"].startswith("total;dur=")
    for answer in (streamed, busy):
        assert re.fullmatch(r"[0-9a-f]{32}", answer["id"])
    assert found["models"] == ["fake-model"]
    assert (found["unknown model"]["error"], found["unknown model"]["status"]) == ("NotFoundError", 404)
    assert found["unknown route"]["status"] == 404
    assert "/v1/models" in found["unknown route"]["message"]
    assert found["wrong method"]["status"] == 405
    assert found["aborted"] == {"aborted": True}
    assert {"queue", "engine", "total"} <= set(found["seen"]), "the page's own performance entries have them as well"
