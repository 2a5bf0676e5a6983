"""From the engine's bytes to the client's, chunk framing included: verbatim where nothing must change. Pure."""

from typing import Protocol

from .connection import Answer

#: Sizes of chunks as uvicorn writes them. Events of a few hundred bytes are looked up here instead of parsed.
_SIZES = {b"%x" % size: size for size in range(1, 4096)}

#: The size line of a chunk, by the length of the whole chunk.
_size_line = {len(line) + 4 + size: line + b"\r\n" for line, size in _SIZES.items()}.get

#: The end of a chunk whose payload ends with a whole event.
_END_OF_EVENT_AND_CHUNK = b"\n\n\r\n"


class Meter(Protocol):
    """Reads along: gets whole events, returns what the client gets of them (account/meter.py).

    `marks`: an event that has none of them in it may pass on unseen, once the stream has `begun`;
    the newest of them is kept in `latest`.
    """

    latest: bytes

    @property
    def marks(self) -> tuple[bytes, bytes, bytes]: ...

    @property
    def begun(self) -> bool:
        """True once the first event with output has passed."""
        ...

    @property
    def ended(self) -> bool:
        """True once the dialect's own end of stream has passed."""
        ...

    @property
    def failed(self) -> bool:
        """True once the engine reported an error in the stream: its last word in some dialects."""
        ...

    def pass_on(self, events: bytes, /) -> bytes: ...

    def final_frame(self) -> bytes: ...


class Splitter(Protocol):
    """Cuts bytes into whole events (dialects/sse.py)."""

    @property
    def mid_event(self) -> bool: ...

    @property
    def at_boundary(self) -> bool: ...

    def feed(self, data: bytes, /) -> bytes: ...


class Splicer:
    """One stream's bytes on their way past HTTP: what it is fed is the raw body of a chunked answer.

    Two ways. Verbatim: the bytes are whole chunks of whole events in which nothing must change, and go out as they
    came, framing and all; llhttp need not see them, for it stands between two chunks before and after. Else: llhttp
    takes the framing off, the splitter waits for whole events, the meter takes out what is not the client's, and what
    is left goes out as one chunk. Either way only whole chunks of whole events come out.
    """

    __slots__ = ("_answer", "_marks", "_meter", "_splitter", "_verbatim")

    def __init__(self, answer: Answer, splitter: Splitter, meter: Meter) -> None:
        self._answer = answer
        self._splitter = splitter
        self._meter = meter
        self._marks = meter.marks
        self._verbatim = answer.at_boundary and splitter.at_boundary and meter.begun

    def passes(self, data: bytes) -> bool:
        """Whether `data` goes out as it came, and then it counts as fed; else `reframed` is to be fed with it."""
        # In one piece, because this runs once per token, mostly on cold caches: each call that it were to make of a
        # function in Python costs about 1 us there. One chunk of one event is nearly every read.
        usual = data.startswith(_size_line(len(data), b"-")) and data.endswith(_END_OF_EVENT_AND_CHUNK)
        if not (self._verbatim and (usual or _whole_chunks(data))):
            return False
        one, another, third = self._marks
        if data.rfind(one) < 0 and data.rfind(another) < 0 and data.rfind(third) < 0:
            self._meter.latest = data
            return True
        return False

    @property
    def complete(self) -> bool:
        """The engine's body has ended; `healthy` says whether the stream in it had."""
        return self._answer.complete

    @property
    def healthy(self) -> bool:
        return self._meter.ended or self._meter.failed

    def closing(self) -> bytes:
        """What ends a healthy stream: the final frame, if there is one, and the end of the body."""
        return framed(self._meter.final_frame()) + b"0\r\n\r\n"

    def reframed(self, data: bytes) -> bytes:
        """What the client's socket gets for `data` that does not pass; may be empty. EngineBroken if it is not HTTP."""
        answer, splitter = self._answer, self._splitter
        answer.feed(data)
        events = self._meter.pass_on(splitter.feed(answer.take())) if answer.parts else b""
        self._verbatim = answer.at_boundary and splitter.at_boundary and self._meter.begun
        return framed(events)


def framed(data: bytes) -> bytes:
    """`data` as one HTTP/1.1 chunk; nothing for nothing."""
    return b"%x\r\n%s\r\n" % (len(data), data) if data else b""


def _whole_chunks(data: bytes) -> bool:
    """Whether `data` is whole chunks, one at least, each of whole events and of a usual size."""
    at, end = 0, len(data)
    while at < end:
        line_end = data.find(b"\r\n", at, at + 5)
        size = _SIZES.get(data[at:line_end])
        if size is None or line_end < 0:  # a read may end within a size line: there is no end to count from then
            return False
        at = line_end + 4 + size
        if data[at - 4 : at] != _END_OF_EVENT_AND_CHUNK:
            return False
    return 0 < at == end
