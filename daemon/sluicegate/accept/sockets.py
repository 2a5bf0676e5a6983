"""Listening sockets: bound by us or handed over; and how a client's socket is closed."""

import contextlib
import errno
import ipaddress
import os
import socket
import ssl
import stat
import struct
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import trio

from ..config.schema import Address, TcpAddress, UnixAddress

#: How long an answer to a request that was not read to its end may take to arrive (seconds).
LINGER_S = 2.0

#: Bytes that are read at once, to be dropped, while it arrives.
LINGER_READ = 65536

#: What a non-blocking socket over TLS raises where a plain one raises BlockingIOError.
TLS_NOT_NOW = (ssl.SSLWantReadError, ssl.SSLWantWriteError)

#: What either raises.
NOT_NOW = (BlockingIOError, *TLS_NOT_NOW)

#: What one record of TLS holds (bytes; RFC 8446, 5.1).
RECORD_MAX = 16384

#: Waits for something at a socket.
Wait = Callable[[Any], Awaitable[None]]

#: SO_LINGER for no time: a close resets the connection.
_LINGER = struct.Struct("ii")
_RESET = _LINGER.pack(1, 0)

#: Connections that the kernel completes for us before we accept them.
BACKLOG = 1024


def bind_all(addresses: Iterable[Address]) -> list[trio.SocketListener]:
    """Listen on each of them, or on none: OSError then, whose `filename` is the address that cannot be bound."""
    listeners: list[trio.SocketListener] = []
    for address in addresses:
        try:
            listeners.append(bind(address))
        except OSError as error:
            error.filename = str(address)
            for listener in listeners:
                listener.socket.close()
            raise
    return listeners


def bind(address: Address) -> trio.SocketListener:
    """Listen on `address`. OSError if it is taken or not allowed.

    A Unix socket that a dead process left behind is removed first; one with a listener is left alone.
    """
    if isinstance(address, UnixAddress):
        _remove_stale(address.path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    else:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address.path if isinstance(address, UnixAddress) else (address.host, address.port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def adopt(sock: socket.socket) -> trio.SocketListener:
    """Listen on a socket that listens already, which is the listener's own from now on."""
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def bound_address(listener: trio.SocketListener) -> Address:
    """Where `listener` listens; a name in the abstract namespace begins with @."""
    name = listener.socket.getsockname()
    if isinstance(name, tuple):
        return TcpAddress(name[0], name[1])
    return UnixAddress("@" + name[1:].decode(errors="replace") if isinstance(name, bytes) else name)


def is_local(listener: trio.SocketListener) -> bool:
    """Whether no other host can reach it: it listens on a Unix socket, or on a loopback address."""
    address = bound_address(listener)
    return isinstance(address, UnixAddress) or ipaddress.ip_address(address.host).is_loopback


class TlsSocket(ssl.SSLSocket):
    """A client's socket over TLS, non-blocking."""

    def send(self, data: Any, flags: int = 0) -> int:
        """Send some of it; how much. A record for each call of OpenSSL's, so that this is known.

        What raises TLS_NOT_NOW must be sent again, with nothing else in front of it; more may follow.
        """
        if len(data) <= RECORD_MAX:  # nearly always
            return super().send(data, flags)
        sent, view = 0, memoryview(data)
        try:
            while sent < len(view):
                sent += super().send(view[sent : sent + RECORD_MAX], flags)
        except TLS_NOT_NOW:
            if not sent:
                raise
        return sent


def wait_for(error: OSError) -> Wait:
    """What to wait for at the socket that raised `error`, one of TLS_NOT_NOW.

    A call of either kind may want either: OpenSSL answers a handshake message where it reads, and reads one where it
    writes.
    """
    if isinstance(error, ssl.SSLWantReadError):
        return trio.lowlevel.wait_readable
    return trio.lowlevel.wait_writable


def end_tls(sock: socket.socket) -> None:
    """Tell the peer, if it speaks TLS, that it has got everything. Nothing can be sent after that."""
    if isinstance(sock, ssl.SSLSocket):
        with contextlib.suppress(OSError, ValueError):  # it does not wait for the peer's own farewell
            sock.unwrap()


def close(sock: socket.socket) -> None:
    """Close a client's socket, as it was prepared: a reset is no end that a peer might take for a proper one."""
    if isinstance(sock, ssl.SSLSocket) and not _resets(sock):
        end_tls(sock)
    sock.close()


def _resets(sock: socket.socket) -> bool:
    try:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.size) == _RESET
    except OSError:
        return True


def reset_on_close(sock: socket.socket) -> None:
    """Have the coming close reset the connection, so that the kernel does not keep what the client never took."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def has_unread(sock: socket.socket) -> bool:
    """Whether the peer has sent something that was not read: a close would reset the connection."""
    try:
        return bool(socket.socket.recv(sock, 1, socket.MSG_PEEK))  # below TLS
    except OSError:
        return False


async def linger(sock: socket.socket) -> None:
    """End what is sent on `sock`, and let it arrive although the peer still sends: for LINGER_S at most.

    A close with bytes unread would reset the connection, and the peer might never see the answer.
    """
    with trio.move_on_after(LINGER_S), contextlib.suppress(OSError):
        end_tls(sock)
        sock.shutdown(socket.SHUT_WR)  # from here on an SSLSocket is a plain one
        while True:
            try:
                if not sock.recv(LINGER_READ):
                    return
            except BlockingIOError:
                await trio.lowlevel.wait_readable(sock)
            else:
                await trio.lowlevel.checkpoint()


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return  # another file: bind reports that the path is taken
    except OSError:
        return  # not there, or not to be seen: bind will say so
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            return  # one that is too busy to answer is taken, too
        else:
            raise OSError(errno.EADDRINUSE, "another program listens there already", path)
