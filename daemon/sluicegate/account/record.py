"""One record per request: the facts that every sink reads, listed here and nowhere else."""

from dataclasses import dataclass

from ..outcome import Outcome
from .trace import Trace

#: What the log says of a request, in this order: attributes of Record and names of the line's fields. No other text of
#: a record is written anywhere.
LOGGED = (
    "request_id",
    "outcome",
    "status",
    "endpoint",
    "client",
    "method",
    "path",
    "model",
    "stream",
    "queue_position",
    "queue_s",
    "ttft_s",
    "total_s",
    "prompt_tokens",
    "completion_tokens",
    "tokens_per_s",
    "detail",
)


@dataclass(slots=True, eq=False)
class Record:
    """What is known of one request. The stages fill it in; `Ledger.settle` closes it.

    Times are in seconds on the ledger's clock, None for what did not happen. Holds no part of a prompt or an answer.
    """

    request_id: str
    endpoint: str  # path of the route
    received_at: float  # head read
    stream: bool = False
    queued_at: float | None = None  # asked for a slot; None: as soon as received
    queue_position: int | None = None  # requests ahead when it joined the queue, from 0
    granted_at: float | None = None  # got a slot
    first_at: float | None = None  # first byte of the answer's body sent
    ended_at: float | None = None  # last byte sent; settle sets it if it is None
    status: int | None = None  # HTTP status sent
    client: str | None = None  # IP address, for the log alone
    method: str | None = None  # of a request without a route, for the log alone; so is:
    path: str | None = None  # without its query; bounded, but as the client sent it
    prompt_tokens: int | None = None  # as the engine reported
    completion_tokens: int | None = None
    model: str | None = None  # as asked for, and only a name that the engine knows; for the log alone
    model_used: str | None = None  # the same for the metrics, or the default where none was asked for; "": another
    detail: str | None = None  # what went wrong, in one sentence
    trace: Trace | None = None  # its place in a trace, while tracing is on
    outcome: Outcome | None = None  # set by Ledger.settle alone

    @property
    def total_s(self) -> float | None:
        """From the head to the end of the answer."""
        return _span(self.received_at, self.ended_at)

    @property
    def latency_s(self) -> float | None:
        """The same for a request that reached the engine.

        Refusals take no time: counted in, they would make the latency look best when most requests are shed.
        """
        return self.total_s if self.granted_at is not None or self.outcome is Outcome.SERVED else None

    @property
    def queue_s(self) -> float | None:
        """From asking for a slot to its grant, or to the end without one; None for a request that did neither."""
        asked_at = self.received_at if self.queued_at is None else self.queued_at
        if self.granted_at is not None:
            return _span(asked_at, self.granted_at)
        in_vain = self.queue_position is not None and self.outcome is not None and self.outcome.queued_in_vain
        return _span(asked_at, self.ended_at) if in_vain else None

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
        """Completion tokens over the time from the slot to the last byte: prefill counts, queueing does not."""
        at_engine_s = _span(self.granted_at, self.ended_at)
        if not at_engine_s or not self.completion_tokens or self.completion_tokens < 0:
            return None
        return self.completion_tokens / at_engine_s


def _span(start: float | None, end: float | None) -> float | None:
    """Seconds from `start` to `end`, never negative; None if either is missing."""
    if start is None or end is None:
        return None
    return end - start if end > start else 0.0
