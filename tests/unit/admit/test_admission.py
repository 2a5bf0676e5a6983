"""The Admission: slots and places in the queue, taken and released in every order that matters. On virtual time."""

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sluicegate.admit.admission import CHANNEL_PLACES, Admission
from sluicegate.admit.claim import ANYONE, Claim, Ticket, TicketState
from sluicegate.config.schema import AdmissionConfig, QueueMode
from sluicegate.engines.engine import Engines
from sluicegate.outcome import Outcome, Refusal
from tests.shed import SHED, ShedCase
from tests.unit.engines.watched import make_engine


@asynccontextmanager
async def open_admission(**settings: Any) -> AsyncIterator[Admission]:
    """An Admission (one slot, unless told) whose controller is at its receive."""
    config = AdmissionConfig(**({"max_active": 1, "queue_max": 3, "queue_timeout_s": 10.0} | settings))
    admission = Admission(config, Engines([make_engine("engine", "m", slots=config.max_active)]))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(admission.run)
        await wait_all_tasks_blocked()
        yield admission
        nursery.cancel_scope.cancel()


def reconfigure(admission: Admission, **settings: Any) -> None:
    """Put other numbers in force, as a reload does."""
    config = dataclasses.replace(admission.config, **settings)
    admission.engines.default.slots.total_tokens = config.max_active
    admission.reconfigure(config)


def refused(admission: Admission) -> Refusal:
    with pytest.raises(Refusal) as caught:
        admission.enter(ANYONE)
    return caught.value


async def enter_and_wait(admission: Admission) -> None:
    """Enter, wait for a slot as the pipeline does, and release it."""
    ticket = admission.enter(ANYONE)
    try:
        await admission.wait(ticket)
    finally:
        admission.settle(ticket)


async def test_free_slot_is_taken_at_once() -> None:
    """A free slot is granted on arrival, without a task switch."""
    async with open_admission(max_active=2) as admission:
        first, second = admission.enter(ANYONE), admission.enter(ANYONE)
        assert first.active
        assert second.active
        assert (admission.active, admission.queued) == (2, 0)
        assert repr(admission) == "<Admission 2/2 active, 0 queued>"


async def test_released_slot_is_granted_in_the_same_step() -> None:
    """The step that releases a slot grants it to the next request."""
    async with open_admission() as admission:
        holder, queued = admission.enter(ANYONE), admission.enter(ANYONE)
        assert queued.queued
        await wait_all_tasks_blocked()  # the controller queues it
        admission.settle(holder)
        assert queued.active
        assert (admission.active, admission.queued) == (1, 0)
        await admission.wait(queued)
        admission.settle(queued)
        assert admission.active == 0


async def test_slot_freed_before_the_controllers_turn() -> None:
    """A slot goes to the request in the channel, which no later request overtakes."""
    async with open_admission() as admission:
        holder, queued = admission.enter(ANYONE), admission.enter(ANYONE)
        admission.settle(holder)
        assert admission.queued == 1, "the controller has had no turn yet"
        later = admission.enter(ANYONE)
        assert later.queued, "overtook a queued request"
        await wait_all_tasks_blocked()
        assert (queued.state, later.state) == (TicketState.ACTIVE, TicketState.QUEUED)
        admission.settle(queued)
        assert later.active


async def test_slots_are_granted_in_order_of_arrival() -> None:
    """A request that was withdrawn from the queue is passed over."""
    async with open_admission(queue_max=4) as admission:
        holder, *queueds = [admission.enter(ANYONE) for _ in range(5)]
        assert [ticket.position for ticket in queueds] == [0, 1, 2, 3]
        await wait_all_tasks_blocked()
        admission.settle(queueds[1])
        assert admission.queued == 3
        order = []
        while admission.active:
            admission.settle(holder)
            granted = [ticket for ticket in queueds if ticket.active]
            if granted:
                (holder,) = granted
                order.append(queueds.index(holder))
        assert order == [0, 2, 3]


async def test_withdrawn_before_the_controllers_turn() -> None:
    """A request that is withdrawn before the controller's turn leaves no trace."""
    async with open_admission() as admission:
        holder = admission.enter(ANYONE)
        leaver = admission.enter(ANYONE)
        admission.settle(leaver)
        assert admission.queued == 0
        await wait_all_tasks_blocked()
        admission.settle(holder)
        await wait_all_tasks_blocked()
        assert (admission.active, admission.queued) == (0, 0)
        assert admission.enter(ANYONE).active


