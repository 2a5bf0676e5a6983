"""TLS towards clients: handshakes, certificates, reloads, and what only TLS can do to a stream."""

import contextlib
import datetime
import re
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
import trustme
from trio.testing import wait_all_tasks_blocked

from sluicegate.accept import tls
from sluicegate.config.address import parse_listen
from tests.certificates import Files, issue, trusting, usual
from tests.engine_contract.raw import RawClient, get, post
from tests.fakes.engine import FakeEngine
from tests.fakes.script import Behaviour
from tests.harness import CHAT, Running, question
from tests.wire.daemons import TOML, Daemon, run, started
from tests.wire.visitors import at_rest, dial, dial_deaf, dial_tls, gate, over_tls, visit

ASK, STREAM = post(CHAT, question()), post(CHAT, question(stream=True))

#: Longest that anything here may take (seconds).
SOON_S = 5.0


async def dial_half(running: Running) -> trio.SocketStream:
    """A connection to the port that speaks TLS, without a handshake."""
    return await trio.open_tcp_stream("127.0.0.1", urlsplit(running.tls_url).port or 0)


async def test_loopback_and_unix_stay_plain(tmp_path: Path) -> None:
    """With a certificate, what only this host can reach speaks HTTP without TLS."""
    unix = tmp_path / "http.sock"
    async with gate(listen=tuple(map(parse_listen, ("127.0.0.1:0", "0.0.0.0:0", f"unix:{unix}")))) as (_, running):
        for stream in (await dial(running), await trio.open_unix_socket(str(unix)), await dial_tls(running)):
            async with RawClient(stream) as client:
                assert (await client.ask(ASK)).status == 200


@pytest.mark.parametrize(
    ("version", "offered", "chosen"),
    [
        (ssl.TLSVersion.TLSv1_2, ["h2", "http/1.1"], "h2"),
        (ssl.TLSVersion.TLSv1_3, ["http/1.1", "h2"], "h2"),
        (ssl.TLSVersion.TLSv1_3, ["http/1.1"], "http/1.1"),
        (ssl.TLSVersion.TLSv1_3, [], None),
    ],
)
async def test_versions_and_protocols(version: ssl.TLSVersion, offered: list[str], chosen: str | None) -> None:
    async with gate() as (_, running):
        context = trusting(*offered)
        context.minimum_version = context.maximum_version = version
        stream = trio.SSLStream(await dial_half(running), context, server_hostname="localhost")
        async with stream:
            await stream.do_handshake()
            assert stream.selected_alpn_protocol() == chosen
            assert stream.version() == version.name.replace("_", ".", 1).replace("_", ".")


async def test_tls_1_1_is_refused() -> None:
    async with gate() as (_, running):
        context = trusting()
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        stream = trio.SSLStream(await dial_half(running), context, server_hostname="localhost")
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await trio.aclose_forcefully(stream)
        while not running.metric("api_tls_handshakes_failed_total", reason="error"):
            await wait_all_tasks_blocked()


@pytest.mark.parametrize("request_", [ASK, get("/health")], ids=["fast", "ordinary"])
async def test_a_closed_connection_ends_properly(request_: bytes) -> None:
    """Before it closes, the gateway tells the client that it has got everything (close_notify)."""
    async with gate() as (_, running), RawClient(await dial_tls(running)) as client:
        answer = await client.ask(request_.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
        assert (answer.status, answer.complete) == (200, True)
        assert await client.stream.receive_some() == b""  # trio raises if only TCP has ended


async def test_plain_http_on_the_tls_port_is_told_so() -> None:
    async with gate() as (_, running), RawClient(await dial_half(running)) as client:
        answer = await client.ask(ASK)
        assert (answer.status, answer.complete) == (400, True)
        assert "https://" in str(answer.json())
        assert await client.stream.receive_some() == b"", "it is closed, and not reset"
        assert running.outcomes() == {"invalid": 1}


async def test_garbage_gets_an_alert() -> None:
    async with gate() as (_, running), await dial_half(running) as stream:
        await stream.send_all(b"\x16\x03\x01\x00\x05hello")
        received = b"".join([part async for part in stream])
        assert received[:1] == b"\x15", "an alert, and then the end of the connection instead of a reset"
        await stream.aclose()
        while not running.metric("api_tls_handshakes_failed_total", reason="error"):
            await wait_all_tasks_blocked()


async def test_half_open_handshakes_harm_nobody() -> None:
    """A hundred of them take no connection and no slot from others, and end after head_read_s."""
    async with gate(connections_max=2, head_read_s=1.0) as (_, running), contextlib.AsyncExitStack() as stack:
        half_open = [await stack.enter_async_context(await dial_half(running)) for _ in range(100)]
        for stream in half_open[:50]:
            await stream.send_all(b"\x16\x03\x01")
        with trio.fail_after(0.9):
            assert (await visit("tls", running)).status == 200
        assert running.gateway.listening.connections <= 1
        with trio.fail_after(SOON_S):
            for stream in half_open:
                with contextlib.suppress(trio.BrokenResourceError):
                    assert await stream.receive_some() == b""
        assert running.metric("api_tls_handshakes_failed_total", reason="timeout") == 100
        await at_rest(running)


async def test_the_oldest_of_too_many_handshakes_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "HANDSHAKES_MAX", 3)
    async with gate(head_read_s=600.0) as (_, running), contextlib.AsyncExitStack() as stack:
        half_open = [await stack.enter_async_context(await dial_half(running)) for _ in range(3)]
        await wait_all_tasks_blocked()
        assert (await visit("tls", running)).status == 200
        with trio.fail_after(SOON_S):
            assert await half_open[0].receive_some() == b""
        assert running.metric("api_tls_handshakes_failed_total", reason="crowded") == 1


