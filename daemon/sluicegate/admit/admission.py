"""Admission: the only one that moves tickets, takes slots and frees them.

Each engine's `trio.CapacityLimiter` is the one authority over its slots, borrowed on behalf of tickets. An arrival that
an engine has a slot for takes it at once, without a task switch. One that must queue goes through a bounded memory
channel to the controller task, which puts it in the queue. After each change (an arrival, a departure, a freed slot, a
new limit) `assign` says who gets which slot, and that is done in the same step: an idle slot with an eligible request
in the queue never exists, not even for one turn of the scheduler.

All methods but `run`, `wait` and `prove` are synchronous, hence atomic on trio's single thread: no lock is needed.
"""

import contextlib
from collections.abc import Collection

import trio

from ..config.schema import AdmissionConfig
from ..engines.choose import choose, eligible
from ..engines.engine import Engine, Engines
from ..outcome import Outcome, Refusal
from .assign import assign, free_slots
from .claim import ANYONE, Claim, Ticket, TicketState
from .estimate import Verdict, View, decide, mean_slot_time_s, retry_after_s
from .queue import Queue

#: Places in the channel. It bounds what the controller may have before it at one time; `queue_max`, which a reload may
#: change and which is at most this, bounds channel and queue together.
CHANNEL_PLACES = 65536


class Admission:
    """The engines' slots and the queue before them. `run` must be running for arrivals to be queued."""

    def __init__(self, config: AdmissionConfig, engines: Engines) -> None:
        self.config = config
        self.draining = False
        self.engines = engines
        self._queue = Queue()
        self._queued = 0
        self._slot_time_s: float | None = None
        self._way_in, self._arrivals = trio.open_memory_channel[Ticket](CHANNEL_PLACES)
        self._rounds = trio.lowlevel.ParkingLot()

    # -- the request's side -------------------------------------------------------------------------------------

    def enter(self, claim: Claim) -> Ticket:
        """Ask for a slot. Returns a ticket, active or queued, that the caller must `settle`; or raises Refusal."""
        ticket = Ticket(claim, trio.current_time(), self._ahead(claim))
        if not self.draining and self._take_slot(ticket):
            return ticket
        view = self.view(claim)
        verdict = decide(view)
        if verdict is not Verdict.QUEUE:
            raise _refusal(verdict, view)
        ticket.decided = trio.Event()
        try:
            self._way_in.send_nowait(ticket)
        except trio.WouldBlock:  # full of requests that were withdrawn before the controller's turn
            raise _refusal(Verdict.QUEUE_FULL, view) from None
        self._queued += 1
        return ticket

    def check(self) -> None:
        """Refusal of a request that would get neither a slot nor a place in the queue, for whichever model it is.

        For a request of which only the head is known. One that passes is decided on by `enter`, and may fare worse.
        """
        if self.draining or not free_slots(self.engines.all):
            view = self.view()
            verdict = decide(view)
            if verdict not in (Verdict.QUEUE, Verdict.HOPELESS):
                raise _refusal(verdict, view)

    async def wait(self, ticket: Ticket) -> None:
        """Wait until `ticket` holds a slot. Refusal if that takes longer than queue_timeout_s, or on a drain."""
        assert ticket.decided is not None
        with trio.move_on_at(min(ticket.claim.deadline, ticket.arrived_at + self.config.queue_timeout_s)):
            await ticket.decided.wait()
        if ticket.active:  # also if its slot came in the same instant as its deadline
            return
        raise _refusal(Verdict.DRAINING if ticket.state is TicketState.SHED else None, self.view(ticket.claim))

    def move(self, ticket: Ticket, tried: Collection[Engine]) -> Engine | None:
        """Exchange the slot of `ticket` for a free one at an engine that is up and not among `tried`.

        Returns that engine; None, and the ticket keeps its slot, if there is none.
        """
        assert ticket.engine is not None
        free = free_slots(engine for engine in self.engines.all if engine.up and engine not in tried)
        other = choose(free, eligible(ticket.claim.model, self.engines.all))
        if other is not None:
            ticket.engine.slots.release_on_behalf_of(ticket)
            other.slots.acquire_on_behalf_of_nowait(ticket)
            ticket.engine = other
            self._assign()
        return other

    def settle(self, ticket: Ticket) -> None:
        """Release what `ticket` holds, a slot or a place in the queue. Exactly once; RuntimeError after that."""
        state, ticket.state = ticket.state, TicketState.SETTLED
        if state is TicketState.ACTIVE:
            assert ticket.granted_at is not None
            assert ticket.engine is not None
            self._slot_time_s = mean_slot_time_s(self._slot_time_s, trio.current_time() - ticket.granted_at)
            ticket.engine.slots.release_on_behalf_of(ticket)
            self._assign()
        elif state is TicketState.QUEUED:
            self._queued -= 1
            self._queue.discard(ticket)
        elif state is TicketState.SETTLED:
            raise RuntimeError(f"settled twice: {ticket!r}")

    # -- the controller's side ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """The controller task: puts arrivals in the queue. Runs until cancelled."""
        self._rounds.unpark_all()
        async for arrival in self._arrivals:
            self._put(arrival)
            if self.draining:
                self._shed_queue()
            else:
                self._assign()
            self._rounds.unpark_all()

    async def prove(self) -> None:
        """Return once the controller waits for an arrival, or has taken one in: its proof of life for the watchdog."""
        statistics = self._arrivals.statistics()
        if statistics.current_buffer_used or not statistics.tasks_waiting_receive:
            await self._rounds.park()

    def reconfigure(self, config: AdmissionConfig) -> None:
        """Put these numbers in force, and the engines' slots as they are now.

        No request loses its slot or its place, also where there are fewer now. New slots go to queued requests at
        once; queued requests keep their timeout.
        """
        self.config = config
        self._assign()

    def drain(self) -> None:
        """Admit no more requests, and refuse all that are queued; those with a slot go on."""
        self.draining = True
        self._shed_queue()

    def view(self, claim: Claim = ANYONE) -> View:
        """What a verdict on `claim` depends on now."""
        config = self.config
        return View(
            slots=self.slots,
            queued=self._queued,
            ahead=self._ahead(claim),
            queue_max=config.queue_max,
            queue_timeout_s=config.queue_timeout_s,
            mode=config.queue_mode,
            draining=self.draining,
            slot_time_s=self._slot_time_s,
        )

    @property
    def slots(self) -> int:
        """Slots of all engines, free or not."""
        return int(sum(engine.slots.total_tokens for engine in self.engines.all))

    @property
    def active(self) -> int:
        """Slots that are held now."""
        return sum(engine.slots.borrowed_tokens for engine in self.engines.all)

    @property
    def queued(self) -> int:
        """Requests that are queued now, in the channel or in the queue."""
        return self._queued

    def _ahead(self, claim: Claim) -> int:
        on_their_way = self._queued - len(self._queue)
        return self._queue.ahead(claim) + on_their_way

    def _take_slot(self, ticket: Ticket) -> bool:
        """Grant `ticket` a slot if one is due to it now, before it is queued."""
        if len(self._queue) != self._queued:
            return False  # one is on its way to the queue and may be ahead of this one: the controller's turn decides
        if not self._queued:
            granted = assign((ticket,), self.engines.all)
        else:
            self._queue.push(ticket)
            granted = assign(self._queue, self.engines.all)
            self._queue.discard(ticket)
        for due, engine in granted:
            if due is ticket:
                self._grant(ticket, engine, ticket.arrived_at)
                return True
        return False

    def _put(self, arrival: Ticket) -> None:
        if arrival.queued:  # it may have been withdrawn or shed on its way
            self._queue.push(arrival)

    def _assign(self) -> None:
        for ticket, engine in assign(self._queue, self.engines.all) if len(self._queue) else ():
            self._queue.discard(ticket)
            self._queued -= 1
            self._grant(ticket, engine, trio.current_time())
            _tell(ticket)

    def _grant(self, ticket: Ticket, engine: Engine, now: float) -> None:
        engine.slots.acquire_on_behalf_of_nowait(ticket)
        ticket.engine = engine
        ticket.state = TicketState.ACTIVE
        ticket.granted_at = now

    def _shed_queue(self) -> None:
        with contextlib.suppress(trio.WouldBlock):
            while True:  # what is still in the channel is queued as well
                self._put(self._arrivals.receive_nowait())
        for ticket in tuple(self._queue):
            self._queue.discard(ticket)
            self._queued -= 1
            ticket.state = TicketState.SHED
            _tell(ticket)

    def __repr__(self) -> str:
        draining = ", draining" if self.draining else ""
        return f"<Admission {self.active}/{self.slots} active, {self.queued} queued{draining}>"


