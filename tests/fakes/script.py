"""What the fake engine is told to do: behaviours, the faults in them, and which request gets which."""

import enum
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import msgspec

#: Values of `Fault.at`. Any value from 0 up means "after that many events of the stream".
ON_ACCEPT = -2
BEFORE_HEAD = -1
BEFORE_FIRST_EVENT = 0
#: After the last event and before what ends the body.
AT_END = 1_000_000_000


class Kind(enum.StrEnum):
    """What goes wrong."""

    CLOSE = "close"  #: close properly (FIN): too early, so a chunked body misses its end
    RESET = "reset"  #: close with a reset (SO_LINGER 0)
    HALF_CLOSE = "half_close"  #: send FIN, keep reading until the peer closes
    STALL = "stall"  #: send nothing more, until the peer closes
    TRUNCATE = "truncate"  #: send half of the next chunk, then close
    GARBAGE = "garbage"  #: bytes that are no HTTP where the head or a chunk size belongs, then stall
    ERROR_EVENT = "error_event"  #: what vLLM sends when a request fails while streaming; then the stream ends
    STATUS = "status"  #: an error answer with vLLM's body and status `Fault.status`
    HUGE_EVENT = "huge_event"  #: one event of `Fault.size` bytes of text more, then on as usual
    HUGE_HEAD = "huge_head"  #: a head with a field of `Fault.size` bytes, then on as usual


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong, and where.

    `at` is ON_ACCEPT, BEFORE_HEAD, a number of events already sent, or AT_END; in an answer that is no stream,
    anything from 0 up means the middle of the body. `at_byte` places CLOSE, RESET, HALF_CLOSE, STALL and GARBAGE
    after exactly that many bytes of the answer (its head included) and overrides `at`.
    STATUS and HUGE_HEAD concern the head, wherever `at` points.
    """

    kind: Kind
    at: int = 3
    at_byte: int | None = None
    status: int = 500
    size: int = 4 * 1024 * 1024


class Hold(Protocol):
    """Whatever can be waited for; a trio.Event."""

    async def wait(self) -> None:
        """Return when generation may go on."""


class Framing(enum.StrEnum):
    """How the end of a streamed body is found."""

    CHUNKED = "chunked"
    LENGTH = "length"
    UNTIL_CLOSE = "until_close"


class Writes(enum.StrEnum):
    """How the bytes of an answer are cut into writes."""

    EACH = "each"  #: one write per chunk, as uvicorn does
    BURST = "burst"  #: the head at once, the whole body in a second write when all tokens exist
    ALL = "all"  #: one write for head and body, when all tokens exist
    BYTES = "bytes"  #: one write per byte, other tasks may run in between


@dataclass(frozen=True)
class Wire:
    """How an answer looks on the wire without being wrong: all of it is allowed by HTTP/1.1 and SSE.

    `events_per_chunk` > 1 gathers events in a chunk; `chunk_bytes` cuts the body into chunks of that size instead,
    wherever events end. `comments` puts a comment frame before each event.
    """

    framing: Framing = Framing.CHUNKED
    writes: Writes = Writes.EACH
    events_per_chunk: int = 1
    chunk_bytes: int | None = None
    chunk_extension: str = ""
    trailers: tuple[tuple[str, str], ...] = ()
    comments: bool = False


@dataclass(frozen=True)
class Behaviour:
    """How one request is served. Times are in seconds on trio's clock.

    `tokens` are generated before the model stops by itself (the last one is the end-of-sequence token, without text);
    a smaller max_tokens of the request ends it before. Generation pauses after `hold_at` tokens until `hold` is set
    (0: before the first). `done` False leaves out `[DONE]`; `close` True closes the connection after the answer
    without having said so, as an idle timeout does; `delay_s` passes before the request is looked at.
    """

    prefill_s: float = 0.0
    token_interval_s: float = 0.0
    tokens: int = 8
    hold: Hold | None = None
    hold_at: int = 0
    delay_s: float = 0.0
    fault: Fault | None = None
    wire: Wire = field(default_factory=Wire)
    done: bool = True
    close: bool = False

    def but(self, **changes: Any) -> "Behaviour":
        """The same with some fields changed."""
        return replace(self, **changes)


@dataclass
class Script:
    """Which request behaves how.

    A request whose body contains a marker of `when` gets that behaviour; otherwise the first of `queue` (once);
    otherwise `default`. Requests without a body (health, models, metrics) get `probes`.
    """

    default: Behaviour = field(default_factory=Behaviour)
    probes: Behaviour = field(default_factory=Behaviour)
    when: dict[bytes, Behaviour] = field(default_factory=dict)
    queue: deque[Behaviour] = field(default_factory=deque)

    def next(self, *behaviours: Behaviour) -> None:
        """Queue behaviours for the next requests with a body, one each, in order of arrival."""
        self.queue.extend(behaviours)

    def take(self, body: bytes) -> Behaviour:
        """The behaviour for a request with this body; takes it off the queue if it came from there."""
        for marker, behaviour in self.when.items():
            if marker in body:
                return behaviour
        return self.queue.popleft() if self.queue else self.default

    def take_accept_fault(self) -> Fault | None:
        """The fault that strikes a connection just accepted, if the next behaviour has one."""
        behaviour = self.queue[0] if self.queue else self.default
        if behaviour.fault is None or behaviour.fault.at != ON_ACCEPT:
            return None
        if self.queue:
            self.queue.popleft()
        return behaviour.fault


def behaviour_from_json(text: str | bytes) -> Behaviour:
    """A Behaviour from JSON with the same names (`hold` cannot be given). Raises msgspec.ValidationError."""
    return msgspec.json.decode(text, type=Behaviour)
