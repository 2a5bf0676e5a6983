"""Every wait is bounded, and each bound counts from where it says. On virtual time, to the second."""

import pytest
import trio
from trio.testing import MockClock

from sluicegate.outcome import Outcome
from tests.fakes.engine import open_engine
from tests.fakes.script import BEFORE_FIRST_EVENT, BEFORE_HEAD, Behaviour, Fault, Framing, Kind, Wire
from tests.harness import SimClient, question, simulate
from tests.simulation.visiting import Visitor, arrive, visit

STALL_AT_3 = Behaviour(fault=Fault(Kind.STALL, 3))


@pytest.mark.parametrize("at", [BEFORE_HEAD, BEFORE_FIRST_EVENT])
async def test_first_token_deadline_is_a_504(autojump_clock: MockClock, at: int) -> None:
    """The first-token deadline gives a 504 even after the engine has sent its head."""
    async with open_engine() as engine, simulate(engine, first_token_s=5.0, idle_s=1.0) as running:
        engine.script.next(Behaviour(fault=Fault(Kind.STALL, at)))
        visitor = await visit(running, question(stream=True))
        assert visitor.refused(Outcome.TIMEOUT_FIRST_TOKEN, 504)
        assert visitor.took_s == pytest.approx(5.0)
        await engine.until(lambda: (engine.running, engine.aborted) == (0, 1))


async def test_a_first_token_just_in_time_is_in_time(autojump_clock: MockClock) -> None:
    async with open_engine() as engine, simulate(engine, first_token_s=5.0, idle_s=1.0) as running:
        engine.script.next(Behaviour(prefill_s=4.9, token_interval_s=0.9))
        assert (await visit(running, question(stream=True))).outcome == "served"


async def test_first_token_deadline_starts_with_the_slot(autojump_clock: MockClock) -> None:
    """The first-token deadline counts from the slot, not from the arrival."""
    async with open_engine() as engine, simulate(engine, max_active=1, first_token_s=5.0) as running:
        engine.script.default = Behaviour(prefill_s=4.0)
        async with trio.open_nursery() as nursery:
            visitors = [Visitor(running, question(stream=True)) for _ in range(3)]
            await arrive(nursery, *visitors)
        assert [visitor.outcome for visitor in visitors] == ["served"] * 3
        assert visitors[-1].took_s == pytest.approx(12.0)


async def test_whole_answer_has_no_first_token_deadline(autojump_clock: MockClock) -> None:
    """Only a stream has a first-token deadline."""
    async with open_engine() as engine, simulate(engine, first_token_s=5.0, idle_s=1.0) as running:
        engine.script.next(Behaviour(prefill_s=50.0))
        visitor = await visit(running, question())
        visitor.assert_ended("served", 50.0)


async def test_idle_stream_ends_with_an_error_event(autojump_clock: MockClock) -> None:
    """A silent engine ends the stream after idle_s, and the request at the engine is aborted."""
    async with open_engine() as engine, simulate(engine, idle_s=7.0) as running:
        engine.script.next(STALL_AT_3)
        visitor = await visit(running, question(stream=True))
        visitor.assert_ended("timeout_idle", 7.0)
        assert len(visitor.events) == 4
        assert visitor.data()[-1]["error"]["code"] == "timeout_idle"
        assert "7 s" in visitor.data()[-1]["error"]["message"]
        assert visitor.client.finished
        await engine.until(lambda: (engine.running, engine.aborted) == (0, 1))
        running.assert_at_rest()


async def test_bytes_that_make_no_event_yet_are_not_silence(autojump_clock: MockClock) -> None:
    async with open_engine() as engine, simulate(engine, first_token_s=50.0, idle_s=3.0) as running:
        engine.script.next(Behaviour(token_interval_s=2.0, tokens=5, wire=Wire(chunk_bytes=100)))
        assert (await visit(running, question(stream=True))).outcome == "served"


async def test_events_restart_only_the_idle_deadline(autojump_clock: MockClock) -> None:
    """Each event restarts the idle deadline; no event restarts the total deadline."""
    async with open_engine() as engine, simulate(engine, idle_s=3.0, request_s=20.0) as running:
        engine.script.next(Behaviour(token_interval_s=2.5, tokens=7))
        assert (await visit(running, question(stream=True))).outcome == "served"
        engine.script.next(Behaviour(token_interval_s=2.5, tokens=70))
        visitor = await visit(running, question(stream=True))
        visitor.assert_ended("timeout_total", 20.0)


