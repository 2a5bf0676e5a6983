"""The daemon as a process: its signals, its start, its log."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from sluicegate import lifecycle
from sluicegate.gateway import Gateway
from tests.engine_contract.raw import RawClient, get, post
from tests.fakes.engine import open_engine
from tests.harness import CHAT, configuration, question
from tests.unit.config.broken import BROKEN, Broken
from tests.wire.daemons import TOML, run, started, streaming


async def test_sigterm_drains_and_exits_0(config: Path) -> None:
    """SIGTERM lets active requests finish, sheds the others and exits with 0."""
    async with started(config, environ={"MAX_ACTIVE": "1"}) as (engine, daemon):
        client, hold = await streaming(engine, daemon)
        async with client, await daemon.dial() as waiter, await daemon.dial() as watcher:
            assert (await watcher.ask(get("/ready"))).status == 200
            await waiter.stream.send_all(post(CHAT, question()))
            while b"api_queue_depth 1.0" not in (await watcher.ask(get("/metrics"))).body:
                await trio.lowlevel.checkpoint()
            daemon.terminate()
            shed = await waiter.answer()
            assert (shed.status, shed.header("x-sluicegate-outcome")) == (503, "shed_draining")
            assert shed.header("retry-after") == "1"
            ready = await watcher.ask(get("/ready"))
            assert (ready.status, ready.json()) == (503, {"ready": False, "why": "shutting down"})
            with pytest.raises(OSError, match="failed"):
                await daemon.dial()
            assert daemon.process.returncode is None
            hold.set()
            answer = await client.answer()
            assert answer.complete
            assert b"data: [DONE]" in answer.events()
        assert await daemon.process.wait() == 0
        (stopped,) = await daemon.logged("stopped")
        assert stopped["detail"] == "2 requests served or refused"
        assert {line["outcome"] for line in daemon.lines("request")} == {"served", "shed_draining"}


async def test_drain_deadline_cuts_with_an_error_event(config: Path) -> None:
    """A stream that outlasts the drain is cut with an error event."""
    async with started(config, TOML + "[timeouts]\ndrain_s = 0.1\n") as (engine, daemon):
        client, _ = await streaming(engine, daemon)
        async with client:
            daemon.terminate()
            answer = await client.answer()
        assert answer.complete
        assert b'"code":"shed_draining"' in answer.events()[-1]
        assert b"[DONE]" not in answer.body
        assert await daemon.process.wait() == 0
        await engine.until(lambda: engine.running == 0)
        assert daemon.lines("cut")[0]["level"] == "warning"


async def test_a_second_sigterm_cuts_at_once(config: Path) -> None:
    async with started(config, TOML + "[timeouts]\ndrain_s = 1000\n") as (engine, daemon):
        client, _ = await streaming(engine, daemon)
        async with client:
            daemon.terminate()
            await daemon.logged("draining")
            daemon.terminate()
            answer = await client.answer()
        assert answer.complete
        assert b'"code":"shed_draining"' in answer.events()[-1]
        assert await daemon.process.wait() == 0


async def test_sigint_stops_an_idle_one_at_once(config: Path) -> None:
    async with started(config) as (_, daemon), await daemon.dial() as client:
        assert (await client.ask(get("/ready"))).status == 200
        daemon.process.send_signal(2)
        assert await daemon.process.wait() == 0
        assert await client.stream.receive_some() == b""


async def test_starts_without_an_engine(config: Path) -> None:
    """The gateway starts without an engine, and serves when one appears."""
    async with open_engine() as engine:
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            port = reserved.getsockname()[1]
        async with run(f"http://127.0.0.1:{port}", config) as daemon:
            health = await daemon.ask(get("/health"))
            assert (health.status, health.json()["status"]) == (503, "starting")
            refused = await daemon.ask(post(CHAT, question()))
            assert (refused.status, refused.header("x-sluicegate-outcome")) == (503, "engine_unavailable")
            await engine.listen_tcp(port=port)
            await daemon.logged("engine_up")
            assert (await daemon.ask(get("/ready"))).status == 200
            assert (await daemon.ask(post(CHAT, question()))).status == 200


@pytest.mark.parametrize("broken", BROKEN[::5][:10], ids=lambda broken: broken.name)
def test_a_broken_configuration_does_not_start(broken: Broken, config: Path) -> None:
    """Ten of them as processes; tests/unit has all of them."""
    config.write_text(broken.text)
    environ = {name: value for name, value in os.environ.items() if name not in ("LISTEN", "VLLM_BASE_URL")}
    for command in ("serve", "check"):
        argv = [sys.executable, "-m", "sluicegate", command, "--config", str(config)]
        done = subprocess.run(argv, env=environ | broken.environ, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith(broken.expected(str(config)))


async def test_an_address_in_use_is_one_sentence_and_exit_1(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with run("http://127.0.0.1:1", config, environ={"LISTEN": address}) as daemon:
            assert await daemon.process.wait() == 1
            await daemon.says(b"\n")
            assert daemon.output.startswith(f"sluicegate: cannot listen on {address}: Address already in use".encode())
            assert daemon.output.count(b"\n") == 1


async def test_a_stale_unix_socket_is_replaced(config: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "gate.sock")
    for killed in (True, False):  # the first one leaves its socket behind
        async with (
            open_engine() as engine,
            run(await engine.listen_tcp(), config, environ={"LISTEN": f"unix:{path}"}) as daemon,
        ):
            await daemon.logged("engine_up")
            async with RawClient(await trio.open_unix_socket(path)) as client:
                assert (await client.ask(post(CHAT, question()))).status == 200
            assert f"unix:{path}" in daemon.lines("listening")[0]["detail"]
            if not killed:
                daemon.terminate()
                assert await daemon.process.wait() == 0


async def test_on_a_terminal_the_log_is_for_people(config: Path) -> None:
    async with open_engine() as engine, run(await engine.listen_tcp(), config, terminal=True) as daemon:
        await daemon.says(b" INFO    listening ")
        await daemon.says(b" INFO    engine_up ")
        assert b"{" not in daemon.output
        daemon.terminate()
        assert await daemon.process.wait() == 0


async def test_no_prompt_and_no_key_is_ever_logged(config: Path) -> None:
    """Whatever becomes of a request that holds them, at the most talkative level. Paths are logged, queries are not."""
    fields = ("authorization: Bearer sk-sesame", "x-api-key: sk-sesame", "cookie: sesame", "user-agent: sesame")
    secret = question(messages=[{"role": "user", "content": "sesame"}], user="sesame")
    async with started(config, environ={"LOG_LEVEL": "debug"}) as (engine, daemon):
        requests = [
            post(CHAT, secret, *fields),
            post(CHAT, secret | {"stream": True}, *fields),
            post(CHAT, secret | {"model": "sesame"}, *fields),
            post(CHAT, secret | {"stream": "sesame", "stream_options": 3}, *fields),
            post(CHAT, b'{"sesame": "sesame', *fields),
            post("/tokenize", {"prompt": "sesame"}, *fields),
            post("/nowhere?sesame=sesame", secret, *fields),
            post(CHAT + "?key=sesame", secret, *fields),
            b"POST /nowhere?sesame sesame\r\nsesame: sesame\r\n\r\n",
            b"GET /nowhere HTTP/1.1\r\nhost: sesame\r\nsesame sesame: sesame\r\n\r\n",
        ]
        for request in requests:
            await daemon.ask(request)
        engine.kill()
        await daemon.ask(requests[0])
        daemon.terminate()
        assert await daemon.process.wait() == 0
        await daemon.logged("stopped")
        assert len(daemon.lines("request")) >= len(requests)
        assert b"sesame" not in daemon.output


def test_crash_is_logged_and_not_hidden(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The log has the place of the crash without its message, and the exception goes on."""

    async def crash(_: object, listeners: list[trio.SocketListener], task_status: object) -> None:
        for listener in listeners:
            await listener.aclose()
        raise RuntimeError("sesame")

    monkeypatch.setattr(Gateway, "run", crash)
    with pytest.raises(BaseExceptionGroup) as caught:
        lifecycle.serve(configuration(), configuration)
    assert caught.group_contains(RuntimeError, match="sesame")
    (line,) = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert (line["event"], line["level"]) == ("crashed", "error")
    assert line["detail"].startswith("RuntimeError at ")
    assert "sesame" not in line["detail"]


