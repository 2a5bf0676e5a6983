"""Clients on each of the ways into the gateway, and what must be true of every request however it came in."""

import contextlib
import json
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self, TypeAlias
from urllib.parse import urlsplit

import h2.config
import h2.connection
import h2.errors
import h2.events
import trio
from trio.testing import wait_all_tasks_blocked

from sluicegate.engines.engine import EngineState
from sluicegate.outcome import Outcome
from tests.certificates import trusting
from tests.engine_contract.raw import RawAnswer, RawClient, get, leave, post
from tests.fakes.engine import FakeEngine, open_engine
from tests.harness import CHAT, PATIENCE_S, Running, configuration, open_gateway, question

#: A client's connection, plain or over TLS.
Stream: TypeAlias = trio.SocketStream | trio.SSLStream[trio.SocketStream]


@asynccontextmanager
async def gate(*, model: str = "fake-model", **settings: Any) -> AsyncIterator[tuple[FakeEngine, Running]]:
    """A fake engine on a TCP port and a gateway before it, which has found it out."""
    async with open_engine(model=model) as engine:
        config = configuration(await engine.listen_tcp(), **settings)
        async with open_gateway(config, wait_ready=False) as running:
            await running.engine_state(EngineState.UP if model else EngineState.DEGRADED)
            yield engine, running


async def dial_tls(running: Running, *protocols: str) -> trio.SSLStream[trio.SocketStream]:
    """A connection over TLS to the gateway. `protocols`: for ALPN."""
    url = urlsplit(running.tls_url)
    assert url.hostname
    assert url.port
    return await over_tls(await trio.open_tcp_stream(url.hostname, url.port), *protocols)


async def over_tls(stream: trio.SocketStream, *protocols: str) -> trio.SSLStream[trio.SocketStream]:
    """`stream` over TLS, after the handshake."""
    secure = trio.SSLStream(stream, trusting(*protocols), server_hostname="127.0.0.1")
    await secure.do_handshake()
    return secure


async def dial(running: Running) -> trio.SocketStream:
    """A connection to the gateway."""
    url = urlsplit(running.base_url)
    if url.scheme == "unix":
        return await trio.open_unix_socket(url.path)
    assert url.hostname
    assert url.port
    return await trio.open_tcp_stream(url.hostname, url.port)


async def dial_deaf(running: Running, way: str = "fast") -> Stream:
    """A connection to the gateway, over TCP, on which the client's kernel takes next to nothing for it."""
    url = urlsplit(running.tls_url if way in SECURE else running.base_url)
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.connect((url.hostname, url.port))
    stream = trio.SocketStream(sock)
    return await over_tls(stream, *SECURE[way]) if way in SECURE else stream


async def raw(running: Running) -> RawClient:
    """A client that sends what it is told, byte for byte."""
    return RawClient(await dial(running))


async def ask(running: Running, request: bytes) -> RawAnswer:
    """One request on a connection of its own."""
    async with await raw(running) as client:
        return await client.ask(request)


def chunked(path: str, body: object, *fields: str) -> bytes:
    """A POST whose body is one chunk: Hypercorn takes it in, and ASGI hands it on."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "host: gate", "content-type: application/json", "transfer-encoding: chunked"]
    return "\r\n".join([*head, *fields, "", ""]).encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)


class Visitor(ABC):
    """One client with one request at a time. `stream` is its connection."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # it left already
            await self.stream.aclose()

    @abstractmethod
    async def send(self, path: str, body: object, *fields: str) -> None:
        """Send a request; `fields` are header lines."""

    @abstractmethod
    async def answer(self) -> RawAnswer:
        """The answer, as far as it comes."""

    @abstractmethod
    async def until_events(self, count: int) -> RawAnswer:
        """The answer up to so many events."""

    async def ask(self, path: str, body: object, *fields: str) -> RawAnswer:
        await self.send(path, body, *fields)
        return await self.answer()

    @abstractmethod
    async def look(self, path: str, method: str = "GET") -> RawAnswer:
        """A request without a body, answered."""

    async def leave(self, how: str) -> None:
        """Go away: "close", "reset", "half_close"; on HTTP/2 "cancel", too."""
        await leave(self.stream, how)


