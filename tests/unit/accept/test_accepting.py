"""Accepting survives errors of single connections and a lack of descriptors, and nothing else."""

import errno
import logging
import socket
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from sluicegate.accept.accepting import BURST, NOTSENT_MAX, REST_S, accept_forever


class Visitors:
    """Keeps what was accepted."""

    def __init__(self) -> None:
        self.accepted: list[socket.socket] = []

    async def handle(self, sock: socket.socket) -> None:
        self.accepted.append(sock)

    def close(self) -> None:
        for sock in self.accepted:
            sock.close()


async def listening() -> trio.SocketListener:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=4 * BURST)
    return listener


async def test_crowd_is_accepted() -> None:
    """A crowd of connections is accepted in one go, and each has the socket options it needs."""
    listener, visitors = await listening(), Visitors()
    clients = [socket.create_connection(listener.socket.getsockname()) for _ in range(2 * BURST + 1)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_forever, listener, visitors.handle, nursery)
        await wait_all_tasks_blocked()
        assert len(visitors.accepted) == len(clients)
        for sock in visitors.accepted:
            assert not sock.getblocking()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == NOTSENT_MAX
        nursery.cancel_scope.cancel()
    assert listener.socket.fileno() < 0, "the listener is closed with the end"
    visitors.close()
    for client in clients:
        client.close()


class Failing:
    """A listening socket whose accept fails a few times."""

    def __init__(self, sock: socket.socket, errors: list[int]) -> None:
        self._sock = sock
        self._errors = errors

    def accept(self) -> Any:
        if self._errors:
            number = self._errors.pop(0)
            raise OSError(number, errno.errorcode[number])
        return self._sock.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


async def accept_after(errors: list[int], monkeypatch: pytest.MonkeyPatch) -> int:
    """How many of one connection were accepted by a listener that fails with `errors` first."""
    listener, visitors = await listening(), Visitors()
    make = socket.socket
    monkeypatch.setattr(socket, "socket", lambda *args, **named: Failing(make(*args, **named), errors))
    with make() as client:
        client.connect(listener.socket.getsockname())
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(accept_forever, listener, visitors.handle, nursery)
                with trio.fail_after(5):
                    while not visitors.accepted:
                        await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        finally:
            visitors.close()
    return len(visitors.accepted)


async def test_broken_connections_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that broke before they were accepted do not stop the loop."""
    assert await accept_after([errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN], monkeypatch) == 1


async def test_without_descriptors_it_rests(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Without free descriptors the loop logs an error, pauses and goes on."""
    began = trio.current_time()
    with caplog.at_level(logging.ERROR):
        assert await accept_after([errno.EMFILE], monkeypatch) == 1
    assert trio.current_time() - began >= REST_S
    assert "no connection can be accepted" in caplog.text


async def test_a_broken_listener_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await accept_after([errno.EBADF], monkeypatch)
    assert isinstance(caught.value.exceptions[0], OSError)
