"""A wire whose other side is a list: what arrives, piece by piece, and what was sent."""

import socket

import trio


class ScriptedWire:
    """Gives out `parts` one by one, raising those that are exceptions; then the end, for ever."""

    def __init__(self, *parts: bytes | Exception) -> None:
        self.parts = list(parts)
        self.sent = b""
        self.alive = True
        self.closed = False
        self.fails_to_send: Exception | None = None

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if self.fails_to_send is not None:
            raise self.fails_to_send
        self.sent += data

    async def receive_some(self) -> bytes:
        await trio.lowlevel.checkpoint()
        part = self.parts.pop(0) if self.parts else b""
        if isinstance(part, Exception):
            raise part
        return part

    def looks_alive(self) -> bool:
        return self.alive

    def close(self) -> None:
        self.closed = True

    def __repr__(self) -> str:
        return "<ScriptedWire>"


def stream_sockets() -> tuple[socket.socket, socket.socket]:
    """Two connected, non-blocking sockets."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs
