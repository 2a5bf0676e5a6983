"""A client that shows what was really on the wire: heads, chunk boundaries, and how the connection ended."""

import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

import msgspec
import trio

#: SO_LINGER on, for zero seconds: close() sends RST instead of FIN.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class RawAnswer:
    """An answer, or what came of it.

    `chunks` are those of a chunked body; `body` is it without framing. `complete`: the framing said that it ended.
    `reset`: the connection broke instead of being closed.
    """

    raw: bytes
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    chunks: tuple[bytes, ...]
    extensions: tuple[bytes, ...]
    trailers: bytes
    complete: bool
    reset: bool = False

    def header(self, name: str) -> str | None:
        """The first field called `name` (lower case), or None."""
        return next((value for key, value in self.headers if key == name), None)

    def events(self) -> list[bytes]:
        """The whole SSE events (and comment frames) of the body, without their blank lines."""
        return self.body.split(b"\n\n")[:-1]

    def data(self) -> list[bytes]:
        """The data of those events that have one."""
        return [line[6:] for event in self.events() for line in event.split(b"\n") if line.startswith(b"data: ")]

    def json(self) -> object:
        """The body as JSON."""
        return msgspec.json.decode(self.body)


def post(path: str, body: object, *fields: str) -> bytes:
    """A POST with a JSON body; `fields` are whole header lines."""
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    head = ["POST " + path + " HTTP/1.1", "host: engine", f"content-length: {len(data)}"]
    if not any(field.startswith("content-type:") for field in fields):
        head.append("content-type: application/json")
    return "\r\n".join([*head, *fields, "", ""]).encode() + data


def get(path: str, method: str = "GET") -> bytes:
    """A request without a body."""
    return f"{method} {path} HTTP/1.1\r\nhost: engine\r\n\r\n".encode()


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes] | bytes]:
    """(extension, chunk) for each whole chunk; at the proper end, the trailers and their blank line."""
    while b"\r\n" in data:
        line, _, rest = data.partition(b"\r\n")
        size, _, extension = line.partition(b";")
        length = int(size, 16)
        if length == 0:
            end = 2 if rest.startswith(b"\r\n") else rest.find(b"\r\n\r\n") + 4
            if end >= (2 if rest.startswith(b"\r\n") else 4) and len(rest) >= end:
                yield rest[:end]
            return
        if len(rest) < length + 2:
            return
        yield extension, rest[:length]
        data = rest[length + 2 :]


def parse(raw: bytes, *, ended: bool = False) -> RawAnswer | None:
    """The answer that `raw` begins with; None while its head is not whole. Raises ValueError at garbage.

    `ended`: no more bytes will come, which completes a body that lasts until the connection is closed.
    """
    head, blank, rest = raw.partition(b"\r\n\r\n")
    if raw and not b"HTTP/1.1 ".startswith(raw[:9]):
        raise ValueError(f"no HTTP: {raw[:40]!r}")
    if not blank:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = tuple((name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines))
    fields = dict(headers)
    chunks: list[bytes] = []
    extensions: list[bytes] = []
    trailers = b""
    status = int(first.split(" ")[1])
    if status == 204:
        body, complete = b"", True
    elif fields.get("transfer-encoding") == "chunked":
        complete = False
        for item in _chunks(rest):
            if isinstance(item, bytes):
                trailers, complete = item, True
            else:
                extensions.append(item[0])
                chunks.append(item[1])
        body = b"".join(chunks)
    elif "content-length" in fields:
        length = int(fields["content-length"])
        body, complete = rest[:length], len(rest) >= length
    else:
        body, complete = rest, ended
    return RawAnswer(raw, status, headers, body, tuple(chunks), tuple(extensions), trailers, complete)


class RawClient:
    """Requests on one connection, one after the other. Owns `stream`."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.received = b""

    async def __aenter__(self) -> "RawClient":
        return self

    async def __aexit__(self, *exc: object) -> None:
        # TLS has a last word of its own, and the connection may be down already.
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.stream.aclose()

    async def ask(self, request: bytes) -> RawAnswer:
        """Send `request` and return its answer, as far as it came. Raises EOFError if none did."""
        await self.stream.send_all(request)
        return await self.answer()

    async def answer(self) -> RawAnswer:
        """The next answer on the connection, as far as it comes."""
        while True:
            answer = parse(self.received)
            if answer is not None and answer.complete:
                self.received = b""
                return answer
            try:
                data = await self.stream.receive_some()
            except trio.BrokenResourceError:
                return self._cut_short(reset=True)
            if not data:
                return self._cut_short(reset=False)
            self.received += data

    async def answer_only(self) -> RawAnswer:
        """The next answer, which must be complete; what came behind it is kept for the one after."""
        while True:
            answer = parse(self.received)
            if answer is not None and answer.complete:
                head, _, _ = self.received.partition(b"\r\n\r\n")
                self.received = self.received[len(head) + 4 + len(answer.body) :]
                return answer
            data = await self.stream.receive_some()
            if not data:
                raise EOFError(self.received)
            self.received += data

    def _cut_short(self, *, reset: bool) -> RawAnswer:
        answer = parse(self.received, ended=not reset)
        if answer is None:
            raise ConnectionResetError(self.received) if reset else EOFError(self.received)
        return replace(answer, reset=reset)

    async def until_events(self, count: int) -> RawAnswer:
        """Read until at least `count` whole events have come; the answer so far."""
        while True:
            answer = parse(self.received)
            if answer is not None and len(answer.events()) >= count:
                return answer
            data = await self.stream.receive_some()
            if not data:
                raise EOFError(self.received)
            self.received += data


async def leave(stream: trio.abc.Stream, how: str) -> None:
    """Go away: "close", "reset" or "half_close"."""
    if isinstance(stream, trio.SSLStream):
        if how == "close":
            await stream.aclose()
            return
        stream = stream.transport_stream
    assert isinstance(stream, trio.SocketStream)
    if how == "half_close":
        await stream.send_eof()
        return
    if how == "reset":
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    await stream.aclose()
