"""The controller: the only one that moves tickets, takes slots and frees them.

`trio.CapacityLimiter` is the one authority over slots, borrowed on behalf of tickets. Whoever finds a slot free and
nobody waiting takes it at the door, without a task switch. Whoever must wait goes through a bounded memory channel to
the controller task, which lines tickets up. A freed slot is handed on in the very step that freed it (not by waking the
task), so that an idle slot with someone in the line never exists, not even for one turn of the scheduler.

All methods but `run` and `wait` are synchronous, hence atomic on trio's single thread: no lock is needed or held.
"""

import collections
import contextlib

import trio

from ..config.schema import AdmissionConfig
from ..outcome import Outcome, Refusal
from .estimate import Verdict, View, decide, mean_slot_time_s, retry_after_s
from .queue import Line
from .ticket import Ticket, TicketState


class Admission:
    """Slots and the line before them. `run` must be running for those who wait to be lined up."""

    def __init__(self, config: AdmissionConfig) -> None:
        self.config = config
        self.limiter = trio.CapacityLimiter(config.max_active)
        self.draining = False
        self._line = Line()
        self._waiting = 0
        self._slot_time_s: float | None = None
        self._arrivals = collections.deque[trio.MemoryReceiveChannel[Ticket | trio.Event]]()
        self._open_way_in()

    # -- the request's side -------------------------------------------------------------------------------------

    def enter(self) -> Ticket:
        """Come to the door. Returns a ticket, active or waiting, that the caller must `settle`; or raises Refusal."""
        view = self.view()
        verdict = decide(view)
        ticket = Ticket(trio.current_time(), view.waiting)
        if verdict is Verdict.GO:
            self._grant(ticket)
        elif verdict is Verdict.WAIT:
            ticket.called = trio.Event()
            try:
                self._way_in.send_nowait(ticket)
            except trio.WouldBlock:  # full of those who left again before the controller's turn came
                raise _refusal(Verdict.QUEUE_FULL, view) from None
            self._waiting += 1
        else:
            raise _refusal(verdict, view)
        return ticket

    async def wait(self, ticket: Ticket) -> None:
        """Wait until `ticket` holds a slot. Refusal if that takes longer than queue_timeout_s, or on a drain."""
        assert ticket.called is not None
        with trio.move_on_at(ticket.arrived_at + self.config.queue_timeout_s):
            await ticket.called.wait()
        if ticket.active:  # also if its slot came in the same instant as its deadline
            return
        raise _refusal(Verdict.DRAINING if ticket.state is TicketState.SHED else None, self.view())

    def settle(self, ticket: Ticket) -> None:
        """Give back what `ticket` holds, a slot or a place in the line. Exactly once; RuntimeError after that."""
        state, ticket.state = ticket.state, TicketState.SETTLED
        if state is TicketState.ACTIVE:
            assert ticket.granted_at is not None
            self._slot_time_s = mean_slot_time_s(self._slot_time_s, trio.current_time() - ticket.granted_at)
            self.limiter.release_on_behalf_of(ticket)
            self._hand_on()
        elif state is TicketState.WAITING:
            self._waiting -= 1
            self._line.discard(ticket)
        elif state is TicketState.SETTLED:
            raise RuntimeError(f"settled twice: {ticket!r}")

    # -- the controller's side ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """The controller task: lines up those who arrive. Runs until cancelled."""
        while True:
            async for arrival in self._arrivals[0]:
                self._line_up(arrival)
                if self.draining:
                    self._shed_line()
                else:
                    self._hand_on()
            self._arrivals.popleft()

    async def prove(self) -> None:
        """Return once the controller has taken in what is sent to it now: for the watchdog."""
        done = trio.Event()
        async with self._way_in.clone() as way_in:  # its own end: the other may be closed meanwhile
            await way_in.send(done)
        await done.wait()

    def reconfigure(self, config: AdmissionConfig) -> None:
        """From now on these numbers hold. Nobody who has a slot or a place loses it, also where there are fewer now.

        Slots that there are more go to those who wait, at once. Who waits already does so as long as it was to.
        """
        queue_max, self.config = self.config.queue_max, config
        self.limiter.total_tokens = config.max_active
        if config.queue_max != queue_max:
            self._way_in.close()  # the controller takes in what is on its way there, then goes on to the next
            self._open_way_in()
        self._hand_on()

    def drain(self) -> None:
        """Let nobody in any more, and turn away all that wait; those with a slot go on."""
        self.draining = True
        self._shed_line()

    def view(self) -> View:
        config = self.config
        return View(
            active=self.active,
            max_active=config.max_active,
            waiting=self._waiting,
            queue_max=config.queue_max,
            queue_timeout_s=config.queue_timeout_s,
            mode=config.queue_mode,
            draining=self.draining,
            slot_time_s=self._slot_time_s,
        )

    @property
    def active(self) -> int:
        """Slots held now."""
        return int(self.limiter.borrowed_tokens)

    @property
    def waiting(self) -> int:
        """Requests that wait now, in the channel or in the line."""
        return self._waiting

    def _open_way_in(self) -> None:
        # A channel of size 0 would refuse whenever the controller is not at its receive just now;
        # with QUEUE_MAX=0 nobody is told to wait, so its one place stays empty.
        self._way_in, arrivals = trio.open_memory_channel[Ticket | trio.Event](max(1, self.config.queue_max))
        self._arrivals.append(arrivals)

    def _line_up(self, arrival: Ticket | trio.Event) -> None:
        if isinstance(arrival, trio.Event):
            arrival.set()
        elif arrival.waiting:  # it may have left, or been shed, on its way in
            self._line.push(arrival)

    def _hand_on(self) -> None:
        while len(self._line) and self.limiter.available_tokens > 0:
            ticket = self._line.pop()
            self._waiting -= 1
            self._grant(ticket)
            self._call(ticket)

    def _grant(self, ticket: Ticket) -> None:
        self.limiter.acquire_on_behalf_of_nowait(ticket)
        ticket.state = TicketState.ACTIVE
        ticket.granted_at = trio.current_time()

    def _shed_line(self) -> None:
        for arrivals in self._arrivals:  # what is still in a channel was not lined up yet, but waits all the same
            with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
                while True:
                    self._line_up(arrivals.receive_nowait())
        while len(self._line):
            ticket = self._line.pop()
            self._waiting -= 1
            ticket.state = TicketState.SHED
            self._call(ticket)

    @staticmethod
    def _call(ticket: Ticket) -> None:
        assert ticket.called is not None
        ticket.called.set()

    def __repr__(self) -> str:
        draining = ", draining" if self.draining else ""
        return f"<Admission {self.active}/{self.config.max_active} active, {self.waiting} waiting{draining}>"


