"""The two things that a fake connection runs on: a socket, or one end of a memory stream. Both can be reset."""

import socket
import struct

import trio
from trio.testing import lockstep_stream_pair, memory_stream_pair

#: SO_LINGER on, for zero seconds: close() sends RST instead of FIN.
_LINGER_RESET = struct.pack("ii", 1, 0)


class MemoryEnd(trio.abc.HalfCloseableStream):
    """One end of a connection in memory that can be reset like a socket.

    After `reset` and `aclose` the peer's calls raise BrokenResourceError, once it has read what was on its way (as on
    Linux).
    """

    def __init__(self, inner: trio.abc.HalfCloseableStream) -> None:
        self._inner = inner
        self._broken = False
        self._peer = self

    @classmethod
    def pair(cls, *, lockstep: bool = False) -> tuple["MemoryEnd", "MemoryEnd"]:
        """Two connected ends. `lockstep`: a send returns only when the peer has taken the bytes."""
        one, other = map(cls, lockstep_stream_pair() if lockstep else memory_stream_pair())
        one._peer, other._peer = other, one
        return one, other

    def reset(self) -> None:
        """Break the peer's end. Close this one afterwards."""
        self._peer._broken = True

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Bytes from the peer; empty at its end."""
        data = await self._inner.receive_some(max_bytes)
        if self._broken and not data:
            raise trio.BrokenResourceError("connection reset by peer")
        return bytes(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send to the peer."""
        if self._broken:
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError("connection reset by peer")
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """As the trio interface says."""
        await self._inner.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Half-close."""
        await self._inner.send_eof()

    async def aclose(self) -> None:
        """Close both directions; the peer reads an end, unless it was reset."""
        await self._inner.aclose()


#: What a fake connection is served on.
Transport = trio.SocketStream | MemoryEnd


def reset(stream: Transport) -> None:
    """See to it that closing `stream` resets the connection. On a Unix socket it is a plain close."""
    if isinstance(stream, MemoryEnd):
        stream.reset()
    elif stream.socket.family != socket.AF_UNIX:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
