"""Tracing: each request's place in a trace, and a sink of the ledger that sends its span to a collector.

The event loop only appends to a bounded queue. A thread makes the spans and sends them; what finds no room, or is not
taken by the collector, is dropped and counted.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

from ..account.record import Record
from ..account.trace import join
from ..config.live import Live
from ..exchange import Request
from .foreign import describe
from .logs import Log

#: Records that wait to be sent. A collector that hangs for 10 s costs no span below 400 requests per second.
QUEUE_MAX = 4096

#: How long spans are gathered before they are sent (seconds).
INTERVAL_S = 1.0

#: Spans per message to the collector.
BATCH = 128

#: How long the last spans may take when the gateway stops, and after that the end of an attempt (seconds).
LAST_S = 1.0


class Tracing:
    """Made where a collector is configured. `begin` and `settled` run on the trio thread; neither waits nor raises."""

    def __init__(self, config: Live, clock: Callable[[], float], on_drop: Callable[[int], None], log: Log) -> None:
        """`clock` is that of the records. `on_drop` is called with the number of spans lost, from any thread."""
        from .spans import Exporter  # its libraries are an extra

        self._config = config
        self._clock = clock
        self._on_drop = on_drop
        self._log = log
        self._exporter = Exporter(config.current)
        self._queue: deque[tuple[Record, int]] = deque()
        self._stopping = threading.Event()
        self._failing = False
        self._given_up = False
        # A daemon thread: a collector that hangs does not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="tracing", daemon=True)

    def begin(self, request: Request, record: Record) -> None:
        """Give the request its place in a trace; the engine will see our span as the parent of its own."""
        record.trace, request.headers = join(request.headers, self._config.current.tracing.sample_ratio)

    def settled(self, record: Record) -> None:
        """A sink of the ledger: queue the request's span, if its trace is sampled."""
        if record.trace is None or not record.trace.sampled:
            return
        if len(self._queue) >= QUEUE_MAX:
            self._on_drop(1)
            return
        self._queue.append((record, time.time_ns() - int(self._clock() * 1e9)))

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def close(self) -> None:
        """Send what is queued, and drop what the collector does not take. Blocks, for twice LAST_S at most."""
        self._stopping.set()
        self._thread.join(LAST_S)
        self._exporter.close()
        self._thread.join(LAST_S)
        if self._thread.is_alive():
            self._given_up = True
            self._log.warning("tracing_down", detail=f"{self._exporter.url} does not answer; the last spans are lost")

    def _run(self) -> None:
        while not self._stopping.wait(INTERVAL_S):
            self._send_all()
        self._send_all()

    def _send_all(self) -> None:
        while self._queue:
            self._send([self._queue.popleft() for _ in range(min(len(self._queue), BATCH))])

    def _send(self, batch: list[tuple[Record, int]]) -> None:
        try:
            why = self._exporter.send(batch)
        except Exception as error:  # a mistake of ours or of a library: tracing goes on
            why = describe(error)
        if self._given_up:
            return  # the log may be closed
        if why:
            self._on_drop(len(batch))
        if bool(why) is not self._failing:
            self._failing = bool(why)
            if why:
                self._log.warning("tracing_down", detail=why)
            else:
                self._log.info("tracing_up", detail=f"{self._exporter.url} takes spans again")
