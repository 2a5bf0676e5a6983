"""The pump in trouble: its thread dies, descriptors run out or are reused, sockets end while nothing reads them."""

import contextlib
import errno
import os
import random
import resource
import select
import socket
import time
from collections.abc import Iterator

import pytest
import trio

from sluicegate.exchange import ClientGone
from sluicegate.relay.connection import EngineBroken
from sluicegate.relay.pump import Pump
from sluicegate.relay.splice import framed
from tests.unit.relay.flows import (
    DONE,
    END,
    EVENT,
    MUCH,
    PATIENCE_S,
    STREAM,
    TOKEN,
    Flow,
    beat,
    open_fds,
    open_flow,
    open_pump,
    reset,
    until,
)
from tests.unit.relay.framing import body_of, chunks_of


class Bug(RuntimeError):
    """A mistake in what the pump calls."""


class BrokenSplicer:
    """A splicer with a mistake in it."""

    def passes(self, data: bytes) -> bool:
        raise Bug


# --- the thread ---


async def test_dead_thread_ends_all_streams() -> None:
    """A dead thread is noticed, and all its streams end."""
    async with open_pump() as flows:
        others = [await flows.open() for _ in range(3)]
        stalled = await flows.open(tight=True)
        await flows.stall(stalled, MUCH)
        broken = await open_flow()
        broken.splicer = BrokenSplicer()  # type: ignore[assignment]
        async with trio.open_nursery() as nursery:
            await nursery.start(broken.carry, flows.pump)
            await broken.send(framed(TOKEN))
            with trio.fail_after(PATIENCE_S), pytest.raises(RuntimeError, match="thread died") as caught:
                await flows.pump.watch()
        assert isinstance(caught.value.__cause__, Bug)
        for flow in (broken, stalled, *others):
            assert isinstance(await flow.ended(), EngineBroken)
        assert b"".join(chunks_of(stalled.drained() + stalled.splice.owed)).endswith(b"\n\n")
        broken.close()


async def test_a_dead_thread_takes_up_nothing_more() -> None:
    """A stream that comes too late would wait for ever, and could not even be cancelled."""
    async with open_pump() as flows:
        broken = await open_flow()
        broken.splicer = BrokenSplicer()  # type: ignore[assignment]
        async with trio.open_nursery() as nursery:
            await nursery.start(broken.carry, flows.pump)
            await broken.send(framed(TOKEN))
            late: list[Flow] = []
            while not broken.over.is_set():  # before, while and after it dies
                late.append(await flows.open())
        late += [await flows.open() for _ in range(3)]
        for flow in late:
            assert isinstance(await flow.ended(), EngineBroken)
        broken.close()


async def test_at_the_end_of_its_block_nothing_is_left_behind() -> None:
    before = open_fds()
    opened = [await open_flow() for _ in range(3)]
    async with trio.open_nursery() as nursery:
        with Pump(60, 60) as pump:
            for flow in opened:
                await nursery.start(flow.carry, pump)
        opened[0].scope.cancel()  # while it waits to hear that it is over
    assert [type(flow.error) for flow in opened] == [type(None), EngineBroken, EngineBroken]
    assert opened[0].scope.cancelled_caught
    for flow in opened:
        flow.close()
    assert open_fds() == before