async def test_bound_counts_channel_and_queue() -> None:
    """The queue's bound counts the requests in the channel and in the queue together."""
    async with open_admission(queue_max=2) as admission:
        admission.enter(ANYONE)
        queueds = [admission.enter(ANYONE)]
        await wait_all_tasks_blocked()
        queueds.append(admission.enter(ANYONE))  # one in the queue, one in the channel
        assert refused(admission).outcome is Outcome.SHED_QUEUE_FULL
        admission.settle(queueds[0])
        assert admission.enter(ANYONE).queued


async def test_channel_full_of_withdrawn_requests() -> None:
    """The channel refuses arrivals until the controller has cleared it."""
    async with open_admission(queue_max=1) as admission:
        admission.enter(ANYONE)
        for _ in range(CHANNEL_PLACES + 1):  # the controller, which waits for an arrival, takes the first
            admission.settle(admission.enter(ANYONE))
        assert admission.queued == 0
        assert refused(admission).outcome is Outcome.SHED_QUEUE_FULL
        assert admission.queued == 0
        await wait_all_tasks_blocked()
        assert admission.enter(ANYONE).queued


@pytest.mark.parametrize("case", SHED.values(), ids=SHED)
async def test_shed(autojump_clock: MockClock, case: ShedCase) -> None:
    """Each case of the table: the answer and when it comes. Nothing is left of the request."""
    async with open_admission(**case.settings) as admission:
        before = [admission.enter(ANYONE) for _ in range(case.before)]
        began = trio.current_time()
        with pytest.raises(Refusal) as caught:
            await enter_and_wait(admission)
        assert trio.current_time() - began == pytest.approx(case.after_s)
        assert (caught.value.outcome, caught.value.status, caught.value.message) == case.answer
        assert caught.value.retry_after_s == 1
        assert admission.queued == case.before - 1
        for ticket in before:
            admission.settle(ticket)
        assert admission.enter(ANYONE).active


@pytest.mark.parametrize(
    ("slots", "queue_max", "message"),
    [
        (1, 2, "The only slot is busy and the queue is full (2 requests). Retry after 1 s."),
        (4, 1, "All 4 slots are busy and the queue is full (1 request). Retry after 1 s."),
        (4, 0, "All 4 slots are busy and there is no queue. Retry after 1 s."),
    ],
)
async def test_one_is_told_from_many(slots: int, queue_max: int, message: str) -> None:
    """End users read refusals. The rest is in the table of those that are shed."""
    async with open_admission(max_active=slots, queue_max=queue_max) as admission:
        for _ in range(slots + queue_max):
            admission.enter(ANYONE)
        assert refused(admission).message == message


async def test_all_of_many_slots_are_busy() -> None:
    async with open_admission(max_active=4, queue_mode=QueueMode.REJECT) as admission:
        for _ in range(4):
            admission.enter(ANYONE)
        assert refused(admission).message == "All 4 slots are busy. Retry after 1 s."


async def test_retry_after_is_what_was_measured(mock_clock: MockClock) -> None:
    async with open_admission(queue_mode=QueueMode.REJECT) as admission:
        holder = admission.enter(ANYONE)
        mock_clock.jump(7.5)
        admission.settle(holder)
        admission.enter(ANYONE)
        refusal = refused(admission)
        assert (refusal.retry_after_s, refusal.message) == (8, "The only slot is busy. Retry after 8 s.")


async def test_the_mean_slot_time_counts_every_request(mock_clock: MockClock) -> None:
    async with open_admission() as admission:
        for seconds in (10.0, 20.0):
            holder = admission.enter(ANYONE)
            mock_clock.jump(seconds)
            admission.settle(holder)
        assert admission.view().slot_time_s == pytest.approx(11.0)