async def test_connections_above_the_limit_get_a_503_over_tls() -> None:
    async with (
        gate(connections_max=1) as (_, running),
        await dial_tls(running),
        RawClient(await dial_tls(running)) as client,
    ):
        answer = await client.ask(ASK)
        assert (answer.status, answer.header("x-sluicegate-outcome")) == (503, "shed_busy")


async def test_client_certificates_are_asked_for(tmp_path: Path) -> None:
    """With client_ca only clients with a certificate of it are served; resumed sessions are no way round it."""
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    known, stranger = issue(tmp_path, "known", authority), issue(tmp_path, "stranger", trustme.CA())
    async with gate(client_ca=known.authority) as (engine, running):
        for files, status in ((known, 200), (stranger, 0), (None, 0)):
            stream = trio.SSLStream(await dial_half(running), trusting(files=files), server_hostname="localhost")
            try:
                async with RawClient(stream) as client:
                    assert (await client.ask(ASK)).status == status
            except (trio.BrokenResourceError, ConnectionResetError):
                assert status == 0
        assert len(engine.posts()) == 1


@asynccontextmanager
async def s_client(running: Running, *options: str) -> AsyncIterator[tuple[Callable[[bytes], Any], Callable[..., Any]]]:
    """openssl s_client, which obeys a letter on a line of its own: how to send to it, and to wait for what it says."""
    port = urlsplit(running.tls_url).port
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", usual().authority, *options]
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdin
    assert process.stdout
    received = b""

    async def until(text: bytes, count: int = 1) -> None:
        nonlocal received
        assert process.stdout
        while received.count(text) < count:
            data = await process.stdout.receive_some()
            assert data, received
            received += data

    async with process.stdin, process.stdout:
        try:
            with trio.fail_after(SOON_S):
                yield process.stdin.send_all, until
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


async def test_key_updates_within_a_stream() -> None:
    """A client that changes its keys, and asks for new ones of ours, in the middle of a stream (TLS 1.3)."""
    async with gate() as (engine, running):
        hold = trio.Event()
        engine.script.next(Behaviour(hold=hold, hold_at=3))
        async with s_client(running, "-tls1_3") as (send, until):
            await send(STREAM)
            await until(b"data: ", 3)
            for count in (1, 2):
                await send(b"K\n")
                await until(b"KEYUPDATE", count)
            hold.set()
            await until(b"[DONE]")
            await send(STREAM)
            await until(b"[DONE]", 2)
            await running.settled()
        assert running.outcomes() == {"served": 2}


async def test_renegotiation_is_refused() -> None:
    """TLS 1.2: a client cannot have the gateway do handshakes within a connection."""
    async with gate() as (_, running), s_client(running, "-tls1_2") as (send, until):
        await send(STREAM)
        await until(b"[DONE]")
        await send(b"R\n")
        await until(b"no renegotiation")


async def test_a_slow_reader_gets_all_of_its_stream() -> None:
    """Backpressure: a client whose kernel takes next to nothing gets every byte, in order, and none twice."""
    async with gate() as (engine, running):
        engine.script.next(Behaviour(tokens=3000))
        engine.script.next(Behaviour(tokens=3000))
        plain = await visit("fast", running, CHAT, question(stream=True))
        async with RawClient(await dial_deaf(running, "tls")) as client:
            await client.stream.send_all(STREAM)
            await engine.until(lambda: engine.running == 1)
            await wait_all_tasks_blocked(0.05)
            slow = await client.answer()
        assert slow.complete
        assert len(slow.events()) == len(plain.events())
        await at_rest(running)


