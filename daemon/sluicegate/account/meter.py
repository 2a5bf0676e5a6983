"""How many tokens a request cost, read from what the engine says; nothing here counts or estimates.

`read_usage` reads a whole answer. A `StreamMeter` sits in a stream: it sees every batch of whole events, hides the
usage chunk that the gate asked for and the client did not, and notes when tokens came and how the stream ended.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Raw

from ..exchange import Dialect


@dataclass(slots=True)
class Usage:
    """Tokens as the engine counted them, each >= 0. `prompt` includes what came from its prefix cache."""

    prompt: int
    completion: int


def read_usage(dialect: Dialect, body: bytes) -> Usage | None:
    """The usage in a whole (not streamed) answer; None where there is none or it is not understood. Never raises."""
    try:
        return _usage(dialect, _ANSWER.decode(body).usage)
    except (ValueError, RecursionError):
        return None


class StreamMeter:
    """Watches one stream of one request. Not thread-safe: it belongs to whoever relays the stream.

    `clock` gives seconds (monotonic), and `started_at`, on that clock, is what latency and TTFT are measured from.

    `marks`: once the stream has `begun`, an event with none of them in it needs no look, and that is all but the last
    ones of a usual stream. Inside JSON a quote is escaped, so no text that the model writes can look like a member's
    name, and where a text does contain another mark, a look (3 to 5 us, on a cloud EPYC) is all that it costs.
    Search with `rfind` (0.2 us each): `in` takes twice as long, for it tries its left side as an int first.

    What is noted, also after the stream broke:

    `usage`: the engine's latest word on it. `first_at`: when the first event with output came (not a comment, a
    ping, an error, or the announcement of a response). `last_at`: when the latest event with data came
    that was looked at, as the end of a stream always is (a clock for every token would be a third of its cost here).
    `ended`: the dialect's own end marker was seen: `[DONE]`, `message_stop`, or response.completed, .incomplete or
    .failed. `failed`: the engine itself reported an error in the stream. `done_count`: how many `[DONE]` the engine
    sent; only the first is passed on, and none behind an error.
    """

    __slots__ = (
        "_asked",
        "_clock",
        "_dialect",
        "_prompt",
        "_stamped",
        "_started_at",
        "done_count",
        "ended",
        "failed",
        "first_at",
        "last_at",
        "marks",
        "usage",
    )

    def __init__(self, dialect: Dialect, usage_asked: bool, clock: Callable[[], float], started_at: float) -> None:
        self._dialect = dialect
        self._asked = usage_asked
        self._clock = clock
        self._started_at = started_at
        self.marks = (_MARKERS.get(dialect, b'"usage"'), b"error", b"[DONE]")
        self._prompt: int | None = None  # Messages tells it first, in message_start
        self._stamped = False
        self.usage: Usage | None = None
        self.first_at: float | None = None
        self.last_at: float | None = None
        self.ended = False
        self.failed = False
        self.done_count = 0

    def pass_on(self, events: bytes) -> bytes:
        """What the client gets for a batch of whole events: `events` itself unless something in it must change.

        May be empty. A piece of an event (EventSplitter passes on an oversized one so) comes out as it went in; of
        such an event only the name is understood, so `ended` may be True before its end has come.
        """
        if events[:1] in _FIELDS and self.first_at is not None:
            one, another, third = self.marks
            if events.rfind(one) < 0 and events.rfind(another) < 0 and events.rfind(third) < 0:
                return events
        return self._inspect(events)

    @property
    def begun(self) -> bool:
        """The first event with output has passed."""
        return self.first_at is not None

    def final_frame(self) -> bytes:
        """The SSE comment that ends a healthy stream, for the tail of its body; empty if the usage chunk tells it.

        Also empty unless the stream ended, and without an error: it would pass for a seal of completeness.
        """
        if not self.ended or self.failed or self._stamped or self.last_at is None:
            return b""
        report: dict[str, float] = {}
        if self.usage is not None:
            report = {"prompt_tokens": self.usage.prompt, "completion_tokens": self.usage.completion}
        return b": sluicegate " + msgspec.json.encode(report | self._timings(self.last_at)) + b"\n\n"

    def _inspect(self, events: bytes) -> bytes:
        now = self._clock()
        passed = []
        changed = False
        for event in _split(events):
            kept = self._attend(event, now)
            changed |= kept is not event
            passed.append(kept)
        return b"".join(passed) if changed else events

    def _attend(self, event: bytes, now: float) -> bytes:
        """Note what one event says; returns it as the client is to have it."""
        name, data = _fields(event)
        if data is None:
            return event
        self.last_at = now
        if data.strip() == b"[DONE]":
            self.done_count += 1
            self.ended = self.ended or self._dialect not in _MARKERS
            # vLLM says [DONE] behind its own error, too: that stream would pass for complete.
            return event if self.done_count == 1 and not self.failed else b""
        chunk = _decode(data)
        kind = name or chunk.kind
        if kind == "error" or _there(chunk.error):
            self.failed = True
            return event
        if self.first_at is None and kind not in _WITHOUT_OUTPUT:
            self.first_at = now
        if self._dialect is Dialect.MESSAGES:
            self._attend_message(kind, chunk)
        elif self._dialect is Dialect.RESPONSES:
            self._attend_response(kind, chunk)
        elif _there(chunk.usage):
            return self._attend_usage(event, chunk, now)
        return event

    def _attend_usage(self, event: bytes, chunk: "_Chunk", now: float) -> bytes:
        self.usage = _usage(self._dialect, chunk.usage) or self.usage
        if not _EMPTY_ARRAY.fullmatch(bytes(chunk.choices)):
            return event  # continuous_usage_stats, or a whole answer in one chunk
        if self._asked:
            self._stamped = True
            return _spliced(event, b',"sluicegate":' + msgspec.json.encode(self._timings(now)))
        # An opaque request was passed on as it came, so its answer is all the client's
        return event if self._dialect is Dialect.PLAIN else b""

    def _attend_message(self, kind: str, chunk: "_Chunk") -> None:
        if kind == "message_start":
            self._prompt, _ = _message_counts(_usage_inside(chunk.message))
        elif kind == "message_delta":
            prompt, completion = _message_counts(chunk.usage)
            prompt = prompt or self._prompt
            if prompt is not None and completion is not None:
                self.usage = Usage(prompt, completion)
        elif kind == "message_stop":
            self.ended = True

    def _attend_response(self, kind: str, chunk: "_Chunk") -> None:
        if kind in ("response.completed", "response.incomplete", "response.failed"):
            self.ended = True
            self.failed = self.failed or kind == "response.failed"
            self.usage = _usage(self._dialect, _usage_inside(chunk.response))

    def _timings(self, until: float) -> dict[str, float]:
        """What is known of the stream's times: seconds to 0.1 ms, and completion tokens per second of the whole."""
        elapsed = until - self._started_at
        timings: dict[str, float] = {}
        if self.first_at is not None:
            timings["ttft_s"] = round(self.first_at - self._started_at, 4)
        timings["latency_s"] = round(elapsed, 4)
        if self.usage is not None and elapsed > 0:
            timings["tokens_per_second"] = round(self.usage.completion / elapsed, 2)
        return timings