async def test_a_late_refusal_tells_the_wait_that_was_measured(autojump_clock: MockClock) -> None:
    async with open_admission(queue_timeout_s=10.0) as admission:
        holder = admission.enter(ANYONE)
        await trio.sleep(2.5)
        admission.settle(holder)
        admission.enter(ANYONE)
        queued = admission.enter(ANYONE)
        with pytest.raises(Refusal) as caught:
            await admission.wait(queued)
        assert caught.value.retry_after_s == 5, "of the one ahead, and of its own: it is in the queue still"
        assert caught.value.message == "No slot became free within 10 s. Retry after 5 s."


async def test_timeout_counts_from_the_arrival(mock_clock: MockClock) -> None:
    """The queue's timeout counts from the arrival, not from the call of wait()."""
    async with open_admission(queue_timeout_s=10.0) as admission:
        admission.enter(ANYONE)
        queued = admission.enter(ANYONE)
        mock_clock.jump(10.0)
        with pytest.raises(Refusal):
            await admission.wait(queued)


async def test_slot_granted_at_the_deadline_is_taken(mock_clock: MockClock) -> None:
    """A slot that is granted in the instant of the deadline is taken."""
    async with open_admission(queue_timeout_s=10.0) as admission:
        holder, queued = admission.enter(ANYONE), admission.enter(ANYONE)
        await wait_all_tasks_blocked()
        mock_clock.jump(10.0)
        admission.settle(holder)
        await admission.wait(queued)
        assert queued.active


async def test_a_hopeless_wait_is_refused_at_the_door(mock_clock: MockClock) -> None:
    async with open_admission(queue_timeout_s=10.0) as admission:
        holder = admission.enter(ANYONE)
        mock_clock.jump(12.0)
        admission.settle(holder)
        admission.enter(ANYONE)
        refusal = refused(admission)
        assert (refusal.outcome, refusal.status, refusal.retry_after_s) == (Outcome.SHED_QUEUE_TIMEOUT, 503, 12)
        assert refusal.message == "The expected wait of 12 s exceeds the queue timeout of 10 s. Retry after 12 s."


async def test_drain_sheds_the_queue() -> None:
    """A drain sheds requests in the queue and in the channel, and keeps active requests."""
    async with open_admission() as admission:
        holder, in_the_queue = admission.enter(ANYONE), admission.enter(ANYONE)
        await wait_all_tasks_blocked()
        on_its_way = admission.enter(ANYONE)
        in_the_channel = admission.enter(ANYONE)
        admission.drain()
        assert (holder.state, in_the_queue.state) == (TicketState.ACTIVE, TicketState.SHED)
        assert in_the_channel.state is TicketState.SHED
        await wait_all_tasks_blocked()
        assert on_its_way.state is TicketState.SHED, "the controller held it in its hand"
        for ticket in (in_the_queue, on_its_way, in_the_channel):
            with pytest.raises(Refusal) as caught:
                await admission.wait(ticket)
            assert (caught.value.outcome, caught.value.status) == (Outcome.SHED_DRAINING, 503)
            assert caught.value.message == "The gateway is restarting. Retry in a second."
            assert caught.value.retry_after_s == 1
            admission.settle(ticket)
        assert (admission.active, admission.queued) == (1, 0)
        assert refused(admission).outcome is Outcome.SHED_DRAINING
        admission.settle(holder)
        assert repr(admission) == "<Admission 0/1 active, 0 queued, draining>"


async def test_drain_passes_over_withdrawn_requests() -> None:
    """A drain does not shed a request that was withdrawn on its way into the queue."""
    async with open_admission() as admission:
        admission.enter(ANYONE)
        admission.enter(ANYONE)  # to the controller's hand
        leaver = admission.enter(ANYONE)
        admission.settle(leaver)
        admission.drain()
        await wait_all_tasks_blocked()
        assert leaver.state is TicketState.SETTLED
        assert admission.queued == 0


@pytest.mark.parametrize("state", [TicketState.ACTIVE, TicketState.QUEUED, TicketState.SHED])
async def test_a_ticket_settles_once(state: TicketState) -> None:
    async with open_admission() as admission:
        holder, queued = admission.enter(ANYONE), admission.enter(ANYONE)
        if state is TicketState.SHED:
            await wait_all_tasks_blocked()
            admission.drain()
        ticket = holder if state is TicketState.ACTIVE else queued
        assert ticket.state is state
        admission.settle(ticket)
        before = (admission.active, admission.queued)
        with pytest.raises(RuntimeError, match="settled twice"):
            admission.settle(ticket)
        assert (admission.active, admission.queued) == before


