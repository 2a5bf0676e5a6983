"""How a request ended: exactly one Outcome each, and the Refusal that carries one to the edge."""

import enum
from collections.abc import Sequence


class Kind(enum.Enum):
    """What an outcome says about the system.

    SUCCESS: the client got its answer. SHED: refused for lack of room, or because the gateway stops. CLIENT: the
    client disconnected or stalled. INVALID: the request cannot be served as it is. FAULT: the engine or the gateway
    failed; logged as a warning.
    """

    SUCCESS = enum.auto()
    SHED = enum.auto()
    CLIENT = enum.auto()
    INVALID = enum.auto()
    FAULT = enum.auto()


class Outcome(enum.StrEnum):
    """Terminal outcome of a request: the metric label, the log field and the ledger column.

    Every request that reaches the gate ends with exactly one of these, whatever happens to it.
    """

    kind: Kind
    #: The request was queued and got no slot: its time in the queue counts, or the queue would look best at its worst.
    queued_in_vain: bool

    def __new__(cls, value: str, kind: Kind = Kind.FAULT, queued_in_vain: bool = False) -> "Outcome":
        member = str.__new__(cls, value)
        member._value_ = value
        member.kind = kind
        member.queued_in_vain = queued_in_vain
        return member

    SERVED = "served", Kind.SUCCESS
    CLIENT_GONE_QUEUED = "client_gone_queued", Kind.CLIENT, True
    CLIENT_GONE_ACTIVE = "client_gone_active", Kind.CLIENT
    SHED_BUSY = "shed_busy", Kind.SHED
    SHED_QUEUE_FULL = "shed_queue_full", Kind.SHED
    SHED_QUEUE_TIMEOUT = "shed_queue_timeout", Kind.SHED, True
    SHED_DRAINING = "shed_draining", Kind.SHED
    SHED_EXHAUSTED = "shed_exhausted", Kind.FAULT
    ENGINE_UNAVAILABLE = "engine_unavailable", Kind.FAULT
    ENGINE_ERROR = "engine_error", Kind.FAULT
    ENGINE_TRUNCATED = "engine_truncated", Kind.FAULT
    TIMEOUT_FIRST_TOKEN = "timeout_first_token", Kind.FAULT
    TIMEOUT_IDLE = "timeout_idle", Kind.FAULT
    TIMEOUT_TOTAL = "timeout_total", Kind.FAULT
    CLIENT_STALLED = "client_stalled", Kind.CLIENT
    INVALID = "invalid", Kind.INVALID
    TOO_LARGE = "too_large", Kind.INVALID
    INTERNAL_ERROR = "internal_error", Kind.FAULT


class Refusal(Exception):
    """A request that will not be served: what to answer, and the outcome to account it under.

    Any stage raises it; refusals.py turns it into one answer in the client's dialect.
    `status` is an HTTP status (400-599); `retry_after_s` is in whole seconds (>= 1) or None;
    `message` tells the client what happened and what to do, and never holds a prompt or a key;
    `code` is the error's name for programs: the outcome's unless there is a closer one;
    `detail` is what the log says instead of `message`: more, for it is the operator who reads it;
    `headers` are further fields of the answer: what its status calls for, or an engine's own word about a retry, which
    then counts.
    """

    def __init__(
        self,
        outcome: Outcome,
        status: int,
        message: str,
        *,
        retry_after_s: int | None = None,
        code: str = "",
        detail: str = "",
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s
        self.code = code or outcome.value
        self.detail = detail or message
        self.headers = headers

    def __repr__(self) -> str:
        return f"Refusal({self.outcome}, {self.status}, {self.message!r}, retry_after_s={self.retry_after_s})"