def _tell(ticket: Ticket) -> None:
    assert ticket.decided is not None
    ticket.decided.set()


def _refusal(verdict: Verdict | None, view: View) -> Refusal:
    """The refusal of an arrival; `verdict` None: of a request that waited for its whole timeout."""
    seconds = retry_after_s(view)
    again = f"Retry after {seconds} s."
    match verdict:
        case Verdict.BUSY:
            message = f"{_all_busy(view)}. {again}"
            return Refusal(Outcome.SHED_BUSY, 429, message, retry_after_s=seconds)
        case Verdict.QUEUE_FULL:
            requests = "1 request" if view.queued == 1 else f"{view.queued} requests"
            queue = f"the queue is full ({requests})" if view.queue_max else "there is no queue"
            message = f"{_all_busy(view)} and {queue}. {again}"
            return Refusal(Outcome.SHED_QUEUE_FULL, 429, message, retry_after_s=seconds)
        case Verdict.DRAINING:
            message = "The gateway is restarting. Retry in a second."
            return Refusal(Outcome.SHED_DRAINING, 503, message, retry_after_s=1)
        case Verdict.HOPELESS:
            message = (
                f"The expected wait of {seconds} s exceeds the queue timeout of {view.queue_timeout_s:g} s. {again}"
            )
            return Refusal(Outcome.SHED_QUEUE_TIMEOUT, 503, message, retry_after_s=seconds)
        case _:
            message = f"No slot became free within {view.queue_timeout_s:g} s. {again}"
            return Refusal(Outcome.SHED_QUEUE_TIMEOUT, 503, message, retry_after_s=seconds)


def _all_busy(view: View) -> str:
    return "The only slot is busy" if view.slots == 1 else f"All {view.slots} slots are busy"
