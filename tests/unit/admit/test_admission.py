"""The Admission: slots and waiting places, taken and given back in every order that matters. On virtual time."""

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sluicegate.admit.admission import Admission
from sluicegate.admit.ticket import Ticket, TicketState
from sluicegate.config.schema import AdmissionConfig, QueueMode
from sluicegate.outcome import Outcome, Refusal


@asynccontextmanager
async def open_admission(**settings: Any) -> AsyncIterator[Admission]:
    """An Admission (one slot, unless told) whose controller is at its receive."""
    admission = Admission(AdmissionConfig(**({"max_active": 1, "queue_max": 3, "queue_timeout_s": 10.0} | settings)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(admission.run)
        await wait_all_tasks_blocked()
        yield admission
        nursery.cancel_scope.cancel()


def refused(admission: Admission) -> Refusal:
    with pytest.raises(Refusal) as caught:
        admission.enter()
    return caught.value


async def test_a_free_slot_is_taken_at_the_door_without_a_task_switch() -> None:
    async with open_admission(max_active=2) as admission:
        first, second = admission.enter(), admission.enter()
        assert first.active
        assert second.active
        assert (admission.active, admission.waiting) == (2, 0)
        assert repr(admission) == "<Admission 2/2 active, 0 waiting>"


async def test_a_freed_slot_is_handed_on_in_the_step_that_frees_it() -> None:
    async with open_admission() as admission:
        holder, waiter = admission.enter(), admission.enter()
        assert waiter.waiting
        await wait_all_tasks_blocked()  # the controller lines it up
        admission.settle(holder)
        assert waiter.active
        assert (admission.active, admission.waiting) == (1, 0)
        await admission.wait(waiter)
        admission.settle(waiter)
        assert admission.active == 0


async def test_a_slot_freed_while_the_next_one_is_on_its_way_in_is_taken_by_it() -> None:
    async with open_admission() as admission:
        holder, waiter = admission.enter(), admission.enter()
        admission.settle(holder)
        assert admission.waiting == 1, "the controller has had no turn yet"
        later = admission.enter()
        assert later.waiting, "nobody overtakes"
        await wait_all_tasks_blocked()
        assert (waiter.state, later.state) == (TicketState.ACTIVE, TicketState.WAITING)
        admission.settle(waiter)
        assert later.active


async def test_slots_go_in_the_order_of_arrival_and_leavers_are_passed_over() -> None:
    async with open_admission(queue_max=4) as admission:
        holder, *waiters = [admission.enter() for _ in range(5)]
        assert [ticket.position for ticket in waiters] == [0, 1, 2, 3]
        await wait_all_tasks_blocked()
        admission.settle(waiters[1])
        assert admission.waiting == 3
        order = []
        while admission.active:
            admission.settle(holder)
            granted = [ticket for ticket in waiters if ticket.active]
            if granted:
                (holder,) = granted
                order.append(waiters.index(holder))
        assert order == [0, 2, 3]


async def test_one_who_leaves_before_the_controllers_turn_leaves_no_trace() -> None:
    async with open_admission() as admission:
        holder = admission.enter()
        leaver = admission.enter()
        admission.settle(leaver)
        assert admission.waiting == 0
        await wait_all_tasks_blocked()
        admission.settle(holder)
        await wait_all_tasks_blocked()
        assert (admission.active, admission.waiting) == (0, 0)
        assert admission.enter().active


async def test_the_line_is_bounded_wherever_they_wait() -> None:
    async with open_admission(queue_max=2) as admission:
        admission.enter()
        waiters = [admission.enter()]
        await wait_all_tasks_blocked()
        waiters.append(admission.enter())  # one in the line, one on its way in
        refusal = refused(admission)
        assert (refusal.outcome, refusal.status, refusal.retry_after_s) == (Outcome.SHED_QUEUE_FULL, 429, 1)
        assert "2 requests already wait" in refusal.message
        admission.settle(waiters[0])
        assert admission.enter().waiting


async def test_a_way_in_full_of_leavers_refuses_until_the_controller_has_cleared_it() -> None:
    async with open_admission(queue_max=1) as admission:
        admission.enter()
        admission.settle(admission.enter())  # taken by the controller, which waits at its receive
        admission.settle(admission.enter())  # fills the channel
        assert admission.waiting == 0
        assert refused(admission).outcome is Outcome.SHED_QUEUE_FULL
        assert admission.waiting == 0
        await wait_all_tasks_blocked()
        assert admission.enter().waiting


async def test_without_waiting_places_nobody_waits() -> None:
    async with open_admission(queue_max=0) as admission:
        holder = admission.enter()
        assert refused(admission).outcome is Outcome.SHED_QUEUE_FULL
        admission.settle(holder)
        assert admission.enter().active


async def test_reject_mode_refuses_at_once(mock_clock: MockClock) -> None:
    async with open_admission(queue_mode=QueueMode.REJECT) as admission:
        holder = admission.enter()
        mock_clock.jump(7.5)
        admission.settle(holder)
        admission.enter()
        refusal = refused(admission)
        assert (refusal.outcome, refusal.status, refusal.retry_after_s) == (Outcome.SHED_BUSY, 429, 8)
        assert "All 1 slots are busy. Retry after 8 s." in refusal.message


async def test_who_waits_longer_than_the_queue_timeout_is_refused_then(autojump_clock: MockClock) -> None:
    async with open_admission(queue_timeout_s=10.0) as admission:
        admission.enter()
        waiter = admission.enter()
        began = trio.current_time()
        with pytest.raises(Refusal) as caught:
            await admission.wait(waiter)
        assert trio.current_time() - began == pytest.approx(10.0)
        assert (caught.value.outcome, caught.value.status) == (Outcome.SHED_QUEUE_TIMEOUT, 503)
        admission.settle(waiter)
        assert admission.waiting == 0


async def test_the_timeout_counts_from_the_arrival_not_from_the_wait(mock_clock: MockClock) -> None:
    async with open_admission(queue_timeout_s=10.0) as admission:
        admission.enter()
        waiter = admission.enter()
        mock_clock.jump(10.0)
        with pytest.raises(Refusal):
            await admission.wait(waiter)


async def test_a_slot_that_comes_in_the_instant_of_the_deadline_is_taken(mock_clock: MockClock) -> None:
    async with open_admission(queue_timeout_s=10.0) as admission:
        holder, waiter = admission.enter(), admission.enter()
        await wait_all_tasks_blocked()
        mock_clock.jump(10.0)
        admission.settle(holder)
        await admission.wait(waiter)
        assert waiter.active


async def test_a_hopeless_wait_is_refused_at_the_door(mock_clock: MockClock) -> None:
    async with open_admission(queue_timeout_s=10.0) as admission:
        holder = admission.enter()
        mock_clock.jump(12.0)
        admission.settle(holder)
        admission.enter()
        refusal = refused(admission)
        assert (refusal.outcome, refusal.status, refusal.retry_after_s) == (Outcome.SHED_QUEUE_TIMEOUT, 503, 12)
        assert "expected wait of 12 s exceeds the queue timeout of 10 s" in refusal.message


async def test_a_drain_turns_away_all_who_wait_and_keeps_who_has_a_slot() -> None:
    async with open_admission() as admission:
        holder, lined_up = admission.enter(), admission.enter()
        await wait_all_tasks_blocked()
        on_its_way = admission.enter()
        in_the_channel = admission.enter()
        admission.drain()
        assert (holder.state, lined_up.state) == (TicketState.ACTIVE, TicketState.SHED)
        assert in_the_channel.state is TicketState.SHED
        await wait_all_tasks_blocked()
        assert on_its_way.state is TicketState.SHED, "the controller held it in its hand"
        for ticket in (lined_up, on_its_way, in_the_channel):
            with pytest.raises(Refusal) as caught:
                await admission.wait(ticket)
            assert (caught.value.outcome, caught.value.status) == (Outcome.SHED_DRAINING, 503)
            admission.settle(ticket)
        assert (admission.active, admission.waiting) == (1, 0)
        assert refused(admission).outcome is Outcome.SHED_DRAINING
        admission.settle(holder)
        assert repr(admission) == "<Admission 0/1 active, 0 waiting, draining>"


async def test_a_drain_passes_over_those_who_left_on_their_way_in() -> None:
    async with open_admission() as admission:
        admission.enter()
        admission.enter()  # to the controller's hand
        leaver = admission.enter()
        admission.settle(leaver)
        admission.drain()
        await wait_all_tasks_blocked()
        assert leaver.state is TicketState.SETTLED
        assert admission.waiting == 0


@pytest.mark.parametrize("state", [TicketState.ACTIVE, TicketState.WAITING, TicketState.SHED])
async def test_a_ticket_settles_once(state: TicketState) -> None:
    async with open_admission() as admission:
        holder, waiter = admission.enter(), admission.enter()
        if state is TicketState.SHED:
            await wait_all_tasks_blocked()
            admission.drain()
        ticket = holder if state is TicketState.ACTIVE else waiter
        assert ticket.state is state
        admission.settle(ticket)
        before = (admission.active, admission.waiting)
        with pytest.raises(RuntimeError, match="settled twice"):
            admission.settle(ticket)
        assert (admission.active, admission.waiting) == before


async def test_cancelled_in_the_instant_of_its_grant_it_gives_the_slot_on() -> None:
    async with open_admission() as admission:
        holder, waiter, next_one = admission.enter(), admission.enter(), admission.enter()
        await wait_all_tasks_blocked()

        async def wait() -> None:
            try:
                await admission.wait(waiter)
            finally:
                admission.settle(waiter)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            admission.settle(holder)
            assert waiter.active
            nursery.cancel_scope.cancel()
        assert next_one.active
        assert (admission.active, admission.waiting) == (1, 0)


async def test_more_slots_go_to_those_who_wait_at_once() -> None:
    async with open_admission() as admission:
        admission.enter()
        waiters = [admission.enter() for _ in range(3)]
        await wait_all_tasks_blocked()
        admission.reconfigure(dataclasses.replace(admission.config, max_active=3))
        assert [ticket.state for ticket in waiters] == [TicketState.ACTIVE, TicketState.ACTIVE, TicketState.WAITING]
        assert (admission.active, admission.waiting) == (3, 1)
        await admission.wait(waiters[0])


async def test_fewer_slots_cut_nobody_off_and_let_nobody_in_until_enough_have_gone() -> None:
    async with open_admission(max_active=3) as admission:
        holders = [admission.enter() for _ in range(3)]
        waiter = admission.enter()
        await wait_all_tasks_blocked()
        admission.reconfigure(dataclasses.replace(admission.config, max_active=1))
        for holder in holders[:2]:
            admission.settle(holder)
            assert waiter.waiting
        assert admission.active == 1
        admission.settle(holders[2])
        assert waiter.active


async def test_a_shorter_line_keeps_those_who_stand_in_it_in_their_order() -> None:
    async with open_admission(queue_max=3) as admission:
        holder = admission.enter()
        waiters = [admission.enter() for _ in range(3)]  # one in the controller's hand, two on their way in
        admission.reconfigure(dataclasses.replace(admission.config, queue_max=1))
        assert refused(admission).outcome is Outcome.SHED_QUEUE_FULL
        await wait_all_tasks_blocked()
        for waiter in waiters:
            admission.settle(holder)
            assert waiter.active
            holder = waiter
        assert admission.enter().waiting, "one place is left"


async def test_a_longer_line_has_its_places_at_once_and_in_order() -> None:
    async with open_admission(queue_max=1) as admission:
        holder, first = admission.enter(), admission.enter()
        admission.reconfigure(dataclasses.replace(admission.config, queue_max=4))
        later = [admission.enter() for _ in range(3)]
        assert refused(admission).outcome is Outcome.SHED_QUEUE_FULL
        await wait_all_tasks_blocked()
        for waiter in (first, *later):
            admission.settle(holder)
            assert waiter.active
            holder = waiter


async def test_another_mode_holds_for_those_who_come_now() -> None:
    async with open_admission() as admission:
        holder, waiter = admission.enter(), admission.enter()
        await wait_all_tasks_blocked()
        admission.reconfigure(dataclasses.replace(admission.config, queue_mode=QueueMode.REJECT))
        assert refused(admission).outcome is Outcome.SHED_BUSY
        admission.settle(holder)
        assert waiter.active


async def test_a_drain_after_a_new_bound_turns_away_those_on_their_old_way_in() -> None:
    async with open_admission(queue_max=3) as admission:
        admission.enter()
        waiters = [admission.enter() for _ in range(3)]
        admission.reconfigure(dataclasses.replace(admission.config, queue_max=2))
        admission.drain()
        await wait_all_tasks_blocked()
        assert {ticket.state for ticket in waiters} == {TicketState.SHED}
        assert admission.waiting == 0


async def test_the_controller_proves_that_it_goes_round() -> None:
    async with open_admission(queue_max=1) as admission:
        holder, waiter = admission.enter(), admission.enter()
        with trio.fail_after(5):
            await admission.prove()
        assert admission.waiting == 1
        admission.settle(holder)
        assert waiter.active
        with trio.fail_after(5):
            await admission.prove()


async def test_a_proof_outlasts_a_new_way_in_and_a_drain() -> None:
    async with open_admission(queue_max=1) as admission, trio.open_nursery() as nursery:
        for _ in range(4):  # more than the way in holds
            nursery.start_soon(admission.prove)
        admission.reconfigure(dataclasses.replace(admission.config, queue_max=2))
        await trio.lowlevel.checkpoint()
        admission.reconfigure(dataclasses.replace(admission.config, queue_max=3))
        admission.drain()


async def test_without_its_controller_there_is_no_proof(autojump_clock: MockClock) -> None:
    admission = Admission(AdmissionConfig())
    with trio.move_on_after(3600) as patience:
        await admission.prove()
    assert patience.cancelled_caught


def test_a_ticket_tells_its_state() -> None:
    assert repr(Ticket(1.5, 0)) == "<Ticket waiting arrived=1.500 granted=None>"
