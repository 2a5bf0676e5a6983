"""Who hung up: one epoll for all client connections, so that a request need not watch its own socket.

A task per request that waits for the client to disconnect costs a nursery, a task and two switches. An edge-triggered
registration per connection costs nothing until the kernel reports.
"""

import errno
import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio


class Hangups:
    """Calls back, on the trio thread, when a registered peer closes, half-closes or resets its connection."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}

    def register(self, sock: socket.socket, callback: Callable[[], None]) -> None:
        """`callback` is called at most once per hang-up, until `unregister`; at once if the peer is disconnected."""
        self._callbacks[sock.fileno()] = callback
        self._epoll.register(sock.fileno(), select.EPOLLRDHUP | select.EPOLLET)

    def unregister(self, sock: socket.socket) -> None:
        """Before `sock` is closed: its number is another connection's a moment later."""
        del self._callbacks[sock.fileno()]
        self._epoll.unregister(sock.fileno())

    @contextmanager
    def watching(self, sock: trio.socket.SocketType, callback: Callable[[], None], below: int) -> Iterator[None]:
        """Registered as long as the block runs; by a duplicate, for `sock` itself may be closed within the block.

        OSError if there are no descriptors left `below` that number.
        """
        with socket.socket(fileno=os.dup(sock.fileno())) as duplicate:
            if duplicate.fileno() >= below:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            self.register(duplicate, callback)
            try:
                yield
            finally:
                self.unregister(duplicate)

    async def watch(self) -> None:
        """Deliver hang-ups, until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for fd, _ in self._epoll.poll(0):
                self._callbacks[fd]()

    def close(self) -> None:
        self._epoll.close()
