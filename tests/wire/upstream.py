"""An engine that sends exactly the bytes it is told to, in exactly the pieces it is told to."""

import fcntl
import struct
import termios
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

_MODELS = b'{"object":"list","data":[{"id":"smollm2","object":"model"}]}'


@dataclass
class Upstream:
    """Answers each POST with the next of `answers`, a list of pieces; every connection is kept.

    `one_by_one`: a piece is sent when the gateway has read the one before. A Unix socket's sender can tell; over TCP
    the pieces only go out in writes of their own.
    """

    base_url: str
    one_by_one: bool
    answers: deque[Sequence[bytes]] = field(default_factory=deque)
    asked: list[bytes] = field(default_factory=list)
    #: Connections on which something was asked, and answers under way.
    used: int = 0
    busy: int = 0
    #: Answers a request in another way: gets the connection and the request's body.
    script: Callable[[trio.SocketStream, bytes], Awaitable[None]] | None = None

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection."""
        buffer = b""
        used = False
        async with stream:
            while True:
                while (end := buffer.find(b"\r\n\r\n")) < 0:
                    try:
                        data = await stream.receive_some()
                    except trio.BrokenResourceError:
                        return
                    if not data:
                        return
                    buffer += data
                head, buffer = buffer[:end].lower(), buffer[end + 4 :]
                _, _, length = head.partition(b"content-length: ")
                size = int(length.split(b"\r\n")[0] or b"0")
                while len(buffer) < size:
                    buffer += await stream.receive_some()
                body, buffer = buffer[:size], buffer[size:]
                if head.startswith(b"get"):
                    content = _MODELS if b"/v1/models" in head else b""
                    await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(content), content))
                    continue
                self.used += not used
                used = True
                self.asked.append(body)
                self.busy += 1
                try:
                    await (self.script(stream, body) if self.script else self._next(stream))
                except trio.BrokenResourceError:
                    return  # the client left, and the gateway with it
                finally:
                    self.busy -= 1

    async def _next(self, stream: trio.SocketStream) -> None:
        for piece in self.answers.popleft():
            await stream.send_all(piece)
            while self.one_by_one and _unread(stream):
                await trio.lowlevel.checkpoint()


def _unread(stream: trio.SocketStream) -> int:
    """Bytes (as the kernel counts them) that the other end of a Unix socket has not read yet."""
    (count,) = struct.unpack("i", fcntl.ioctl(stream.socket.fileno(), termios.TIOCOUTQ, b"\0" * 4))
    return int(count)


@asynccontextmanager
async def open_upstream(unix: Path | None) -> AsyncIterator[Upstream]:
    """Listening on a Unix socket at that path, else on a TCP port."""
    if unix is not None:
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(str(unix))
        sock.listen()
        upstream = Upstream(f"unix:{unix}", one_by_one=True)
        listeners = [trio.SocketListener(sock)]
    else:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        upstream = Upstream(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}", one_by_one=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, upstream.serve, listeners)
        yield upstream
        nursery.cancel_scope.cancel()