# What must be in an event for it to carry usage or to be the end, by dialect; else `"usage"`.
# Dialects that are listed here have an end marker of their own, others end with [DONE].
_MARKERS = {Dialect.MESSAGES: b"message_", Dialect.RESPONSES: b'"response"'}

# How the lines `data:` and `event:` begin; anything else, a comment above all, is looked at.
_FIELDS = (b"d", b"e")

# Events that vLLM (response.*) or Anthropic (ping) send before there is any output.
_WITHOUT_OUTPUT = ("ping", "response.created", "response.queued", "response.in_progress")

_LINE_END = rb"(?:\r\n|\n|\r(?!\n))"
_BLANK_LINE = re.compile(_LINE_END + _LINE_END)
_EMPTY_ARRAY = re.compile(rb"\[\s*\]")


class _Answer(msgspec.Struct):
    usage: Raw = Raw()


class _Chunk(msgspec.Struct):
    """The members of an event's data that matter in any dialect; empty where absent."""

    choices: Raw = Raw()
    usage: Raw = Raw()
    error: Raw = Raw()
    message: Raw = Raw()
    response: Raw = Raw()
    type: Any = None

    @property
    def kind(self) -> str:
        return self.type if isinstance(self.type, str) else ""


_Count = Annotated[int, msgspec.Meta(ge=0)] | None