# --- descriptors ---


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """So many more descriptors can be had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers: list[int] = []
    highest = max(int(number) for number in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + count + 1, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(count):
            os.close(fillers.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)


async def assert_unharmed(flow: Flow, pump: Pump) -> None:
    """A flow that was not taken up is carried like any other now."""
    async with trio.open_nursery() as nursery:
        await nursery.start(flow.carry, pump)
        await flow.send(STREAM)
    assert flow.error is None
    assert body_of(flow.drained()).startswith(TOKEN * 3 + DONE)
    flow.close()


@pytest.mark.parametrize("left", [0, 1])
async def test_without_two_descriptors_it_takes_none(left: int) -> None:
    """Without descriptors for both sockets the pump takes neither, and the stream is unharmed."""
    async with open_pump() as flows:
        flow = await open_flow()
        with descriptors_left(left), pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            await flows.pump.carry(flow.connection, flow.splicer, flow.splice)
        await assert_unharmed(flow, flows.pump)


class FullEpoll:
    """Stands before a real epoll, and lets it take only so many more descriptors, as /proc/sys/fs/epoll may."""

    def __init__(self, epoll: select.epoll, left: int) -> None:
        self.unregister = epoll.unregister
        self._register = epoll.register
        self._left = left

    def register(self, fd: int, what: int) -> None:
        if self._left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._left -= 1
        self._register(fd, what)


@pytest.mark.parametrize("left", [0, 1])
async def test_stream_that_epoll_refuses_is_not_taken(left: int) -> None:
    """A stream that the kernel will not watch is not taken up."""
    async with open_pump() as flows:
        flow = await open_flow()
        before = open_fds()
        real = flows.pump._epoll
        flows.pump._epoll = FullEpoll(real, left)  # type: ignore[assignment]
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            await flows.pump.carry(flow.connection, flow.splicer, flow.splice)
        flows.pump._epoll = real
        assert (flows.pump.flows, open_fds()) == (0, before)
        await assert_unharmed(flow, flows.pump)


def event(name: str, rank: int) -> bytes:
    return b"data: %s, event %d\n\n" % (name.encode(), rank)


async def stream_on(flow: Flow, name: str, enough: trio.Event) -> None:
    """Send numbered events one by one, and see each come through, until `enough`."""
    rank = 0
    while not enough.is_set() or rank < 100:
        rank += 1
        expected = framed(event(name, rank))
        await flow.send(expected)
        flow.received = b""
        while len(flow.received) < len(expected):
            assert await flow.receive()
        assert flow.received == expected


async def come_and_go(pump: Pump, name: str, count: int, seed: int) -> None:
    """Streams that end in every way, each with all its descriptors closed at once, so that the next one gets them."""
    rng = random.Random(seed)
    for number in range(count):
        mine = f"{name}.{number}"
        flow = await open_flow(*rng.choice([(), (socket.AF_INET, socket.AF_INET)]))
        async with trio.open_nursery() as nursery:
            await nursery.start(flow.carry, pump)
            events = b"".join(event(mine, rank) for rank in range(rng.randrange(4)))
            await flow.send(framed(events))
            match rng.randrange(5):
                case 0:
                    await flow.send(framed(DONE) + END)
                    await flow.ended()
                case 1:
                    reset(flow.client)
                case 2:
                    reset(flow.engine)
                case 3:
                    flow.scope.cancel()
                case _:
                    flow.client.shutdown(socket.SHUT_WR)
        if flow.client.fileno() >= 0:
            seen = b"".join(chunks_of(flow.drained().removesuffix(END)))
            assert (events + DONE).startswith(seen) or seen.startswith(events + DONE)
        flow.close()


async def test_reused_descriptors_reach_no_wrong_client() -> None:
    """No byte reaches the wrong client, however fast descriptors are closed and reused."""
    async with open_pump() as flows:
        steady = [await flows.open() for _ in range(6)]
        enough = trio.Event()
        async with trio.open_nursery() as streaming:
            for number, flow in enumerate(steady):
                streaming.start_soon(stream_on, flow, f"steady {number}", enough)
            async with trio.open_nursery() as storm:
                for number in range(6):
                    storm.start_soon(come_and_go, flows.pump, f"storm {number}", 150, number)
            enough.set()
        for flow in steady:
            assert not flow.over.is_set()
        assert flows.pump.flows == len(steady)


# --- nothing reads ---


def cpu_s(pump: Pump) -> float:
    """What its thread has used so far (seconds)."""
    assert pump._thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(pump._thread.ident))


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET], ids=["unix", "tcp"])
@pytest.mark.parametrize("how", ["goes on", "half_close", "close", "reset"])
async def test_engine_ends_while_the_client_stalls(family: int, how: str) -> None:
    """An engine that ends while its client stalls costs no CPU time and loses no data."""
    async with open_pump() as flows:
        flow = await flows.open(family, tight=True)
        sent = await flows.stall(flow, MUCH)
        if how == "half_close":
            flow.engine.shutdown(socket.SHUT_WR)
        elif how == "reset":
            reset(flow.engine)
        elif how == "close":
            flow.engine.close()
        before = cpu_s(flows.pump)
        await beat(0.4)
        assert cpu_s(flows.pump) - before < 0.04, "a busy loop"
        assert not flow.over.is_set()
        if how == "goes on":
            flow.scope.cancel()
            await flow.ended()
            return
        while await flow.receive_or_over():
            pass
        assert isinstance(await flow.ended(), EngineBroken)
        events = flow.events()
        assert events == EVENT * (len(events) // len(EVENT))
        if how != "reset" or family == socket.AF_UNIX:  # a reset takes with it what was still on its way
            assert len(events) // len(EVENT) == (sent + 2) // len(framed(EVENT))


async def test_idle_flows_cost_nothing() -> None:
    async with open_pump() as flows:
        for _ in range(100):
            await flows.open()
        await until(lambda: flows.pump.flows == 100)
        before = cpu_s(flows.pump)
        await beat(0.4)
        assert cpu_s(flows.pump) - before < 0.04


async def test_gone_client_of_a_silent_engine_is_found() -> None:
    """A client that disconnected is found although its engine says nothing."""
    async with open_pump() as flows:
        flow = await flows.open(client=socket.AF_INET)
        await until(lambda: flows.pump.flows == 1)
        reset(flow.client)
        assert isinstance(await flow.ended(), ClientGone)
