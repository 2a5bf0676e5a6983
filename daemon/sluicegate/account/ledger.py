"""The ledger: the open records, and the sinks that get each settled one."""

from collections.abc import Callable, Collection, Sequence

import trio

from ..outcome import Outcome
from .record import Record

#: A reader of what happened: called once with each settled record, synchronously. Must not raise, wait or change it.
Sink = Callable[[Record], None]


class AlreadySettledError(RuntimeError):
    """A second outcome for a request that has one: a mistake in the pipeline, never the client's or the engine's."""


class Ledger:
    """Opens a record for each request and settles it once. Used from the trio thread alone.

    Always: settled + len(open_records) == opened, and each sink has been called once for each settled record.
    """

    def __init__(self, sinks: Sequence[Sink], clock: Callable[[], float]) -> None:
        """`clock`: seconds, monotonic; trio.current_time in the daemon."""
        self._sinks = tuple(sinks)
        self._clock = clock
        self._open: dict[Record, None] = {}
        self._none_open: trio.Event | None = None
        self.settled = 0

    def __repr__(self) -> str:
        return f"<Ledger opened={self.opened} settled={self.settled}>"

    @property
    def opened(self) -> int:
        return self.settled + len(self._open)

    @property
    def open_records(self) -> Collection[Record]:
        """The records of requests that have no outcome yet, in order of arrival. A live view."""
        return self._open.keys()

    @property
    def open_count(self) -> int:
        return len(self._open)

    def open(self, request_id: str, endpoint: str, *, stream: bool = False, received_at: float | None = None) -> Record:
        """A record for a request whose head has just been read (or at `received_at`, on the ledger's clock)."""
        record = Record(request_id, endpoint, self._clock() if received_at is None else received_at, stream)
        self._open[record] = None
        return record

    def settle(self, record: Record, outcome: Outcome) -> None:
        """Give `record` its outcome, and the record to each sink.

        AlreadySettledError on a second call, of which no sink is told.
        """
        if record.outcome is not None:
            raise AlreadySettledError(f"{record.request_id} is {record.outcome} already, and cannot be {outcome}")
        record.outcome = outcome
        if record.ended_at is None:
            record.ended_at = self._clock()
        del self._open[record]
        self.settled += 1
        for sink in self._sinks:
            sink(record)
        if self._none_open is not None and not self._open:
            self._none_open.set()

    async def none_open(self) -> None:
        """Return once no request is open. Any number of tasks may wait for it."""
        while self._open:
            if self._none_open is None or self._none_open.is_set():
                self._none_open = trio.Event()
            await self._none_open.wait()