class FastVisitor(Visitor):
    """HTTP/1.1 with a declared length: the gateway's own way in."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        self._raw = RawClient(stream)

    async def send(self, path: str, body: object, *fields: str) -> None:
        await self.stream.send_all(post(path, body, *fields))

    async def answer(self) -> RawAnswer:
        return await self._raw.answer()

    async def look(self, path: str, method: str = "GET") -> RawAnswer:
        await self.stream.send_all(get(path, method))
        return await self.answer()

    async def until_events(self, count: int) -> RawAnswer:
        return await self._raw.until_events(count)


class ChunkedVisitor(FastVisitor):
    """HTTP/1.1 with a chunked body, which Hypercorn takes in."""

    async def send(self, path: str, body: object, *fields: str) -> None:
        await self.stream.send_all(chunked(path, body, *fields))

    async def look(self, path: str, method: str = "GET") -> RawAnswer:
        """Without a body, but in chunks."""
        head = f"{method} {path} HTTP/1.1\r\nhost: gate\r\ntransfer-encoding: chunked\r\n\r\n"
        await self.stream.send_all(head.encode() + b"0\r\n\r\n")
        return await self.answer()


class Http2Visitor(Visitor):
    """HTTP/2 with prior knowledge, which Hypercorn takes in."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self._id = 0
        self._status = 0
        self._headers: tuple[tuple[str, str], ...] = ()
        self._body = b""
        self._complete = False

    async def send(self, path: str, body: object, *fields: str) -> None:
        await self.begin(path, *fields)
        await self.more(body if isinstance(body, bytes) else json.dumps(body).encode(), end=True)

    @property
    def current(self) -> int:
        """The stream of the last request."""
        return self._id

    async def look(self, path: str, method: str = "GET") -> RawAnswer:
        await self.begin(path, method=method, end=True)
        return await self.answer()

    async def begin(self, path: str, *fields: str, method: str = "POST", end: bool = False) -> None:
        """Send the head of a request, which is all of it if this is the `end`."""
        self._id = self.h2.get_next_available_stream_id()
        self._body, self._complete = b"", False
        head = {":method": method, ":path": path, ":scheme": "http", ":authority": "gate"}
        more = [(name.strip(), value.strip()) for name, _, value in (field.partition(":") for field in fields)]
        self.h2.send_headers(self._id, [*head.items(), ("content-type", "application/json"), *more], end_stream=end)
        await self.flush()

    async def more(self, data: bytes, *, end: bool = False) -> None:
        """Send a piece of its body."""
        while data or end:
            room = min(self.h2.local_flow_control_window(self._id), self.h2.max_outbound_frame_size)
            piece, data = data[:room], data[room:]
            if piece or not data:
                self.h2.send_data(self._id, piece, end_stream=end and not data)
                await self.flush()
            if not data:
                return
            if not room:
                await self._receive()

    async def until_body(self) -> None:
        """Wait for the first byte of the answer's body."""
        while not self._body:
            await self._receive()

    async def answer(self) -> RawAnswer:
        while not self._complete:
            await self._receive()
        return self._so_far()

    async def until_events(self, count: int) -> RawAnswer:
        while self._body.count(b"\n\n") < count:
            await self._receive()
        return self._so_far()

    async def leave(self, how: str) -> None:
        if how != "cancel":
            await super().leave(how)
            return
        self.h2.reset_stream(self._id, h2.errors.ErrorCodes.CANCEL)
        await self.flush()

    async def flush(self) -> None:
        await self.stream.send_all(self.h2.data_to_send())

    async def _receive(self) -> None:
        data = await self.stream.receive_some()
        if not data:
            raise EOFError(self._so_far())
        for event in self.h2.receive_data(data):
            assert not isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated), event
            if isinstance(event, h2.events.ResponseReceived):
                fields = [(_text(name), _text(value)) for name, value in event.headers]
                self._status = int(dict(fields)[":status"])
                self._headers = tuple(field for field in fields if not field[0].startswith(":"))
            elif isinstance(event, h2.events.DataReceived):
                self._body += event.data if event.stream_id == self._id else b""
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self._complete = event.stream_id == self._id
        await self.flush()

    def _so_far(self) -> RawAnswer:
        return RawAnswer(b"", self._status, self._headers, self._body, (), (), b"", self._complete)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()


#: Every way in, by name.
WAYS: dict[str, type[Visitor]] = {
    "fast": FastVisitor,
    "chunked": ChunkedVisitor,
    "http2": Http2Visitor,
    "tls": FastVisitor,
    "tls_chunked": ChunkedVisitor,
    "tls_http2": Http2Visitor,
}

#: Of these, the ones over TLS, each with what it asks for by ALPN.
SECURE = {"tls": (), "tls_chunked": ("http/1.1",), "tls_http2": ("h2", "http/1.1")}


async def come(way: str, running: Running) -> Visitor:
    """A client that is connected to the gateway."""
    return WAYS[way](await dial_tls(running, *SECURE[way]) if way in SECURE else await dial(running))


async def visit(way: str, running: Running, path: str = CHAT, body: object = None, *fields: str) -> RawAnswer:
    """One request on a connection of its own, answered to its end."""
    async with await come(way, running) as visitor:
        return await visitor.ask(path, question(path) if body is None else body, *fields)


async def at_rest(running: Running) -> None:
    """Wait until every request has its outcome; then nothing may be held any more."""
    await running.settled()
    running.assert_at_rest()


async def log_line(running: Running, request_id: str | None) -> dict[str, Any]:
    """What was logged of a request: one line, not none and not two."""
    lines: list[dict[str, Any]] = []
    with trio.fail_after(PATIENCE_S):
        while not lines:  # the pump's thread sends the end of an answer before the request is settled
            await wait_all_tasks_blocked()
            lines = [line for line in running.log_lines("request") if line["request_id"] == request_id]
    assert len(lines) == 1, lines
    return lines[0]


async def assert_refused(
    running: Running, answer: RawAnswer, outcome: Outcome, status: int, *, path: str = CHAT, retry_after: bool = True
) -> str:
    """It was refused so, and client, log and metrics say the same. Returns the error's message."""
    assert (answer.status, answer.complete) == (status, True), answer
    assert answer.header("x-sluicegate-outcome") == outcome.value
    assert answer.header("content-type") == "application/json"
    error = _error_of(path, answer.json())
    if retry_after:
        assert 1 <= int(answer.header("retry-after") or "") <= 3600
    else:
        assert answer.header("retry-after") is None
    line = await log_line(running, answer.header("x-request-id"))
    assert (line["outcome"], line["status"], line["endpoint"]) == (outcome.value, status, path)
    assert running.metric("api_outcomes_total", outcome=outcome.value) >= 1
    assert running.metric("api_requests_total", endpoint=path, status=str(status)) >= 1
    if "code" in error:
        assert error["code"] == outcome.value
    return str(error["message"])


def _error_of(path: str, body: Any) -> dict[str, Any]:
    error: dict[str, Any] = body["error"]
    if path.startswith("/v1/messages"):
        assert body["type"] == "error"
        assert set(error) == {"type", "message"}, "Anthropic's shape"
    else:
        assert set(error) == {"message", "type", "param", "code"}, "OpenAI's shape"
    return error