def _refusal(verdict: Verdict | None, view: View) -> Refusal:
    """The answer to one who is turned away; `verdict` None: waited in vain."""
    seconds = retry_after_s(view)
    again = f"Retry after {seconds} s."
    match verdict:
        case Verdict.BUSY:
            message = f"All {view.max_active} slots are busy. {again}"
            return Refusal(Outcome.SHED_BUSY, 429, message, retry_after_s=seconds)
        case Verdict.QUEUE_FULL:
            message = f"All {view.max_active} slots are busy and {view.waiting} requests already wait. {again}"
            return Refusal(Outcome.SHED_QUEUE_FULL, 429, message, retry_after_s=seconds)
        case Verdict.DRAINING:
            message = "The gateway is shutting down. Retry: the next one takes over."
            return Refusal(Outcome.SHED_DRAINING, 503, message, retry_after_s=1)
        case Verdict.HOPELESS:
            message = (
                f"The expected wait of {seconds} s exceeds the queue timeout of {view.queue_timeout_s:g} s. {again}"
            )
            return Refusal(Outcome.SHED_QUEUE_TIMEOUT, 503, message, retry_after_s=seconds)
        case _:
            message = f"No slot became free within {view.queue_timeout_s:g} s. {again}"
            return Refusal(Outcome.SHED_QUEUE_TIMEOUT, 503, message, retry_after_s=seconds)