async def test_the_total_deadline_counts_from_the_slot(autojump_clock: MockClock) -> None:
    async with open_engine() as engine, simulate(engine, max_active=1, request_s=10.0) as running:
        engine.script.default = Behaviour(prefill_s=8.0)
        async with trio.open_nursery() as nursery:
            visitors = [Visitor(running, question()) for _ in range(3)]
            await arrive(nursery, *visitors)
        assert [visitor.outcome for visitor in visitors] == ["served"] * 3


@pytest.mark.parametrize("stream", [False, True])
async def test_shortest_deadline_is_the_total_one(autojump_clock: MockClock, stream: bool) -> None:
    """If the total deadline is the shortest, it comes first."""
    async with open_engine() as engine, simulate(engine, first_token_s=50.0, idle_s=50.0, request_s=4.0) as running:
        engine.script.next(Behaviour(fault=Fault(Kind.STALL, BEFORE_HEAD)))
        visitor = await visit(running, question(stream=stream))
        assert visitor.refused(Outcome.TIMEOUT_TOTAL, 504)
        assert visitor.took_s == pytest.approx(4.0)


async def test_total_deadline_without_a_slot(autojump_clock: MockClock) -> None:
    """A request that needs no slot counts its total deadline from its head."""
    async with open_engine() as engine, simulate(engine, request_s=4.0) as running:
        engine.script.next(Behaviour(delay_s=100.0))
        visitor = await visit(running, {"prompt": "x"}, "/tokenize")
        assert visitor.refused(Outcome.TIMEOUT_TOTAL, 504)
        assert visitor.took_s == pytest.approx(4.0)


@pytest.mark.parametrize("stream", [False, True])
async def test_stalled_client_frees_its_slot(autojump_clock: MockClock, stream: bool) -> None:
    """A client that reads nothing is cut after stall_s, and the next request gets its slot."""
    async with open_engine() as engine, simulate(engine, max_active=1, request_s=300.0, idle_s=1.0) as running:
        client = SimClient(stall_s=15.0)
        client.stalled = True
        async with trio.open_nursery() as nursery:
            stalled = Visitor(running, question(stream=stream), client=client)
            next_one = Visitor(running, question())
            await arrive(nursery, stalled, next_one)
        stalled.assert_ended("client_stalled", 15.0)
        next_one.assert_ended("served", 15.0)
        running.assert_at_rest()


async def test_the_time_that_a_client_takes_is_not_the_engines(autojump_clock: MockClock) -> None:
    """A reader slower than idle_s, but faster than its own deadline, is served."""

    class SlowClient(SimClient):
        async def send(self, data: bytes) -> None:
            await trio.sleep(10.0)
            await super().send(data)

    async with open_engine() as engine, simulate(engine, first_token_s=2.0, idle_s=2.0) as running:
        visitor = await visit(running, question(stream=True), client=SlowClient())
        assert visitor.outcome == "served"
        assert visitor.took_s >= 20.0


async def test_total_deadline_holds_for_a_slow_client(autojump_clock: MockClock) -> None:
    """The total deadline holds while the client stalls; only the last words come later."""
    async with open_engine() as engine, simulate(engine, max_active=1, request_s=5.0) as running:
        client = SimClient(stall_s=15.0)
        client.stalled = True
        visitor = await visit(running, question(stream=True), client=client)
        assert visitor.outcome == "timeout_total"
        assert visitor.took_s == pytest.approx(20.0), "its last words stall as well"
        running.assert_at_rest()


async def test_stall_keeps_the_outcome_of_a_refusal(autojump_clock: MockClock) -> None:
    """A client that stalls while it is told its refusal keeps the outcome of the refusal."""
    async with open_engine() as engine, simulate(engine) as running:
        client = SimClient(stall_s=15.0)
        client.stalled = True
        visitor = await visit(running, b"no JSON", client=client)
        visitor.assert_ended("invalid", 15.0)


@pytest.mark.parametrize("framing", Framing)
async def test_deadlines_hold_for_each_framing(autojump_clock: MockClock, framing: Framing) -> None:
    async with open_engine() as engine, simulate(engine, idle_s=7.0) as running:
        engine.script.next(STALL_AT_3.but(wire=Wire(framing=framing)))
        visitor = await visit(running, question(stream=True))
        visitor.assert_ended("timeout_idle", 7.0)