async def test_new_certificate_for_new_connections(config: Path, tmp_path: Path) -> None:
    """A reload reads the files anew: new connections get the new certificate, a hundred open streams go on."""
    files = issue(tmp_path)
    async with secure_daemon(config, files) as (engine, daemon, port):
        hold = trio.Event()
        engine.script.default = Behaviour(hold=hold, hold_at=3)
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(RawClient(await secure(port))) for _ in range(100)]
            for client in clients:
                await client.stream.send_all(STREAM)
            for client in clients:
                await client.until_events(3)
            before = certificate_of(clients[0])
            issue(tmp_path)
            daemon.process.send_signal(signal.SIGHUP)
            await daemon.logged("reloaded")
            async with RawClient(await secure(port)) as newcomer:
                assert (await newcomer.ask(get("/ready"))).status == 200
                assert certificate_of(newcomer) != before
            hold.set()
            for client in clients:
                answer = await client.answer()
                assert (answer.status, answer.complete, answer.body.count(b"[DONE]")) == (200, True, 1)


@pytest.mark.parametrize("broken", ["", "no certificate", "another key"])
async def test_broken_files_refuse_the_reload(config: Path, tmp_path: Path, broken: str) -> None:
    """The certificate in force stays, the log names the file, and the metric says so."""
    files = issue(tmp_path)
    async with secure_daemon(config, files) as (_, daemon, port):
        if broken == "another key":
            issue(tmp_path, "other")
            await trio.Path(tmp_path / "other-key.pem").rename(files.key)
        else:
            await trio.Path(files.certificate).write_text(broken)
        daemon.process.send_signal(signal.SIGHUP)
        (line,) = await daemon.logged("reload_refused")
        assert files.certificate in line["detail"]
        async with RawClient(await secure(port)) as client:
            assert b"api_config_last_reload_successful 0.0" in (await client.ask(get("/metrics"))).body


async def test_an_expired_certificate_shows(config: Path, tmp_path: Path) -> None:
    """It is used all the same; log and metric tell."""
    yesterday = datetime.datetime.now(datetime.UTC).replace(microsecond=0) - datetime.timedelta(days=1)
    files = issue(tmp_path, not_after=yesterday)
    async with secure_daemon(config, files) as (_, daemon, port):
        (line,) = await daemon.logged("certificate")
        assert "expired" in line["detail"]
        context = trusting()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", port), context)
        async with RawClient(stream) as client:
            body = (await client.ask(get("/metrics"))).body.decode()
        (value,) = re.findall(r"api_tls_certificate_expiry_timestamp_seconds{.*} (.*)", body)
        assert float(value) == yesterday.timestamp()


async def test_the_start_fails_with_the_reason(config: Path, tmp_path: Path) -> None:
    missing = f'[tls]\ncertificate = "{tmp_path}/none.pem"\nkey = "{tmp_path}/none.pem"\n'
    async with run("http://127.0.0.1:1", config, missing) as daemon:
        await daemon.says(f"{tmp_path}/none.pem: cannot be read: No such file".encode())
        assert await daemon.process.wait() == 2


async def test_tls_on_loopback_alone_is_a_mistake(config: Path) -> None:
    async with started(config, usual().toml + TOML) as (_, daemon):
        (line,) = await daemon.logged("tls_unused")
        assert "stay plain" in line["detail"]


@asynccontextmanager
async def secure_daemon(config: Path, files: Files) -> AsyncIterator[tuple[FakeEngine, Daemon, int]]:
    """A daemon on a port with TLS, which comes along."""
    text = files.toml + "[admission]\nmax_active = 200\n" + TOML
    async with started(config, text, {"LISTEN": "0.0.0.0:0"}) as (engine, daemon):
        (line,) = await daemon.logged("listening")
        yield engine, daemon, int(line["detail"].partition(",")[0].rpartition(":")[2])


async def secure(port: int) -> trio.SSLStream[trio.SocketStream]:
    return await over_tls(await trio.open_tcp_stream("127.0.0.1", port))


def certificate_of(client: RawClient) -> bytes:
    """What the gateway showed on that connection."""
    assert isinstance(client.stream, trio.SSLStream)
    return bytes(client.stream.getpeercert(binary_form=True))