async def test_it_listens_on_each_address(config: Path, tmp_path: Path) -> None:
    """A list of addresses: requests are served on each, and the log names them all."""
    path = tmp_path / "http.sock"
    text = f'listen = ["127.0.0.1:0", "unix:{path}"]\n{TOML}'
    async with started(config, text, {"LISTEN": ""}) as (_engine, daemon):
        (line,) = await daemon.logged("listening")
        first, _, second = line["detail"].partition(",")[0].partition(" and ")
        assert second == f"unix:{path}"
        tcp = await trio.open_tcp_stream("127.0.0.1", int(first.rpartition(":")[2]))
        for stream in (tcp, await trio.open_unix_socket(str(path))):
            async with RawClient(stream) as client:
                assert (await client.ask(post(CHAT, question()))).status == 200


async def test_one_address_taken_is_named(config: Path, tmp_path: Path) -> None:
    """Of a list of addresses one is taken: the daemon does not start, says which one, and listens nowhere."""
    path = tmp_path / "http.sock"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        text = f'listen = ["unix:{path}", "{address}"]\n{TOML}'
        async with run("http://127.0.0.1:1", config, text, {"LISTEN": ""}) as daemon:
            await daemon.says(f"cannot listen on {address}: ".encode())
            assert await daemon.process.wait() == 1


