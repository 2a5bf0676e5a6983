"""The pump between socket pairs: how streams end, what it waits for, and that only whole events go out."""

import socket
import ssl
import time
from functools import partial
from typing import Any

import pytest
import trio

from sluicegate.exchange import ClientGone, ClientStalled
from sluicegate.relay.connection import EngineBroken
from sluicegate.relay.pump import READ_SIZE, EngineIdle, Pump
from sluicegate.relay.splice import framed
from tests.unit.relay.flows import (
    DONE,
    END,
    MUCH,
    PATIENCE_S,
    STREAM,
    TOKEN,
    Flow,
    beat,
    freeze,
    open_flow,
    open_pump,
    reset,
    spin,
    until,
)
from tests.unit.relay.framing import FINAL_FRAME, body_of, chunks_of

families = pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET], ids=["unix", "tcp"])


@families
async def test_healthy_stream(family: int) -> None:
    """The stream arrives whole, and its connection can be used again."""
    async with open_pump() as flows:
        flow = await flows.open(family, family)
        await flow.send(STREAM)
        assert await flow.ended() is None
        body = body_of(flow.drained())
        assert body.startswith(TOKEN * 3 + DONE)
        assert FINAL_FRAME.fullmatch(body.removeprefix(TOKEN * 3 + DONE))
        assert flow.splice.has_ended
        assert flow.splice.owed == b""
        assert flow.connection.reusable


async def test_each_event_goes_at_once() -> None:
    async with open_pump() as flows:
        flow = await flows.open()
        for count in range(1, 50):
            await flow.send(framed(TOKEN))
            await flow.receive_tokens(count)


async def test_engine_on_tcp_is_not_acked_per_event() -> None:
    """The pump turns off the immediate acknowledgement of each event of an engine on TCP."""

    def at_once(flow: Flow) -> int:
        assert flow.connection.sock is not None
        return flow.connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK)

    async with open_pump() as flows:
        flow = await open_flow(engine=socket.AF_INET)
        assert at_once(flow)
        async with trio.open_nursery() as nursery:
            await nursery.start(flow.carry, flows.pump)
            await until(lambda: flows.pump.flows == 1)
            assert not at_once(flow)
            await flow.send(STREAM)
        assert await flow.ended() is None
        flow.close()


async def test_surplus_spoils_only_the_connection() -> None:
    """Bytes after the end leave the stream whole, and the connection is not used again."""
    async with open_pump() as flows:
        flow = await flows.open()
        await flow.send(STREAM + b"HTTP/1.1 200 OK\r\n\r\n")
        assert await flow.ended() is None
        assert flow.splice.has_ended
        assert not flow.connection.reusable


def assert_broken_off(flow: Flow, events: bytes) -> None:
    assert isinstance(flow.error, EngineBroken)
    assert flow.events() == events
    assert flow.splice.owed == b""
    assert not flow.splice.has_ended
    assert not flow.connection.reusable


@families
@pytest.mark.parametrize("tail", [b"", framed(TOKEN)[:1], framed(TOKEN)[:9], framed(TOKEN)[:-1], b"0\r\n"])
async def test_an_engine_that_closes_too_early(family: int, tail: bytes) -> None:
    async with open_pump() as flows:
        flow = await flows.open(family, family)
        await flow.send(framed(TOKEN) * 2 + tail)
        flow.engine.shutdown(socket.SHUT_WR)
        assert "closed the connection" in str(await flow.ended())
        assert_broken_off(flow, TOKEN * (3 if tail == framed(TOKEN)[:-1] else 2))


async def test_an_engine_that_resets() -> None:
    async with open_pump() as flows:
        flow = await flows.open(socket.AF_INET)
        await flow.send(framed(TOKEN))
        await flow.receive_tokens(1)
        reset(flow.engine)
        assert "broke" in str(await flow.ended())
        assert_broken_off(flow, TOKEN)


async def test_an_engine_that_talks_nonsense() -> None:
    async with open_pump() as flows:
        flow = await flows.open()
        await flow.send(framed(TOKEN))
        await flow.receive_tokens(1)
        await flow.send(b"zz\r\n")
        assert "not HTTP" in str(await flow.ended())
        assert_broken_off(flow, TOKEN)