class _Counts(msgspec.Struct):
    """A usage object of any dialect."""

    prompt_tokens: _Count = None
    completion_tokens: _Count = None
    input_tokens: _Count = None
    output_tokens: _Count = None
    cache_read_input_tokens: _Count = None
    cache_creation_input_tokens: _Count = None


_ANSWER = msgspec.json.Decoder(_Answer)
_CHUNK = msgspec.json.Decoder(_Chunk)
_COUNTS = msgspec.json.Decoder(_Counts)


def _usage(dialect: Dialect, raw: Raw) -> Usage | None:
    """A dialect's usage object; None where it is absent or not understood."""
    if dialect is Dialect.MESSAGES:
        prompt, completion = _message_counts(raw)
    else:
        counts = _counts(raw)
        prompt, completion = counts.prompt_tokens, counts.completion_tokens
        if dialect is Dialect.RESPONSES:
            prompt, completion = counts.input_tokens, counts.output_tokens
        elif dialect is Dialect.PLAIN and completion is None:
            completion = 0  # an embedding or a score has none
    return None if prompt is None or completion is None else Usage(prompt, completion)


def _message_counts(raw: Raw) -> tuple[int | None, int | None]:
    """Prompt and completion tokens. Anthropic's input_tokens leave out what was read from or put into the cache."""
    counts = _counts(raw)
    if counts.input_tokens is None:
        return None, counts.output_tokens
    cached = (counts.cache_read_input_tokens or 0) + (counts.cache_creation_input_tokens or 0)
    return counts.input_tokens + cached, counts.output_tokens


def _counts(raw: Raw) -> _Counts:
    try:
        return _COUNTS.decode(raw)
    except (ValueError, RecursionError):
        return _Counts()


def _usage_inside(raw: Raw) -> Raw:
    """The member `usage` of an object."""
    try:
        return _ANSWER.decode(raw).usage
    except (ValueError, RecursionError):
        return Raw()


def _decode(data: bytes) -> _Chunk:
    try:
        return _CHUNK.decode(data)
    except (ValueError, RecursionError):
        return _Chunk()


def _there(raw: Raw) -> bool:
    return bytes(raw) not in (b"", b"null")


def _split(events: bytes) -> Iterator[bytes]:
    """The events of a batch, each with its blank line; an incomplete rest comes last."""
    start = 0
    if events.find(b"\r") < 0:  # all real engines: much cheaper than the expression
        while (end := events.find(b"\n\n", start) + 2) > 1:
            yield events[start:end]
            start = end
    else:
        for boundary in _BLANK_LINE.finditer(events):
            yield events[start : boundary.end()]
            start = boundary.end()
    if start < len(events):
        yield events[start:]


def _fields(event: bytes) -> tuple[str, bytes | None]:
    """An event's name ("" without one) and its data (None without a data line)."""
    name = ""
    data: list[bytes] = []
    for line in event.splitlines():
        if line.startswith(b"data:"):
            data.append(line[5:])
        elif line.startswith(b"event:"):
            name = line[6:].strip().decode("ascii", "replace")
    return name, b"\n".join(data) if data else None


def _spliced(event: bytes, member: bytes) -> bytes:
    """`event` with `member` before the `}` that ends its data."""
    end = max(line.end() for line in _DATA_LINE.finditer(event) if b"}" in line.group())
    at = event.rindex(b"}", 0, end)
    return event[:at] + member + event[at:]


_DATA_LINE = re.compile(rb"(?:\A|[\r\n])data:[^\r\n]*")
