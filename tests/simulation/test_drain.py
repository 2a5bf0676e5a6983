"""Stopping: queued requests are shed, active ones may finish, and the deadline cuts the rest. On virtual time."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sluicegate.exchange import Room
from sluicegate.gateway import LAST_WORDS_S
from sluicegate.outcome import Outcome
from tests.fakes.engine import open_engine
from tests.fakes.script import Behaviour
from tests.harness import Running, SimBody, SimClient, question, simulate
from tests.simulation.visiting import Visitor, arrive, visit


async def drain(running: Running) -> float:
    """Stop the gateway, as on SIGTERM; how many virtual seconds it took."""
    began = trio.current_time()
    running.gateway.stop()
    await running.gateway.drain()
    return trio.current_time() - began


async def test_with_nothing_to_do_it_takes_no_time(autojump_clock: MockClock) -> None:
    async with open_engine() as engine, simulate(engine) as running:
        await visit(running, question())
        assert await drain(running) == 0.0
        assert running.gateway.draining
        assert running.log_lines("cut") == []


async def test_queued_are_shed_and_active_finish(autojump_clock: MockClock) -> None:
    async with open_engine() as engine, simulate(engine, max_active=2, drain_s=30.0) as running:
        engine.script.default = Behaviour(token_interval_s=1.0, tokens=20)
        async with trio.open_nursery() as nursery:
            stream, whole, first, second = [Visitor(running, question(stream=i != 1)) for i in range(4)]
            await arrive(nursery, stream, whole, first, second)
            assert running.gateway.admission.queued == 2
            assert await drain(running) == pytest.approx(19.0)
            await wait_all_tasks_blocked()
            for visitor in (first, second):
                assert visitor.refused(Outcome.SHED_DRAINING, 503)
                assert visitor.retry_after == b"1"
                assert visitor.took_s == 0.0
            assert (stream.outcome, whole.outcome) == ("served", "served")
            assert stream.data()[-1] == "[DONE]"
        running.assert_at_rest()


async def test_shed_while_it_stops(autojump_clock: MockClock) -> None:
    async with open_engine() as engine, simulate(engine, max_active=2) as running:
        engine.script.next(Behaviour(prefill_s=5.0))
        async with trio.open_nursery() as nursery:
            runs = Visitor(running, question())
            await arrive(nursery, runs)
            running.gateway.stop()
            late = await visit(running, question())
            assert late.refused(Outcome.SHED_DRAINING, 503)
        assert runs.outcome == "served"


async def test_at_its_deadline_the_rest_is_cut_and_told_so(autojump_clock: MockClock) -> None:
    async with open_engine() as engine, simulate(engine, max_active=3, drain_s=10.0) as running:
        engine.script.default = Behaviour(token_interval_s=1.0, tokens=100)
        async with trio.open_nursery() as nursery:
            stream, whole = Visitor(running, question(stream=True)), Visitor(running, question())
            await arrive(nursery, stream, whole)
            assert await drain(running) == pytest.approx(10.0)
        stream.assert_ended("shed_draining", 10.0)
        assert stream.client.status == 200
        assert stream.data()[-1]["error"]["code"] == "shed_draining"
        assert "[DONE]" not in stream.data()
        assert whole.refused(Outcome.SHED_DRAINING, 503)
        (cut,) = running.log_lines("cut")
        assert cut["detail"] == "2 requests outlasted the drain"
        await engine.until(lambda: (engine.running, engine.aborted) == (0, 2))
        running.assert_at_rest()


async def test_stalled_client_delays_the_end_a_little(autojump_clock: MockClock) -> None:
    """A stalled client delays the end of a drain by LAST_WORDS_S and no more."""
    async with open_engine() as engine, simulate(engine, drain_s=10.0) as running:
        client = SimClient(stall_s=600.0)
        client.stalled = True
        async with trio.open_nursery() as nursery:
            await arrive(nursery, Visitor(running, question(stream=True), client=client))
            assert await drain(running) == pytest.approx(10.0 + LAST_WORDS_S)
            nursery.cancel_scope.cancel()
        running.assert_at_rest()
        assert running.outcomes() == {"shed_draining": 1}


async def test_second_signal_cuts_at_once(autojump_clock: MockClock) -> None:
    """A second signal cuts every request, also one whose body is still being read."""

    class SlowBody(SimBody):
        async def whole(self, room: Room) -> bytes:
            await trio.sleep(600.0)
            return await super().whole(room)

    async with open_engine() as engine, simulate(engine, drain_s=1000.0) as running:
        engine.script.next(Behaviour(token_interval_s=1.0, tokens=100))
        drained = []

        async def stop() -> None:
            drained.append(await drain(running))

        async with trio.open_nursery() as nursery:
            runs, sends = Visitor(running, question(stream=True)), Visitor(running, b"")
            sends.request.body = SlowBody(b"")
            await arrive(nursery, runs, sends)
            nursery.start_soon(stop)
            await trio.sleep(3.5)
            running.gateway.cut()
            await trio.sleep(10.0)
            runs.assert_ended("shed_draining", 3.5)
            assert drained == [pytest.approx(3.5 + LAST_WORDS_S)]
            sends.leave()  # as its connection is closed now
        assert sends.outcome == "client_gone_queued"
        running.assert_at_rest()


async def test_without_a_drain_time_all_is_cut_at_once(autojump_clock: MockClock) -> None:
    async with open_engine() as engine, simulate(engine, drain_s=0.0) as running:
        engine.script.next(Behaviour(prefill_s=5.0))
        async with trio.open_nursery() as nursery:
            visitor = Visitor(running, question())
            await arrive(nursery, visitor)
            assert await drain(running) == 0.0
        assert visitor.refused(Outcome.SHED_DRAINING, 503)


async def test_several_may_wait_for_the_last_request_to_end(autojump_clock: MockClock) -> None:
    async with open_engine() as engine, simulate(engine) as running:
        engine.script.next(Behaviour(prefill_s=5.0))
        ended = []

        async def wait(name: str) -> None:
            await running.settled()
            ended.append((name, trio.current_time()))

        async with trio.open_nursery() as nursery:
            visitor = Visitor(running, question())
            await arrive(nursery, visitor)
            nursery.start_soon(wait, "first")
            await wait_all_tasks_blocked()
            nursery.start_soon(wait, "second")
        assert sorted(ended) == [("first", visitor.left_at), ("second", visitor.left_at)]