async def test_an_engine_that_ends_its_body_before_its_stream() -> None:
    """The end of the body is not passed on: the client would take the stream for complete."""
    async with open_pump() as flows:
        flow = await flows.open()
        await flow.send(framed(TOKEN) * 2 + END)
        assert "before the end of the answer" in str(await flow.ended())
        assert_broken_off(flow, TOKEN * 2)


async def test_body_ending_in_an_event_loses_only_it() -> None:
    """The client gets every event before the one in which the body ends."""
    async with open_pump() as flows:
        flow = await flows.open()
        await flow.send(framed(TOKEN) + framed(TOKEN[:-1]) + END)
        await flow.ended()
        assert_broken_off(flow, TOKEN)


def leave(client: socket.socket, how: str) -> None:
    if how == "half_close":
        client.shutdown(socket.SHUT_WR)
    elif how == "reset":
        reset(client)
    else:
        client.close()


@families
@pytest.mark.parametrize("how", ["close", "half_close", "reset"])
@pytest.mark.parametrize("events", [0, 1, 5])
async def test_a_client_that_leaves(family: int, how: str, events: int) -> None:
    async with open_pump() as flows:
        flow = await flows.open(client=family)
        for count in range(events):
            await flow.send(framed(TOKEN))
            await flow.receive_tokens(count + 1)
        leave(flow.client, how)
        assert isinstance(await flow.ended(), ClientGone)
        assert not flow.connection.reusable
        assert not flow.splice.has_ended


@families
@pytest.mark.parametrize("how", ["close", "half_close", "reset"])
async def test_a_stalled_client_that_leaves(family: int, how: str) -> None:
    async with open_pump() as flows:
        flow = await flows.open(client=family, tight=True)
        await flows.stall(flow, MUCH)
        leave(flow.client, how)
        assert isinstance(await flow.ended(), ClientGone)


async def test_a_client_found_gone_only_when_it_is_written_to() -> None:
    async with open_pump() as flows:
        flow = await flows.open()
        flow.splice.sock.shutdown(socket.SHUT_WR)  # as if it had been cut: our own writes fail from now on
        await flow.send(framed(TOKEN))
        assert isinstance(await flow.ended(), ClientGone)


@families
async def test_stalled_client_is_cut(family: int) -> None:
    """A client that takes nothing is cut after stall_s."""
    async with open_pump(stall_s=0.1) as flows:
        flow = await flows.open(client=family, tight=True)
        started = time.monotonic()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flow.send, MUCH)
            assert isinstance(await flow.ended(), ClientStalled)
            nursery.cancel_scope.cancel()
        assert time.monotonic() - started >= 0.1
        assert not flow.splice.has_ended
        assert not flow.connection.reusable


@families
async def test_a_slow_client_pushes_back_and_loses_nothing(family: int) -> None:
    async with open_pump() as flows:
        flow = await flows.open(family, family, tight=True)
        sent = await flows.stall(flow, MUCH)
        assert flows.pending(flow) <= READ_SIZE + 2 * 3100
        if family == socket.AF_UNIX:  # TCP may pass on a little more whenever one of its timers says so
            assert flow.send_all_that_fits(MUCH[sent:]) == 0, "the pump still reads"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flow.send, MUCH[sent:] + framed(DONE) + END)
            await flow.receive_to_the_end()
        assert await flow.ended() is None
        assert body_of(flow.received).startswith(b"".join(chunks_of(MUCH)) + DONE)


class Reluctant(socket.socket):
    """A client's socket whose `send` raises what is in `wants` before it sends anything, as one over TLS may."""

    wants: list[OSError]

    def send(self, data: Any, flags: int = 0) -> int:
        if self.wants:
            raise self.wants.pop(0)
        return super().send(data, flags)