async def test_engine_that_asks_for_a_key(config: Path, tmp_path: Path) -> None:
    """Told as the reason it is not up; read from its file at a reload; in the place of the client's; never logged."""
    key = tmp_path / "key"
    key.write_text("sesame\n")
    named = TOML + f'api_key = "{key}"\n'
    async with (
        open_engine() as engine,
        run(await engine.listen_tcp(), config, environ={"LOG_LEVEL": "debug"}) as daemon,
    ):
        engine.api_key = "sesame"
        (line,) = await daemon.logged("engine_degraded")
        assert "asks for a key: set [engine] api_key" in line["detail"]
        refused = await daemon.ask(post(CHAT, question(), "authorization: Bearer sesame"))
        assert (refused.status, "the engine asks for a key" in refused.body.decode()) == (503, True)
        await daemon.reload(config, named)
        await daemon.logged("engine_up")
        for fields in ((), ("authorization: Bearer theirs", "x-api-key: theirs")):
            assert (await daemon.ask(post(CHAT, question(), *fields))).status == 200
        assert (await daemon.ask(get("/engine/metrics"))).status == 200
        assert {seen.header("authorization") for seen in engine.posts()} == {"Bearer sesame"}
        assert engine.seen[-1].header("authorization") == "Bearer sesame"
        engine.api_key = "another"
        assert (await daemon.ask(post(CHAT, question()))).status == 502
        key.unlink()
        await daemon.reload(config, named)
        (line,) = await daemon.logged("reload_refused")
        assert str(key) in line["detail"]
        assert b"sesame" not in daemon.output


async def test_key_that_cannot_be_read(config: Path) -> None:
    """A configuration error, as systemd's RestartPreventExitStatus= expects it."""
    async with run("http://127.0.0.1:1", config, TOML + 'api_key = "/nonexistent/key"\n') as daemon:
        assert await daemon.process.wait() == 2
        await daemon.says(b"engine.api_key: /nonexistent/key cannot be read")
