"""How a request ended: exactly one Outcome each, and the Refusal that carries one to the edge."""

import enum


class Outcome(enum.StrEnum):
    """Terminal outcome of a request: the metric label, the log field and the ledger column.

    Every request that reaches the gate ends with exactly one of these, whatever happens to it.
    """

    SERVED = "served"
    CLIENT_GONE_QUEUED = "client_gone_queued"
    CLIENT_GONE_ACTIVE = "client_gone_active"
    SHED_BUSY = "shed_busy"
    SHED_QUEUE_FULL = "shed_queue_full"
    SHED_QUEUE_TIMEOUT = "shed_queue_timeout"
    SHED_DRAINING = "shed_draining"
    ENGINE_UNAVAILABLE = "engine_unavailable"
    ENGINE_ERROR = "engine_error"
    ENGINE_TRUNCATED = "engine_truncated"
    TIMEOUT_FIRST_TOKEN = "timeout_first_token"  # noqa: S105 (no password)
    TIMEOUT_IDLE = "timeout_idle"
    TIMEOUT_TOTAL = "timeout_total"
    CLIENT_STALLED = "client_stalled"
    INVALID = "invalid"
    TOO_LARGE = "too_large"
    INTERNAL_ERROR = "internal_error"


class Refusal(Exception):
    """A request that will not be served: what to answer, and the outcome to account it under.

    Raised by any stage, answered once at the edge in the client's dialect.
    `status` is an HTTP status (400-599); `retry_after_s` is in whole seconds (>= 1) or None;
    `message` tells the client what happened and what to do, and never holds a prompt or a key.
    """

    def __init__(self, outcome: Outcome, status: int, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s

    def __repr__(self) -> str:
        return f"Refusal({self.outcome}, {self.status}, {self.message!r}, retry_after_s={self.retry_after_s})"
