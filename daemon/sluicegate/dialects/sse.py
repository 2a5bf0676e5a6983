"""Server-sent events: where a stream of them can be cut, and what is in one. The only parser of them here.

A stream can be cut after a blank line, and nowhere else.

Lines end with LF, CRLF or CR, also mixed (WHATWG HTML, 9.2.5). Only whole events are passed on, so that an event of
the gate's own can follow what the client already has, and so that accounting sees each event in one piece.
"""

import re
from collections.abc import Iterator

# A chunk of a chat stream has some 250 bytes, with 20 logprobs per token 3 KB; only Responses' closing event, which
# repeats the whole answer, gets large. 1 MiB holds 250,000 tokens of text. The bound is what one stream may cost in
# memory: 1,000 broken ones are 1 GiB.
MAX_EVENT_BYTES = 1 << 20


class EventSplitter:
    """Turns a stream's bytes, as they come, into batches of whole events. Adds and drops nothing.

    `mid_event` is True from when an event larger than `max_event_bytes` had to be passed on in pieces until its end
    has passed: who adds an event of its own meanwhile must first end that one, with a line end and a blank line.
    `at_boundary`: nothing is held, and no event is under way.
    """

    __slots__ = ("_held", "_last", "_max", "at_boundary", "mid_event")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._held = bytearray()
        self.at_boundary = True
        self._last = b""  # while mid_event: the last byte passed on, for a blank line may begin with it
        self.mid_event = False

    @property
    def held(self) -> bytes:
        """The incomplete rest: what came after the last boundary. Not empty at a stream's end: it was cut off."""
        return bytes(self._held)

    def feed(self, data: bytes) -> bytes:
        """All that is held plus `data`, up to the last boundary in it.

        A blank line ends an event as soon as its first byte is there; the LF of a CRLF that was split there
        comes out first thing next, as a blank line without an event.
        The common case, whole LF-ended events with nothing held, returns `data` itself in some 150 ns.
        """
        if self.at_boundary and data.endswith(b"\n\n"):
            return data
        if self.mid_event:
            return self._feed_oversized(data)
        held = self._held
        seam = len(held)
        held += data
        end = _last_boundary(held, seam)
        if not end and not seam:
            end = _blank_start(held)
        return self._take(end)

    def _feed_oversized(self, data: bytes) -> bytes:
        joined = self._last + data
        end = _last_boundary(joined, 1)
        if not end:
            self._last = joined[-1:]
            return data
        self.mid_event = False
        self._held += data
        return self._take(end - 1)

    def _take(self, end: int) -> bytes:
        """Remove and return the first `end` bytes of what is held, or all of it if the rest is too large to hold."""
        held = self._held
        if len(held) - end > self._max:
            self.mid_event = True
            self._last = bytes(held[-1:])
            end = len(held)
        taken = bytes(held[:end])
        del held[:end]
        self.at_boundary = not held and not self.mid_event
        return taken

    def __repr__(self) -> str:
        return f"<EventSplitter holding {len(self._held)} of at most {self._max} bytes, mid_event={self.mid_event}>"


def _last_boundary(data: bytes | bytearray, seam: int) -> int:
    """The end of the last blank line in `data` after another line, or 0.

    Nothing before `seam` ends one: looking only from there on keeps an event that comes in many pieces linear.
    A line end right behind another one is a blank line, unless the two are one CRLF: so it is any pair but that.
    """
    start = max(seam - 1, 0)
    end = data.rfind(b"\n\n", start) + 2
    if data.find(b"\r", start) >= 0:
        end = max(end, data.rfind(b"\n\r", start) + 2, data.rfind(b"\r\r", start) + 2)
        if end > 1 and data[end - 1 : end + 1] == b"\r\n":
            end += 1
    return end if end > 1 else 0


def _blank_start(data: bytearray) -> int:
    """The length of the blank line that `data`, which begins an event, starts with, or 0."""
    if data.startswith(b"\r\n"):
        return 2
    return 1 if data.startswith((b"\r", b"\n")) else 0


def split(events: bytes) -> Iterator[bytes]:
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


_LINE_END = rb"(?:\r\n|\n|\r(?!\n))"
_BLANK_LINE = re.compile(_LINE_END + _LINE_END)


def name_and_data(event: bytes) -> tuple[str, bytes | None]:
    """An event's name ("" without one) and its data (None without a data line)."""
    name = ""
    data: list[bytes] = []
    for line in event.splitlines():
        if line.startswith(b"data:"):
            data.append(line[5:])
        elif line.startswith(b"event:"):
            name = line[6:].strip().decode("ascii", "replace")
    return name, b"\n".join(data) if data else None


def with_member(event: bytes, member: bytes) -> bytes:
    """`event` with `member` before the `}` that ends its data."""
    end = max(line.end() for line in _DATA_LINE.finditer(event) if b"}" in line.group())
    at = event.rindex(b"}", 0, end)
    return event[:at] + member + event[at:]


_DATA_LINE = re.compile(rb"(?:\A|[\r\n])data:[^\r\n]*")
