"""A client may leave at any moment: at every single step of a request, everything it held must be released."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sluicegate.outcome import Outcome
from tests.fakes.engine import FakeEngine, open_engine
from tests.fakes.script import BEFORE_HEAD, Behaviour, Fault, Kind, Wire
from tests.harness import Running, question, simulate
from tests.simulation.visiting import Visitor, arrive, visit

#: More steps than any of these requests takes: a loop that gets there never completes.
STEPS_MAX = 400


class CancelAfter(trio.abc.Instrument):
    """Has a visitor leave when its task has made so many steps, be it blocked, or about to be run again."""

    def __init__(self, visitor: Visitor, steps: int) -> None:
        self._visitor = visitor
        self._left = steps
        self._task: trio.lowlevel.Task | None = None

    async def run(self) -> bool:
        """Run the visitor to its end; whether it was cancelled before it got there by itself."""
        self._task = trio.lowlevel.current_task()
        if self._left == 0:
            self._visitor.leave()
        trio.lowlevel.add_instrument(self)
        try:
            await self._visitor.run()
        finally:
            trio.lowlevel.remove_instrument(self)
        return self._left <= 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._visitor.leave()


#: What a request meets with, and its outcome if it is not cancelled.
CASES: dict[str, tuple[dict[str, Any], Behaviour, Outcome]] = {
    "whole": ({}, Behaviour(prefill_s=1.0), Outcome.SERVED),
    "stream": ({"stream": True}, Behaviour(prefill_s=1.0, token_interval_s=0.1), Outcome.SERVED),
    "stream in pieces": (
        {"stream": True},
        Behaviour(prefill_s=1.0, token_interval_s=0.1, tokens=3, wire=Wire(chunk_bytes=150)),
        Outcome.SERVED,
    ),
    "broken": ({}, Behaviour(fault=Fault(Kind.RESET, BEFORE_HEAD)), Outcome.ENGINE_ERROR),
    "truncated": (
        {"stream": True},
        Behaviour(token_interval_s=0.1, fault=Fault(Kind.CLOSE, 2)),
        Outcome.ENGINE_TRUNCATED,
    ),
    "silent": ({"stream": True}, Behaviour(fault=Fault(Kind.STALL, 2)), Outcome.TIMEOUT_IDLE),
    "failing": ({}, Behaviour(fault=Fault(Kind.STATUS)), Outcome.ENGINE_ERROR),
    "refused by the engine": ({"messages": 1}, Behaviour(), Outcome.INVALID),
    "out of time": ({}, Behaviour(fault=Fault(Kind.STALL, BEFORE_HEAD)), Outcome.TIMEOUT_TOTAL),
}


@asynccontextmanager
async def gateway() -> AsyncIterator[tuple[FakeEngine, Running]]:
    settings = {"max_active": 1, "idle_s": 2.0, "request_s": 5.0, "probe_interval_s": 50.0}
    async with open_engine() as engine, simulate(engine, **settings) as running:
        yield engine, running


async def cancel_everywhere(
    engine: FakeEngine, running: Running, expected: Outcome, attempt: Callable[[int], Any]
) -> list[str]:
    """Call `attempt` with 0, 1, 2, … until it completes; after each nothing may be held. All outcomes."""
    outcomes = []
    for steps in range(STEPS_MAX):
        visitor, cancelled = await attempt(steps)
        outcomes.append(visitor.outcome)
        await engine.until(lambda: (engine.running, engine.waiting) == (0, 0))
        await wait_all_tasks_blocked()
        running.assert_at_rest()
        for each in running.gateway.engines.all:
            assert engine.connections == each.connections.idle, f"connections without a holder after {steps} steps"
        if not cancelled:
            assert outcomes[-1] == expected.value
            assert steps > 3
            ledger = running.gateway.ledger
            assert ledger.opened == ledger.settled == sum(running.outcomes().values())
            return outcomes
    raise AssertionError("it never completed")


@pytest.mark.parametrize("case", CASES)
async def test_cancelled_at_every_step(autojump_clock: MockClock, case: str) -> None:
    members, behaviour, expected = CASES[case]
    async with gateway() as (engine, running):

        async def attempt(steps: int) -> tuple[Visitor, bool]:
            engine.script.queue.clear()
            engine.script.next(behaviour)
            visitor = Visitor(running, question(**members))
            return visitor, await CancelAfter(visitor, steps).run()

        outcomes = await cancel_everywhere(engine, running, expected, attempt)
        # Before the last attempt it was cancelled each time, though perhaps too late to change how it ended.
        assert set(outcomes) <= {"client_gone_active", "client_gone_queued", expected.value}
        assert outcomes.count("client_gone_active") > 3
        engine.script.queue.clear()
        assert (await visit(running, question())).outcome == "served"


async def test_cancelled_at_every_step_in_the_queue(autojump_clock: MockClock) -> None:
    async with gateway() as (engine, running):

        async def attempt(steps: int) -> tuple[Visitor, bool]:
            engine.script.queue.clear()
            engine.script.next(Behaviour(prefill_s=1.0))
            holder, visitor = Visitor(running, question()), Visitor(running, question())
            async with trio.open_nursery() as nursery:
                await arrive(nursery, holder)
                cancelled = await CancelAfter(visitor, steps).run()
            assert holder.outcome == "served"
            return visitor, cancelled

        outcomes = await cancel_everywhere(engine, running, Outcome.SERVED, attempt)
        assert outcomes[0] == "client_gone_queued"
        assert set(outcomes) == {"client_gone_queued", "client_gone_active", "served"}


async def test_cancelled_at_every_step_of_a_retry(autojump_clock: MockClock) -> None:
    """The retry replaces a kept connection that died while it was idle."""
    async with gateway() as (engine, running):

        async def attempt(steps: int) -> tuple[Visitor, bool]:
            engine.script.queue.clear()
            await visit(running, question())
            engine.script.next(Behaviour(close=True))
            await visit(running, question())
            await engine.until(lambda: engine.connections == 0)
            pool = running.gateway.engines.default.connections
            assert pool.idle == 1, "a dead connection is kept, that looks alive"
            visitor = Visitor(running, question())
            cancelled = await CancelAfter(visitor, steps).run()
            if pool.idle != engine.connections:  # it was cancelled before it met the dead connection
                pool.close_idle()
            return visitor, cancelled

        outcomes = await cancel_everywhere(engine, running, Outcome.SERVED, attempt)
        assert outcomes[-1] == "served"


async def test_cut_off_at_every_step(autojump_clock: MockClock) -> None:
    """The same for the end of a drain, which cancels from the inside: the client is told."""
    async with open_engine() as engine:
        for steps in range(STEPS_MAX):
            async with simulate(engine, max_active=1, probe_interval_s=50.0) as running:
                engine.script.queue.clear()
                engine.script.next(Behaviour(prefill_s=1.0, token_interval_s=0.1, tokens=3))
                visitor = Visitor(running, question(stream=True))
                visitor.leave = running.gateway.delivery.cut  # type: ignore[method-assign]
                cut = await CancelAfter(visitor, steps).run()
                assert visitor.outcome in ("served", "shed_draining")
                if visitor.outcome == "shed_draining":
                    assert visitor.client.status in (200, 503)
                    assert b'"code":"shed_draining"}}' in visitor.client.body[-20 - len("shed_draining") :]
                assert visitor.client.finished
                await engine.until(lambda: (engine.running, engine.waiting) == (0, 0))
                running.assert_at_rest()
                if not cut:
                    assert visitor.outcome == "served"
                    return
    raise AssertionError("it never completed")
