"""How many tokens a request cost, read from what the engine says; nothing here counts or estimates.

`read_usage` reads a whole answer. A `StreamMeter` sits in a stream: it sees every batch of whole events, hides the
usage chunk that the gate asked for and the client did not, and notes when tokens came and how the stream ended.
"""

import re
from collections.abc import Callable

import msgspec
from msgspec import Raw

from ..dialects.failure import reason_in
from ..dialects.grammar import Chunk, says_something
from ..dialects.grammars import GRAMMARS
from ..dialects.sse import name_and_data, split, with_member
from ..dialects.usage import Usage
from ..exchange import Dialect


def read_usage(dialect: Dialect, body: bytes) -> Usage | None:
    """The usage in a whole (not streamed) answer; None where there is none or it is not understood. Never raises."""
    return GRAMMARS[dialect].answer_usage(body)


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
    sent; only the first is passed on, and none behind an error. `reason`: what the engine's error said, for the log.
    `latest`: events that passed unseen, the newest batch of them; who passes them on without asking (`marks`) sets it.
    """

    __slots__ = (
        "_asked",
        "_clock",
        "_grammar",
        "_silent",
        "_started_at",
        "done_count",
        "ended",
        "failed",
        "first_at",
        "last_at",
        "latest",
        "marks",
        "prompt",
        "reason",
        "sequence_number",
        "usage",
    )

    def __init__(
        self,
        dialect: Dialect,
        usage_asked: bool,
        clock: Callable[[], float],
        started_at: float,
        *,
        final_frame: bool = True,
    ) -> None:
        self._grammar = grammar = GRAMMARS[dialect]
        self._asked = usage_asked
        self._clock = clock
        self._started_at = started_at
        self.marks = (grammar.marker, b"error", b"[DONE]")
        self.latest = b""
        self.prompt: int | None = None
        self.sequence_number: int | None = None
        self._silent = not final_frame
        self.usage: Usage | None = None
        self.first_at: float | None = None
        self.last_at: float | None = None
        self.ended = False
        self.failed = False
        self.reason = ""
        self.done_count = 0

    def pass_on(self, events: bytes) -> bytes:
        """What the client gets for a batch of whole events: `events` itself unless something in it must change.

        May be empty. A piece of an event (EventSplitter passes on an oversized one so) comes out as it went in; of
        such an event only the name is understood, so `ended` may be True before its end has come.
        """
        if events[:1] in _FIELDS and self.first_at is not None:
            one, another, third = self.marks
            if events.rfind(one) < 0 and events.rfind(another) < 0 and events.rfind(third) < 0:
                self.latest = events
                return events
        return self._inspect(events)

    @property
    def begun(self) -> bool:
        """The first event with output has passed."""
        return self.first_at is not None

    @property
    def next_sequence_number(self) -> int:
        """The number of the event that follows the stream's latest, in a dialect that counts its events; else 0."""
        numbers = _SEQUENCE_NUMBER.findall(self.latest)
        latest = int(numbers[-1]) if numbers else self.sequence_number
        return 0 if latest is None else latest + 1

    def final_frame(self) -> bytes:
        """The SSE comment that ends a healthy stream, for the tail of its body.

        Empty if it is off or the usage chunk tells it. Also unless the stream ended, and without an error: it would
        pass for a seal of completeness.
        """
        if not self.ended or self.failed or self._silent or self.last_at is None:
            return b""
        report: dict[str, float] = {}
        if self.usage is not None:
            report = {"prompt_tokens": self.usage.prompt, "completion_tokens": self.usage.completion}
        return b": sluicegate " + msgspec.json.encode(report | self._timings(self.last_at)) + b"\n\n"

    def _inspect(self, events: bytes) -> bytes:
        if self._grammar.numbered and self.latest:
            self.sequence_number = self.next_sequence_number - 1  # of what has passed unseen
            self.latest = b""
        now = self._clock()
        passed = []
        changed = False
        for event in split(events):
            kept = self._attend(event, now)
            changed |= kept is not event
            passed.append(kept)
        return b"".join(passed) if changed else events

    def _attend(self, event: bytes, now: float) -> bytes:
        """Note what one event says; returns it as the client is to have it."""
        name, data = name_and_data(event)
        if data is None:
            return event
        self.last_at = now
        if data.strip() == b"[DONE]":
            self.done_count += 1
            self.ended = self.ended or self._grammar.ends_with_done
            # vLLM says [DONE] behind its own error, too: that stream would pass for complete.
            return event if self.done_count == 1 and not self.failed else b""
        chunk = _decode(data)
        kind = name or chunk.kind
        if kind == "error" or says_something(chunk.error):
            self.failed, self.reason = True, reason_in(data)
            return event
        if self.first_at is None and kind not in self._grammar.without_output:
            self.first_at = now
        self._grammar.hear(self, kind, chunk)
        if self.failed and not self.reason:
            self.reason = reason_in(data)
        if self._grammar.ends_with_done and _there(chunk.usage):
            return self._attend_usage(event, chunk, now)
        return event

    def _attend_usage(self, event: bytes, chunk: Chunk, now: float) -> bytes:
        self.usage = self._grammar.usage(chunk.usage) or self.usage
        if not _EMPTY_ARRAY.fullmatch(bytes(chunk.choices)):
            return event  # continuous_usage_stats, or a whole answer in one chunk
        if self._asked:
            self._silent = True
            return with_member(event, b',"sluicegate":' + msgspec.json.encode(self._timings(now)))
        # An opaque request was passed on as it came, so its answer is all the client's
        return b"" if self._grammar.usage_on_request else event

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


# How the lines `data:` and `event:` begin; anything else, a comment above all, is looked at.
_FIELDS = (b"d", b"e")

_EMPTY_ARRAY = re.compile(rb"\[\s*\]")
_SEQUENCE_NUMBER = re.compile(rb'"sequence_number"\s*:\s*(\d{1,18})')

_CHUNK = msgspec.json.Decoder(Chunk)


def _decode(data: bytes) -> Chunk:
    try:
        return _CHUNK.decode(data)
    except (ValueError, RecursionError):
        return Chunk()


def _there(raw: Raw) -> bool:
    return bytes(raw) not in (b"", b"null")
