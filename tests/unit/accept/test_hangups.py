"""Disconnected clients: the owner of the connection is told at once, and no other."""

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from sluicegate.accept.hangups import Hangups

RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def connection() -> tuple[socket.socket, socket.socket]:
    """Our side and the peer's of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    ours.setblocking(False)
    return ours, theirs


class Told:
    """Counts its calls, and can be waited for."""

    def __init__(self) -> None:
        self.count = 0
        self._event = trio.Event()

    def __call__(self) -> None:
        self.count += 1
        self._event.set()

    async def wait(self) -> None:
        with trio.fail_after(5):
            await self._event.wait()


@asynccontextmanager
async def watching() -> AsyncIterator[Hangups]:
    hangups = Hangups()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hangups.watch)
        await wait_all_tasks_blocked()
        yield hangups
        nursery.cancel_scope.cancel()
    hangups.close()


@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
async def test_each_way_to_hang_up_is_told_once(how: str) -> None:
    async with watching() as hangups:
        (ours, theirs), (other, their_other) = connection(), connection()
        told, not_told = Told(), Told()
        hangups.register(ours, told)
        hangups.register(other, not_told)
        if how == "half-close":
            theirs.shutdown(socket.SHUT_WR)
        elif how == "reset":
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            theirs.close()
        else:
            theirs.close()
        await told.wait()
        await wait_all_tasks_blocked()
        assert (told.count, not_told.count) == (1, 0)
        for sock in (ours, other):
            hangups.unregister(sock)
        for sock in (ours, theirs, other, their_other):
            sock.close()


async def test_bytes_are_no_hang_up() -> None:
    async with watching() as hangups:
        ours, theirs = connection()
        told, canary = Told(), Told()
        hangups.register(ours, told)
        theirs.send(b"a request")
        late, their_late = connection()
        hangups.register(late, canary)
        their_late.close()
        await canary.wait()
        assert told.count == 0
        for sock in (ours, late):
            hangups.unregister(sock)
        for sock in (ours, theirs, late):
            sock.close()


async def test_who_is_gone_already_is_told_at_once() -> None:
    async with watching() as hangups:
        ours, theirs = connection()
        theirs.close()
        told = Told()
        hangups.register(ours, told)
        await told.wait()
        hangups.unregister(ours)
        ours.close()


async def test_reused_number_is_another_connection() -> None:
    """No callback runs after unregistering, even if a new connection gets the same descriptor number."""
    async with watching() as hangups:
        ours, theirs = connection()
        first, second, canary = Told(), Told(), Told()
        hangups.register(ours, first)
        hangups.unregister(ours)
        ours.close()
        theirs.close()
        again, their_again = connection()
        hangups.register(again, second)
        late, their_late = connection()
        hangups.register(late, canary)
        their_late.close()
        await canary.wait()
        assert (first.count, second.count) == (0, 0)
        their_again.close()
        await second.wait()
        assert first.count == 0
        for sock in (again, late):
            hangups.unregister(sock)
            sock.close()
