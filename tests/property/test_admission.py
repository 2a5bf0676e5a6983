"""Admission under any schedule: arrivals, leavings, completions, timeouts, new bounds and a drain, in any order."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from sluicegate.admit.admission import Admission
from sluicegate.admit.claim import ANYONE, Ticket, TicketState
from sluicegate.config.schema import AdmissionConfig, QueueMode
from sluicegate.engines.engine import Engines
from sluicegate.outcome import Outcome, Refusal
from tests.unit.engines.watched import make_engine

#: One step of a schedule: its name and a number, of which each step makes what it needs.
Step = tuple[str, int]

_NUMBER = st.integers(0, 7)
_STEP = st.tuples(
    st.sampled_from(
        ["arrive"] * 4
        + ["complete"] * 3
        + ["leave"] * 2
        + ["pass time"] * 2
        + ["one turn"] * 2
        + ["rest"] * 3
        + ["reconfigure"]
    ),
    _NUMBER,
)


@st.composite
def _schedules(draw: st.DrawFn) -> list[Step]:
    """Any steps, and perhaps a drain somewhere, often with arrivals that had no turn yet."""
    before, after = draw(st.lists(_STEP, max_size=30)), draw(st.lists(_STEP, max_size=10))
    arrivals = [("arrive", 0)] * draw(st.integers(0, 4))
    return [*before, *arrivals, *([("drain", 0)] if draw(st.booleans()) else []), *after]


@dataclass(eq=False)
class Visitor:
    """One request: does what the pipeline does with a ticket."""

    rank: int
    arrived_at: float
    outcomes: list[Outcome] = field(default_factory=list)
    ticket: Ticket | None = None
    done: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def stay(self, admission: Admission) -> None:
        ticket = self.ticket
        assert ticket is not None
        outcome = None
        try:
            with self.scope:
                try:
                    if ticket.decided is not None:  # it was told to wait, and may have been called already
                        await admission.wait(ticket)
                    await self.done.wait()
                    outcome = Outcome.SERVED
                except Refusal as refusal:
                    outcome = refusal.outcome
        finally:
            queued = ticket.granted_at is None
            self.outcomes.append(outcome or (Outcome.CLIENT_GONE_QUEUED if queued else Outcome.CLIENT_GONE_ACTIVE))
            admission.settle(ticket)


class Machine:
    """Drives one Admission through a schedule, and compares it with what must hold after every single step."""

    def __init__(self, config: AdmissionConfig, nursery: trio.Nursery, clock: MockClock) -> None:
        self.config = config
        self.clock = clock
        self.nursery = nursery
        self.engine = make_engine("engine", "m", slots=config.max_active)
        self.admission = Admission(config, Engines([self.engine]))
        self.visitors: list[Visitor] = []
        self.most_active, self.most_waiting = config.max_active, config.queue_max
        self.held: list[float] = []  # how long each slot was held, in the order of settling
        nursery.start_soon(self.admission.run)

    async def run(self, schedule: list[Step]) -> None:
        steps: dict[str, Callable[[int], Any]] = {
            "arrive": lambda _: self.arrive(),
            "complete": lambda number: self.each(TicketState.ACTIVE, number, lambda visitor: visitor.done.set()),
            "leave": lambda number: self.each(None, number, lambda visitor: visitor.scope.cancel()),
            "pass time": lambda number: self.clock.jump(number * self.config.queue_timeout_s / 4),
            "drain": lambda _: self.admission.drain(),
            "reconfigure": self.reconfigure,
        }
        for name, number in schedule:
            if name == "rest":
                await wait_all_tasks_blocked()
                self.check_at_rest()
            elif name == "one turn":
                await trio.lowlevel.checkpoint()
            else:
                steps[name](number)
            self.check()
        await self.finish()

    # -- steps ----------------------------------------------------------------------------------------------------

    def arrive(self) -> None:
        admission, config = self.admission, self.config
        visitor = Visitor(len(self.visitors), trio.current_time())
        self.visitors.append(visitor)
        active, waiting = admission.active, admission.queued
        draining, hopeless = admission.draining, self.expected_wait_s() > config.queue_timeout_s
        try:
            visitor.ticket = admission.enter(ANYONE)
        except Refusal as refusal:
            visitor.outcomes.append(refusal.outcome)
            self.check_refusal(refusal, active, waiting, hopeless=hopeless)
            return
        assert not draining
        if visitor.ticket.active:
            assert active < config.max_active, "more slots than there are"
            assert waiting == 0, "overtook queued requests"
        else:
            assert config.queue_mode is QueueMode.QUEUE
            assert waiting < config.queue_max
            assert active >= config.max_active or waiting, "queued although a slot is free and no request is before it"
            assert not hopeless
        self.nursery.start_soon(visitor.stay, admission)

    def each(self, state: TicketState | None, number: int, act: Callable[[Visitor], None]) -> None:
        """Apply it to one of the open requests (in that state), if any."""
        there = [v for v in self.visitors if v.ticket is not None and not v.outcomes]
        there = [v for v in there if state is None or (v.ticket is not None and v.ticket.state is state)]
        if there:
            act(there[number % len(there)])

    def reconfigure(self, number: int) -> None:
        """Other bounds, and now and then the other mode."""
        self.config = dataclasses.replace(
            self.config,
            max_active=number % 3 + 1,
            queue_max=number % 5,
            queue_mode=QueueMode.REJECT if number == 7 else QueueMode.QUEUE,
        )
        self.most_active = max(self.config.max_active, self.admission.active)
        self.most_waiting = max(self.config.queue_max, self.admission.queued)
        self.engine.slots.total_tokens = self.config.max_active
        self.admission.reconfigure(self.config)

    # -- what must hold -------------------------------------------------------------------------------------------

    def check_refusal(self, refusal: Refusal, active: int, waiting: int, *, hopeless: bool) -> None:
        config = self.config
        assert refusal.retry_after_s is not None
        assert refusal.retry_after_s >= 1
        match refusal.outcome:
            case Outcome.SHED_DRAINING:
                assert self.admission.draining
            case Outcome.SHED_BUSY:
                assert config.queue_mode is QueueMode.REJECT
                assert active >= config.max_active or waiting
            case Outcome.SHED_QUEUE_FULL:
                assert waiting >= config.queue_max
            case Outcome.SHED_QUEUE_TIMEOUT:
                assert hopeless
            case _:
                raise AssertionError(refusal)

    def check(self) -> None:
        """After every step, whatever the scheduler has yet to do."""
        admission, config = self.admission, self.config
        states = [visitor.ticket.state for visitor in self.visitors if visitor.ticket is not None]
        assert admission.active == states.count(TicketState.ACTIVE) <= self.most_active
        assert admission.queued == states.count(TicketState.QUEUED) <= self.most_waiting
        # If the limits were lowered: no request is cut off, and none takes the place of one that ends.
        self.most_active = max(config.max_active, admission.active)
        self.most_waiting = max(config.queue_max, admission.queued)
        assert all(len(visitor.outcomes) <= 1 for visitor in self.visitors)
        granted = [v.rank for v in self.visitors if v.ticket is not None and v.ticket.granted_at is not None]
        waiting = [v.rank for v in self.visitors if v.ticket is not None and v.ticket.queued]
        assert not granted or not waiting or max(granted) < min(waiting), "a queued request was overtaken"

    def check_at_rest(self) -> None:
        """When the scheduler has nothing more to do."""
        admission, now = self.admission, trio.current_time()
        assert admission.active >= self.config.max_active or admission.queued == 0, (
            "an idle slot beside a queued request"
        )
        assert not (admission.draining and admission.queued)
        for visitor in self.visitors:
            if visitor.ticket is not None and visitor.ticket.queued:
                assert now - visitor.arrived_at < self.config.queue_timeout_s, "queued past its timeout"
            ended = visitor.ticket is None or visitor.ticket.state is TicketState.SETTLED
            assert ended == (len(visitor.outcomes) == 1)

    async def finish(self) -> None:
        """Every request is served or withdrawn; then nothing may be left."""
        for visitor in self.visitors[::2]:
            visitor.done.set()
        await wait_all_tasks_blocked()
        self.check()
        for visitor in self.visitors:
            visitor.scope.cancel()
        await wait_all_tasks_blocked()
        self.check()
        self.check_at_rest()
        admission = self.admission
        assert (admission.active, admission.queued) == (0, 0)
        assert self.engine.slots.borrowed_tokens == 0
        for visitor in self.visitors:
            assert len(visitor.outcomes) == 1
            self.check_outcome(visitor)

    def check_outcome(self, visitor: Visitor) -> None:
        ticket, (outcome,) = visitor.ticket, visitor.outcomes
        if ticket is None:
            return  # was refused on arrival, and checked there
        served = ticket.granted_at is not None
        assert served == (outcome in (Outcome.SERVED, Outcome.CLIENT_GONE_ACTIVE))
        if outcome is Outcome.SHED_QUEUE_TIMEOUT:
            assert trio.current_time() - visitor.arrived_at >= self.config.queue_timeout_s
        if outcome is Outcome.SHED_DRAINING:
            assert self.admission.draining

    def expected_wait_s(self) -> float:
        slot_time_s = self.admission.view().slot_time_s
        return 0.0 if slot_time_s is None else (self.admission.queued + 1) * slot_time_s / self.config.max_active


@settings(max_examples=400, deadline=None)
@given(
    schedule=_schedules(),
    max_active=st.integers(1, 3),
    queue_max=st.integers(0, 4),
    queue_mode=st.sampled_from([QueueMode.QUEUE] * 3 + [QueueMode.REJECT]),
)
def test_any_schedule(schedule: list[Step], **bounds: Any) -> None:
    clock = MockClock()

    async def drive() -> None:
        async with trio.open_nursery() as nursery:
            await Machine(AdmissionConfig(queue_timeout_s=8.0, **bounds), nursery, clock).run(schedule)
            nursery.cancel_scope.cancel()

    trio.run(drive, clock=clock, strict_exception_groups=True)