async def test_cancelled_at_the_instant_of_the_grant() -> None:
    """A request that is cancelled as it gets a slot releases the slot to the next one."""
    async with open_admission() as admission:
        holder, queued, next_one = admission.enter(ANYONE), admission.enter(ANYONE), admission.enter(ANYONE)
        await wait_all_tasks_blocked()

        async def wait() -> None:
            try:
                await admission.wait(queued)
            finally:
                admission.settle(queued)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            admission.settle(holder)
            assert queued.active
            nursery.cancel_scope.cancel()
        assert next_one.active
        assert (admission.active, admission.queued) == (1, 0)


async def test_more_slots_go_to_queued_requests_at_once() -> None:
    async with open_admission() as admission:
        admission.enter(ANYONE)
        queueds = [admission.enter(ANYONE) for _ in range(3)]
        await wait_all_tasks_blocked()
        reconfigure(admission, max_active=3)
        assert [ticket.state for ticket in queueds] == [TicketState.ACTIVE, TicketState.ACTIVE, TicketState.QUEUED]
        assert (admission.active, admission.queued) == (3, 1)
        await admission.wait(queueds[0])


async def test_fewer_slots_cut_nobody_off() -> None:
    """A lower limit cuts no request off, and grants no slot until enough of them end."""
    async with open_admission(max_active=3) as admission:
        holders = [admission.enter(ANYONE) for _ in range(3)]
        queued = admission.enter(ANYONE)
        await wait_all_tasks_blocked()
        reconfigure(admission, max_active=1)
        for holder in holders[:2]:
            admission.settle(holder)
            assert queued.queued
        assert admission.active == 1
        admission.settle(holders[2])
        assert queued.active


async def test_shorter_queue_keeps_queued_requests() -> None:
    """A shorter queue keeps the requests in it, in their order."""
    async with open_admission(queue_max=3) as admission:
        holder = admission.enter(ANYONE)
        queueds = [admission.enter(ANYONE) for _ in range(3)]  # one in the controller's hand, two on their way in
        reconfigure(admission, queue_max=1)
        assert refused(admission).outcome is Outcome.SHED_QUEUE_FULL
        await wait_all_tasks_blocked()
        for queued in queueds:
            admission.settle(holder)
            assert queued.active
            holder = queued
        assert admission.enter(ANYONE).queued, "one place is left"


async def test_longer_queue_has_its_places_at_once() -> None:
    """A longer queue offers its places at once and keeps the order."""
    async with open_admission(queue_max=1) as admission:
        holder, first = admission.enter(ANYONE), admission.enter(ANYONE)
        reconfigure(admission, queue_max=4)
        later = [admission.enter(ANYONE) for _ in range(3)]
        assert refused(admission).outcome is Outcome.SHED_QUEUE_FULL
        await wait_all_tasks_blocked()
        for queued in (first, *later):
            admission.settle(holder)
            assert queued.active
            holder = queued


async def test_another_mode_holds_for_new_requests() -> None:
    async with open_admission() as admission:
        holder, queued = admission.enter(ANYONE), admission.enter(ANYONE)
        await wait_all_tasks_blocked()
        reconfigure(admission, queue_mode=QueueMode.REJECT)
        assert refused(admission).outcome is Outcome.SHED_BUSY
        admission.settle(holder)
        assert queued.active


async def test_drain_after_a_new_limit() -> None:
    """A drain after a reload sheds what is in the channel."""
    async with open_admission(queue_max=3) as admission:
        admission.enter(ANYONE)
        queueds = [admission.enter(ANYONE) for _ in range(3)]
        reconfigure(admission, queue_max=2)
        admission.drain()
        await wait_all_tasks_blocked()
        assert {ticket.state for ticket in queueds} == {TicketState.SHED}
        assert admission.queued == 0


async def test_the_controller_proves_that_it_goes_round() -> None:
    async with open_admission(queue_max=1) as admission:
        holder, queued = admission.enter(ANYONE), admission.enter(ANYONE)
        with trio.fail_after(5):
            await admission.prove()
        assert admission.queued == 1
        admission.settle(holder)
        assert queued.active
        with trio.fail_after(5):
            await admission.prove()


