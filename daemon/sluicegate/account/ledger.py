"""One record per request, settled once: the place where a request becomes metrics and a log line."""

from collections.abc import Callable
from dataclasses import dataclass

from sluicegate.observe.logs import Fields, Log
from sluicegate.observe.metrics import Metrics
from sluicegate.outcome import Kind, Outcome


class AlreadySettledError(RuntimeError):
    """A second outcome for a request that has one: a mistake in the pipeline, never the client's or the engine's."""


@dataclass(slots=True)
class Record:
    """What is known of one request. The pipeline fills it in as the request walks through; `Ledger.settle` closes it.

    Times are in seconds on the ledger's clock, None for what did not happen. Holds no part of a prompt or an answer.
    """

    request_id: str
    endpoint: str  # path of the route
    received_at: float  # head read
    stream: bool = False
    queued_at: float | None = None  # asked for a slot; None: as soon as received
    queue_position: int | None = None  # requests ahead when it joined the queue, from 0
    granted_at: float | None = None  # got a slot
    first_at: float | None = None  # first byte of the answer's body left
    ended_at: float | None = None  # last byte left; settle sets it if it is None
    status: int | None = None  # HTTP status sent
    prompt_tokens: int | None = None  # as the engine reported
    completion_tokens: int | None = None
    model: str = ""  # as asked for, and only a name that the engine knows; for the log alone
    model_used: str | None = None  # the same for the metrics, or the default where none was asked for; "": another
    detail: str = ""  # what went wrong, in one sentence
    outcome: Outcome | None = None  # set by Ledger.settle alone

    @property
    def total_s(self) -> float | None:
        """From the head to the end of the answer."""
        return _span(self.received_at, self.ended_at)

    @property
    def queue_s(self) -> float | None:
        """From asking for a slot to getting it, or to leaving without; None for a request that did neither."""
        asked_at = self.received_at if self.queued_at is None else self.queued_at
        if self.granted_at is not None:
            return _span(asked_at, self.granted_at)
        waited_in_vain = self.queue_position is not None and self.outcome is not None and self.outcome.queued_in_vain
        return _span(asked_at, self.ended_at) if waited_in_vain else None

    @property
    def ttft_s(self) -> float | None:
        """From the head to the first byte, as the client sees it; for streams."""
        return _span(self.received_at, self.first_at) if self.stream else None

    @property
    def inter_token_s(self) -> float | None:
        """Mean gap between two tokens; for streams of two or more."""
        decode_s = _span(self.first_at, self.ended_at)
        if not self.stream or decode_s is None or self.completion_tokens is None or self.completion_tokens < 2:
            return None
        return decode_s / (self.completion_tokens - 1)

    @property
    def tokens_per_s(self) -> float | None:
        """Completion tokens over the time from the slot to the last byte: prefill counts, waiting does not."""
        at_engine_s = _span(self.granted_at, self.ended_at)
        if not at_engine_s or not self.completion_tokens or self.completion_tokens < 0:
            return None
        return self.completion_tokens / at_engine_s


class Ledger:
    """Opens a record for each request and settles it once. Used from the trio thread alone.

    Always: settled <= opened, and every settled request was counted once in api_requests_total and once in
    api_outcomes_total, and logged in one line.
    """

    def __init__(self, metrics: Metrics, log: Log, clock: Callable[[], float]) -> None:
        """`clock`: seconds, monotonic; trio.current_time in the daemon."""
        self._metrics = metrics
        self._log = log
        self._clock = clock
        self.opened = 0
        self.settled = 0

    def __repr__(self) -> str:
        return f"<Ledger opened={self.opened} settled={self.settled}>"

    @property
    def open_count(self) -> int:
        """Requests that have no outcome yet."""
        return self.opened - self.settled

    def open(self, request_id: str, endpoint: str, *, received_at: float | None = None, stream: bool = False) -> Record:
        """A record for a request that just arrived. The caller settles it, however the request ends."""
        self.opened += 1
        return Record(
            request_id, endpoint, received_at=self._clock() if received_at is None else received_at, stream=stream
        )

    def settle(self, record: Record, outcome: Outcome) -> None:
        """Give the record its outcome, count it and log it.

        Raises AlreadySettledError on a second call, which counts and logs nothing.
        """
        if record.outcome is not None:
            raise AlreadySettledError(f"{record.request_id} is {record.outcome} already, and cannot be {outcome}")
        record.outcome = outcome
        if record.ended_at is None:
            record.ended_at = self._clock()
        self.settled += 1

        queue_s = record.queue_s
        total_s = record.total_s
        ttft_s = record.ttft_s
        tokens_per_s = record.tokens_per_s
        # Refusals take no time: counted in, they would make the latency look best when most requests are shed.
        reached_engine = record.granted_at is not None or outcome is Outcome.SERVED
        self._metrics.settled(
            record.endpoint,
            record.status,
            outcome,
            model=record.model_used,
            latency_s=total_s if reached_engine else None,
            queue_s=queue_s,
            ttft_s=ttft_s,
            inter_token_s=record.inter_token_s,
            tokens_per_s=tokens_per_s,
            prompt_tokens=record.prompt_tokens,
            completion_tokens=record.completion_tokens,
        )
        fields: Fields = {
            "request_id": record.request_id,
            "outcome": outcome.value,
            "status": record.status,
            "endpoint": record.endpoint,
            "model": record.model or None,
            "stream": record.stream,
            "queue_position": record.queue_position,
            "queue_s": queue_s,
            "ttft_s": ttft_s,
            "total_s": total_s,
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
            "tokens_per_s": tokens_per_s,
            "detail": record.detail or None,
        }
        self._log.request(fields, fault=outcome.kind is Kind.FAULT)


def _span(start: float | None, end: float | None) -> float | None:
    """Seconds from `start` to `end`, never negative; None if either is missing."""
    return None if start is None or end is None else max(0.0, end - start)
