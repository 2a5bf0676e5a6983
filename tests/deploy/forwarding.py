"""Ports of this machine behind which a port of another network answers: of a host's loopback, or of our own."""

import contextlib
import ctypes
import os
import selectors
import socket
import socketserver
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.deploy.serving import running

#: <linux/sched.h>
CLONE_NEWNET = 0x40000000

#: Loopback and a virtual cable: a server that does not answer by then does not run (seconds).
CONNECT_S = 5.0

CHUNK = 65536

Address = tuple[str, int]


@contextlib.contextmanager
def forwarded(listen: Address, to: Address, namespace: Path | None = None) -> Iterator[Address]:
    """Pass on all connections to `listen` until the end of the block; gives its address, with the port that was free
    if `listen` has 0. `to` is an address in the network `namespace`, or in this machine's own."""
    enter = None if namespace is None else lambda: _enter(namespace)
    # A network namespace belongs to a thread, and a socket to the one that it was made in: one thread enters it, and
    # makes the sockets of all.
    with ThreadPoolExecutor(1, initializer=enter) as inside, _Server(listen, to, inside) as server, running(server):
        host, port = server.server_address[:2]
        yield str(host), int(port)


def _enter(namespace: Path) -> None:
    """Let this thread see the network of `namespace`. (os.setns came with Python 3.12.)"""
    with namespace.open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(namespace))


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    # A client that stays must not keep us from the end.
    block_on_close = False

    def __init__(self, listen: Address, to: Address, inside: ThreadPoolExecutor) -> None:
        super().__init__(listen, _Connection)
        self.to, self.inside = to, inside


class _Connection(socketserver.BaseRequestHandler):
    request: socket.socket
    server: _Server

    def handle(self) -> None:
        """Carry data both ways until both sides have ended; close the connection if nothing listens behind it."""
        with contextlib.suppress(OSError):
            connect = self.server.inside.submit(socket.create_connection, self.server.to, CONNECT_S)
            with connect.result() as other:
                other.settimeout(None)
                _carry(self.request, other)


def _carry(one: socket.socket, other: socket.socket) -> None:
    with selectors.DefaultSelector() as reading:
        reading.register(one, selectors.EVENT_READ, other)
        reading.register(other, selectors.EVENT_READ, one)
        while reading.get_map():
            for key, _ in reading.select():
                source: socket.socket = key.fileobj  # type: ignore[assignment]
                if data := source.recv(CHUNK):
                    key.data.sendall(data)
                else:
                    reading.unregister(source)
                    key.data.shutdown(socket.SHUT_WR)