async def test_many_proofs_outlast_new_limits_and_a_drain() -> None:
    async with open_admission(queue_max=1) as admission, trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(admission.prove)
        reconfigure(admission, queue_max=2)
        await trio.lowlevel.checkpoint()
        reconfigure(admission, queue_max=3)
        admission.drain()


async def test_without_its_controller_there_is_no_proof(autojump_clock: MockClock) -> None:
    admission = Admission(AdmissionConfig(), Engines([make_engine()]))
    with trio.move_on_after(3600) as deadline:
        await admission.prove()
    assert deadline.cancelled_caught


async def test_a_controller_that_starts_late_proves_itself(autojump_clock: MockClock) -> None:
    admission = Admission(AdmissionConfig(), Engines([make_engine()]))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(admission.prove)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as running:
            running.start_soon(admission.run)
            await wait_all_tasks_blocked()
            assert not [task for task in nursery.child_tasks if "prove" in task.name]
            running.cancel_scope.cancel()


async def test_stuck_controller_gives_no_proof(autojump_clock: MockClock) -> None:
    """A controller that does not take in arrivals does not answer prove()."""
    admission = Admission(AdmissionConfig(max_active=1), Engines([make_engine()]))
    admission.enter(ANYONE)
    admission.enter(ANYONE)
    with trio.move_on_after(3600) as deadline:
        await admission.prove()
    assert deadline.cancelled_caught


async def test_two_engines_are_filled_evenly() -> None:
    """Slots of two engines are taken in turn, and each is released at its own engine."""
    first, second = make_engine("a", "m", slots=2), make_engine("b", "m", slots=2)
    admission = Admission(AdmissionConfig(), Engines([first, second]))
    tickets = [admission.enter(Claim(model="m")) for _ in range(4)]
    assert [ticket.engine for ticket in tickets] == [first, second, first, second]
    assert admission.enter(Claim(model="m")).queued
    admission.settle(tickets[1])
    assert (first.slots.borrowed_tokens, second.slots.borrowed_tokens) == (2, 1)


async def test_request_for_a_free_engine_passes_the_queue() -> None:
    """A request for a free engine passes those that are queued for a full one."""
    first, second = make_engine("a", "m", slots=1), make_engine("b", "n", slots=1)
    admission = Admission(AdmissionConfig(), Engines([first, second]))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(admission.run)
        holder, queued = admission.enter(Claim(model="m")), admission.enter(Claim(model="m"))
        await wait_all_tasks_blocked()
        passing = admission.enter(Claim(model="n"))
        assert (passing.engine, queued.queued) == (second, True)
        admission.settle(passing)
        assert queued.queued, "its engine is still full"
        admission.settle(holder)
        assert queued.engine is first
        nursery.cancel_scope.cancel()


async def test_move_takes_a_free_slot_elsewhere() -> None:
    """move() takes a free slot of another engine and releases its own to the queue."""
    first, second = make_engine("a", "m", slots=1), make_engine("b", "m", slots=1)
    admission = Admission(AdmissionConfig(), Engines([first, second]))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(admission.run)
        moving, other = admission.enter(ANYONE), admission.enter(ANYONE)
        assert admission.move(moving, {first}) is None, "no other slot is free"
        assert moving.engine is first
        queued = admission.enter(ANYONE)
        await wait_all_tasks_blocked()
        second.slots.total_tokens = 2
        assert admission.move(moving, {first}) is second
        assert (moving.engine, queued.engine) == (second, first)
        assert admission.move(moving, {first, second}) is None
        for ticket in (moving, other, queued):
            admission.settle(ticket)
        assert admission.active == 0
        nursery.cancel_scope.cancel()


async def test_move_goes_only_where_the_model_is_served() -> None:
    full, free = make_engine("a", "m", slots=1), make_engine("b", "n", slots=1)
    admission = Admission(AdmissionConfig(), Engines([full, free]))
    ticket = admission.enter(Claim(model="m"))
    assert admission.move(ticket, {full}) is None
    assert (ticket.engine, free.slots.borrowed_tokens) == (full, 0)
    admission.settle(ticket)


def test_a_ticket_shows_its_state() -> None:
    assert repr(Ticket(ANYONE, 1.5, 0)) == "<Ticket queued arrived=1.500 granted=None>"
