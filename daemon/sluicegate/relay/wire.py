"""A wire to the engine: the least that a connection needs, over a socket without the cost of trio's SocketStream."""

import errno
import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import trio

from ..config.schema import Address, TcpAddress, UnixAddress

#: Bytes per read. An engine event is 200 to 400 bytes, an embedding answer hundreds of kilobytes.
READ_SIZE = 65536

#: How long to wait before the next try to get into the full queue of an engine's Unix socket (seconds).
QUEUE_FULL_S = 0.01


class Wire(Protocol):
    """A connected byte stream. Simulations put a memory stream behind it, so that time can be virtual."""

    async def send_all(self, data: bytes) -> None:
        """Send it all. OSError or trio.BrokenResourceError if the other side is gone."""
        ...

    async def receive_some(self) -> bytes:
        """At least one byte, or b"" at the end. OSError or trio.BrokenResourceError if the connection broke."""
        ...

    def looks_alive(self) -> bool:
        """For an idle wire: False if it was closed, or if bytes came without a request."""
        ...

    def close(self) -> None:
        """Close it at once. Idempotent."""
        ...


#: Makes a new wire. OSError if nothing listens.
Dial = Callable[[], Awaitable[Wire]]


class SocketWire:
    """A wire over a non-blocking socket, which it owns.

    Tries the system call first and asks trio only if it would block: trio.SocketStream yields to the scheduler at every
    call, even if bytes are already there, and on the relay's path that is most of the cost.
    """

    __slots__ = ("_closed", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._closed = False

    async def send_all(self, data: bytes) -> None:
        sent = self._send(data)
        while sent < len(data):
            await trio.lowlevel.wait_writable(self.sock)
            sent += self._send(memoryview(data)[sent:])

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0

    async def receive_some(self) -> bytes:
        while True:
            try:
                return self.sock.recv(READ_SIZE)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.sock)

    def looks_alive(self) -> bool:
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            # A task of ours that waits on this socket is woken with ClosedResourceError instead of waiting on a
            # descriptor that may soon be another connection.
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()

    def __repr__(self) -> str:
        return f"<SocketWire fd={self.sock.fileno()}>"


def dialer(address: Address, timeout_s: float) -> Dial:
    """A Dial for `address`. It raises OSError if nothing listens or if connecting takes longer than `timeout_s`."""
    if isinstance(address, UnixAddress):
        return partial(_dial, address, socket.AF_UNIX, address.path, timeout_s)
    if not _is_literal(address.host):
        return partial(_dial_name, address, timeout_s)
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    return partial(_dial, address, family, (address.host, address.port), timeout_s)


async def _dial_name(address: TcpAddress, timeout_s: float) -> Wire:
    with trio.move_on_after(timeout_s):
        try:
            sock = (await trio.open_tcp_stream(address.host, address.port)).socket
        except ExceptionGroup as errors:  # so it tells that there are no descriptors left
            raise OSError("no socket could be made") from errors
        return _wire(socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach()))
    raise _too_late(address, timeout_s)


async def _dial(
    address: Address, family: socket.AddressFamily, target: tuple[str, int] | str, timeout_s: float
) -> Wire:
    """Where no name is to be looked up: a fraction of the work of trio.open_tcp_stream."""
    wire = _wire(socket.socket(family))
    try:
        code = wire.sock.connect_ex(target)
        if code == 0 or (code == errno.EINPROGRESS and _has_peer(wire.sock)):
            return wire  # on one host always: no scope and no turn of the scheduler for that
        with trio.move_on_after(timeout_s):
            await _connected(wire.sock, target, code)
            return wire
        raise _too_late(address, timeout_s)
    except BaseException:
        wire.close()
        raise


def _too_late(address: Address, timeout_s: float) -> TimeoutError:
    return TimeoutError(f"no connection to {address} within {timeout_s:g} s")


async def _connected(sock: socket.socket, target: tuple[str, int] | str, code: int) -> None:
    """Wait until `sock` is connected, after a connect that returned `code`. OSError if it will not be."""
    while code == errno.EAGAIN:  # a Unix socket with a full queue; nothing tells when there is room in it again
        await trio.sleep(QUEUE_FULL_S)
        code = sock.connect_ex(target)
    if code == errno.EINPROGRESS:
        await trio.lowlevel.wait_writable(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, f"cannot connect: {os.strerror(code)}")


def _has_peer(sock: socket.socket) -> bool:
    """Whether it is connected. Over loopback it is as soon as connect returns, which says that it was in progress."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _is_literal(host: str) -> bool:
    """Whether `host` is an address rather than a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _wire(sock: socket.socket) -> SocketWire:
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return SocketWire(sock)