async def test_tls_may_want_to_read_or_write_first() -> None:
    """The pump waits for what OpenSSL wants, and sends the same again."""
    async with open_pump() as flows:
        flow = await open_flow()
        sock = Reluctant(fileno=flow.splice.sock.detach())
        sock.wants = [ssl.SSLWantWriteError(), ssl.SSLWantReadError(), ssl.SSLWantWriteError()]
        flow.splice.sock = sock
        async with trio.open_nursery() as nursery:
            await nursery.start(flow.carry, flows.pump)
            await flow.send(framed(TOKEN))
            await until(lambda: len(sock.wants) == 1)
            await beat(0.05)
            assert sock.wants, "it waits for the client's own bytes now"
            flow.client.send(b"x")
            await flow.receive_tokens(1)
            sock.wants = [ssl.SSLError("broken")]
            await flow.send(framed(TOKEN))
            assert isinstance(await flow.ended(), ClientGone)
        flow.close()


async def test_slow_event_may_outlast_stall_s() -> None:
    """A large event may take longer than stall_s as long as each of its pieces does not."""
    event = b"data: %s\n\n" % (b"x" * 1_040_000)
    async with open_pump(stall_s=0.8) as flows:
        flow = await flows.open(tight=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flow.send, framed(event) + framed(DONE) + END)
            started = time.monotonic()
            while time.monotonic() - started < 1.1:
                for _ in range(10):
                    await flow.receive(4096)
                await beat(0.05)
            assert flows.pending(flow) > 0, "it was not slow enough to show anything"
            await flow.receive_to_the_end()
        assert await flow.ended() is None
        assert body_of(flow.received).startswith(event + DONE)


@pytest.mark.parametrize("size", [1, 3000])
async def test_trickling_client_is_stalled(size: int) -> None:
    """A client that takes a little now and then is stalled as well."""
    async with open_pump(stall_s=0.3) as flows:
        flow = await flows.open(tight=True)
        await flows.stall(flow, MUCH)
        for _ in range(20):
            flow.client.recv(size)
            await beat(0.05)
            if flow.over.is_set():
                break
        assert isinstance(flow.error, ClientStalled)


async def test_a_silent_engine() -> None:
    async with open_pump(idle_s=0.1) as flows:
        flow = await flows.open()
        started = time.monotonic()
        await flow.send(framed(TOKEN) + framed(TOKEN)[:9])
        assert isinstance(await flow.ended(), EngineIdle)
        assert time.monotonic() - started >= 0.1
        assert flow.events() == TOKEN
        assert flow.splice.owed == b""
        assert not flow.connection.reusable


async def test_an_engine_is_not_idle_while_its_client_stalls() -> None:
    async with open_pump(idle_s=0.1) as flows:
        stalled = await flows.open(tight=True)
        sent = await flows.stall(stalled, MUCH)
        idle = await flows.open()
        assert isinstance(await idle.ended(), EngineIdle)
        assert not stalled.over.is_set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stalled.send, MUCH[sent:] + framed(DONE) + END)
            await stalled.receive_to_the_end()
        assert await stalled.ended() is None


async def test_idle_s_counts_from_the_clients_catch_up() -> None:
    """An engine has idle_s from the moment at which its client has caught up."""
    event = framed(b"data: %s\n\n" % (b"x" * 50_000))
    async with open_pump(idle_s=0.3) as flows:
        flow = await flows.open(tight=True)
        await flow.send(event)
        await beat(0.4)
        assert flows.pending(flow)
        started = time.monotonic()
        while flow.received != event:
            await flow.receive()
        assert isinstance(await flow.ended(), EngineIdle)
        assert time.monotonic() - started >= 0.3


@pytest.mark.parametrize("part", [b"", framed(TOKEN)[:1], framed(TOKEN)[:-1]])
@pytest.mark.parametrize("events", [0, 1, 2, 7])
async def test_cancelled_between_events(events: int, part: bytes) -> None:
    async with open_pump() as flows:
        flow = await flows.open()
        whole = events + (len(part) > len(TOKEN))
        await flow.send(framed(TOKEN) * events + part)
        if whole:
            await flow.receive_tokens(whole)
        flow.scope.cancel()
        await flow.ended()
        assert flow.scope.cancelled_caught
        assert flow.events() == TOKEN * whole
        assert flow.splice.owed == b""
        assert not flow.connection.reusable


async def test_cancelled_as_soon_as_the_pump_has_it() -> None:
    async with open_pump() as flows:
        for _ in range(50):
            flow = await flows.open()
            flow.scope.cancel()
            await flow.ended()
            assert flow.scope.cancelled_caught
        assert flows.pump.flows == 0


async def test_cancelled_while_the_client_stalls() -> None:
    """What the client has not taken is owed, in whole events."""
    async with open_pump() as flows:
        flow = await flows.open(tight=True)
        await flows.stall(flow, MUCH)
        pending = flows.pending(flow)
        flow.scope.cancel()
        await flow.ended()
        assert flow.scope.cancelled_caught
        assert len(flow.splice.owed) == pending
        events = b"".join(chunks_of(flow.drained() + flow.splice.owed))  # the two together are whole chunks
        assert events.endswith(b"\n\n")
        assert b"".join(chunks_of(MUCH)).startswith(events)


async def test_engine_breaks_as_the_client_stalls() -> None:
    """An engine that breaks as its client stalls leaves the rest owed."""
    async with open_pump() as flows:
        flow = await flows.open(tight=True)
        big = framed(b"data: %s\n\n" % (b"x" * 50_000))
        await flow.send(big + END)
        assert isinstance(await flow.ended(), EngineBroken)
        assert flow.splice.owed
        assert flow.drained() + flow.splice.owed == big


def has_ended(flow: Flow, pump: Pump) -> bool:
    return flow.drained().endswith(END) and pump.flows == 0


async def test_a_cancelled_flow_that_has_just_ended_has_ended() -> None:
    """Its cancellation comes to the pump after its end did: it must not be taken for another flow's."""
    async with open_pump() as flows:
        for _ in range(100):
            flow = await flows.open()
            await flow.send(STREAM)
            spin(partial(has_ended, flow, flows.pump))  # our task is not awake yet
            flow.scope.cancel()
            assert await flow.ended() is None
            assert flow.splice.has_ended


async def test_hundreds_of_flows_do_not_mix() -> None:
    async with open_pump() as flows:
        opened = [await flows.open() for _ in range(200)]
        expected = []
        for number, flow in enumerate(opened):
            events = [b"data: flow %d, event %d\n\n" % (number, rank) for rank in range(20)]
            expected.append(b"".join(events))
            await flow.send(b"".join(map(framed, events)))
        for flow in opened:
            await flow.send(framed(DONE) + END)
        for flow, whole in zip(opened, expected, strict=True):
            assert await flow.ended() is None
            assert body_of(flow.drained()).startswith(whole + DONE)
        assert flows.pump.flows == 0
        assert repr(flows.pump) == "<Pump 0 flows>"


async def test_its_clock_is_trios() -> None:
    async with open_pump() as flows:
        before = trio.current_time()
        now = flows.pump.clock()
        assert before - 0.001 <= now <= trio.current_time() + 0.001


# --- what the daemon around it asks ---


async def test_prove_with_and_without_streams() -> None:
    """The pump proves that its loop runs, with streams and without."""
    async with open_pump() as flows:
        with trio.fail_after(PATIENCE_S):
            await flows.pump.prove()
            await flows.open()
            await flows.pump.prove()


async def test_a_frozen_thread_proves_nothing_until_it_goes_on() -> None:
    async with open_pump() as flows:
        thaw = freeze(flows.pump)
        proved = trio.Event()

        async def prove() -> None:
            await flows.pump.prove()
            proved.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(prove)
            await beat(0.1)
            assert not proved.is_set()
            thaw.set()
            with trio.fail_after(PATIENCE_S):
                await proved.wait()


async def test_new_deadlines_hold_for_running_streams() -> None:
    """New deadlines hold for the streams that are already in the pump."""
    async with open_pump() as flows:
        silent, stalled = await flows.open(), await flows.open(tight=True)
        await flows.stall(stalled, MUCH)
        flows.pump.set_deadlines(0.05, 60.0)
        assert isinstance(await silent.ended(), EngineIdle)
        assert not stalled.over.is_set()
        flows.pump.set_deadlines(60.0, 0.05)
        assert isinstance(await stalled.ended(), ClientStalled)
