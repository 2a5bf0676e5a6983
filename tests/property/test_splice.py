"""However the engine frames its stream and however it comes in: the client gets it, soundly framed and in time."""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from sluicegate.account.meter import StreamMeter
from sluicegate.dialects.sse import MAX_EVENT_BYTES, EventSplitter
from sluicegate.exchange import Dialect
from sluicegate.relay.connection import Answer
from sluicegate.relay.splice import Splicer, framed
from tests.unit.relay.framing import (
    HEAD,
    STAMP,
    STREAMS,
    RecordedStream,
    body_of,
    chunks_of,
    fed,
    h11_body,
    payload,
    without_additions,
)

USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"

# Time says nothing here, and a machine that is busy elsewhere must not fail a test.
untimed = settings(deadline=None)


@dataclass(frozen=True)
class Framed:
    """A stream of `events` on the wire: `raw` is its chunked body, `reads` the pieces in which it comes in.

    `handover`: after how many reads the splicer takes over from the ordinary way.
    """

    events: tuple[bytes, ...]
    raw: bytes
    reads: tuple[bytes, ...]
    handover: int
    asked: bool
    bound: int
    #: Where each chunk's payload lies in `raw`.
    places: tuple[tuple[int, int], ...]

    def __repr__(self) -> str:
        sizes = [len(event) for event in self.events]
        raw = self.raw if len(self.raw) < 2000 else self.raw[:500] + b"..." + self.raw[-500:]
        reads = [len(read) for read in self.reads]
        return f"Framed(events {sizes}, reads {reads}, {self.handover=}, {self.asked=}, {self.bound=}, {raw!r})"

    def arrived(self, count: int) -> int:
        """How many bytes of the body there are in the first `count` of `raw`."""
        return sum(max(0, min(end, count) - start) for start, end in self.places)

    def visible(self, count: int) -> bytes:
        """What a client may see of the first `count` events."""
        return b"".join(event for event in self.events[:count] if self.asked or event is not USAGE)


small = st.integers(1, 300)
# Around what the tables and buffers on the way hold: sizes looked up, bytes per read, the largest event held back.
large = st.sampled_from([4080, 4095, 4096, 65_500, 65_536, 70_000])
huge = st.just(MAX_EVENT_BYTES + 10)
makers = st.sampled_from(
    [
        lambda size: b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % (b"x" * size),
        lambda size: b": %s\n\n" % (b"c" * size),
        lambda size: b'event: new\nid: 7\ndata: {"padding":\ndata: "%s"}\n\n' % (b"p" * size),
        lambda size: b"data: %s\n\n" % ("東".encode() * (1 + size // 3)),
        lambda size: b"%x\r\n%s\n\n" % (size + 2, b"z" * size),  # not SSE that means anything: it looks like a chunk
    ]
)


@st.composite
def event_lists(draw: st.DrawFn) -> tuple[bytes, ...]:
    sizes = draw(st.lists(small, min_size=1, max_size=12))
    if draw(st.integers(0, 3)) == 0:
        sizes.insert(draw(st.integers(0, len(sizes))), draw(large))
    if draw(st.integers(0, 49)) == 0:
        sizes.append(draw(huge))
    made = [draw(makers)(size) for size in sizes]
    return (*made, *([USAGE] if draw(st.booleans()) else []), DONE)


odd_size_lines = st.sampled_from([b"%x\r\n", b"%X\r\n", b"0%x\r\n", b"000000%X\r\n", b'%x;a="b c"\r\n'])
trailer_lists = st.lists(st.sampled_from([b"x-checksum: 1\r\n", b"x: \r\n", b"server-timing: a;dur=1\r\n"]), max_size=2)
last_chunks = st.sampled_from([b"0\r\n", b"000\r\n", b"0;last\r\n"])


def cuts(draw: st.DrawFn, length: int, most: int) -> list[int]:
    inside = draw(st.lists(st.integers(0, length), max_size=most))
    return sorted({0, *inside, length})


@st.composite
def framings(draw: st.DrawFn) -> Framed:
    events = draw(event_lists())
    body = b"".join(events)
    ends = [0, *accumulate(map(len, events))]  # a chunk for each event, as vLLM has it
    size_lines: st.SearchStrategy[bytes] = st.just(b"%x\r\n")
    match draw(
        st.sampled_from(["vLLM's", "vLLM's", "several events to a chunk", "chunks that know nothing of events"])
    ):
        case "several events to a chunk":
            ends = sorted({0, len(body), *draw(st.sets(st.sampled_from(ends)))})
        case "chunks that know nothing of events":
            ends = cuts(draw, len(body), 12)
            size_lines = odd_size_lines
    raw = b""
    places = []
    for start, end in pairwise(ends):
        raw += draw(size_lines) % (end - start)
        places.append((len(raw), len(raw) + end - start))
        raw += body[start:end] + b"\r\n"
    chunk_ends = [end + 2 for _, end in places]
    raw += draw(last_chunks) + b"".join(draw(trailer_lists)) + b"\r\n"
    match draw(st.sampled_from(["chunk by chunk", "some chunks", "at seams", "anywhere", "regular"])):
        case "chunk by chunk":
            at = sorted({0, len(raw), *chunk_ends})
        case "some chunks":
            at = sorted({0, len(raw), *draw(st.sets(st.sampled_from(chunk_ends)))})
        case "at seams":  # also between a size line and its chunk, and between a chunk and its line end
            at = sorted({0, len(raw), *draw(st.sets(st.sampled_from([*chain(*places), *chunk_ends])))})
        case "anywhere":
            at = cuts(draw, len(raw), 12)
        case _:
            read = draw(st.sampled_from([1, 2, 7, 100, 4096, 65_536]) if len(raw) < 8000 else st.just(65_536))
            at = [*range(0, len(raw), read), len(raw)]
    reads = tuple(raw[start:end] for start, end in pairwise(at))
    handover = draw(st.integers(0, len(reads) - 1))
    bound = draw(st.sampled_from([200, 5000, MAX_EVENT_BYTES]))
    return Framed(events, raw, reads, handover, draw(st.booleans()), bound, tuple(places))


class Line:
    """relay/forward.py's stream without its sockets: the first reads the ordinary way, the rest spliced."""

    def __init__(self, case: Framed) -> None:
        self.answer = Answer(HEAD)
        self.splitter = EventSplitter(case.bound)
        self.meter = StreamMeter(Dialect.CHAT, case.asked, lambda: 2.0, 1.0)
        self._left = case.handover
        self._splicer: Splicer | None = None

    def feed(self, data: bytes) -> bytes:
        self._left -= 1
        if self._left >= 0:
            self.answer.feed(data)
            return framed(self.meter.pass_on(self.splitter.feed(self.answer.take())))
        self._splicer = self._splicer or Splicer(self.answer, self.splitter, self.meter)
        return fed(self._splicer, data)

    def closing(self) -> bytes:
        assert self._splicer is not None
        assert self._splicer.complete
        assert self._splicer.healthy
        return self._splicer.closing()


@untimed
@given(framings())
def test_any_framing_in_any_pieces(case: Framed) -> None:
    line = Line(case)
    ends = list(accumulate(map(len, case.events)))
    oversized = max(map(len, case.events)) > case.bound
    out, came, seen = b"", 0, b""
    for read in case.reads:
        out = line.feed(read)
        came += len(read)
        seen += STAMP.sub(b"", payload(out))  # payload: whole chunks only, each time
        whole = bisect_right(ends, case.arrived(came))
        if not oversized:  # every event that is there has gone out, and no part of another
            assert seen == case.visible(whole)
        else:
            assert case.visible(len(ends)).startswith(seen)
            assert len(case.visible(whole)) <= len(seen)
            assert case.arrived(came) - len(seen) <= case.bound + len(USAGE)
    closing = line.closing()
    assert seen == case.visible(len(case.events))
    stamped = case.asked and USAGE in case.events
    assert (b": sluicegate " in closing) is not stamped
    assert body_of(closing) == h11_body(closing)


@untimed
@given(framings())
def test_another_parser_reads_the_same(case: Framed) -> None:
    line = Line(case)
    out = b"".join([line.feed(read) for read in case.reads]) + line.closing()
    body = h11_body(out)
    assert without_additions(body) == case.visible(len(case.events))
    assert body_of(out) == body


@st.composite
def recordings_in_pieces(draw: st.DrawFn) -> tuple[RecordedStream, bool, list[bytes]]:
    stream = draw(st.sampled_from(STREAMS))
    at = cuts(draw, len(stream.raw), 40)
    return stream, draw(st.booleans()), [stream.raw[start:end] for start, end in pairwise(at)]


@untimed
@given(recordings_in_pieces())
def test_recordings_in_any_pieces(case: tuple[RecordedStream, bool, list[bytes]]) -> None:
    stream, asked, parts = case
    arrived, came, seen = stream.arrived(), 0, b""
    splicer = Splicer(Answer(stream.head), EventSplitter(), StreamMeter(stream.dialect, asked, lambda: 2.0, 1.0))
    for part in parts:
        came += len(part)
        seen += STAMP.sub(b"", payload(fed(splicer, part)))
        assert seen == stream.visible(arrived[came], asked=asked)
    assert splicer.complete
    assert splicer.healthy
    assert without_additions(body_of(splicer.closing())) == b""


@untimed
@given(st.lists(st.binary(max_size=30), max_size=5), st.binary(max_size=20))
@example([b"1\r\n2\r\n"], b"")
def test_the_judge_of_framing_agrees_with_another_parser(chunks: list[bytes], noise: bytes) -> None:
    """`body_of` takes what h11 takes (but for extensions, zeros and the like, which the gateway never writes)."""
    raw = b"".join(map(framed, chunks)) + noise + b"0\r\n\r\n"
    try:
        body = body_of(raw)
    except ValueError:
        assert noise
        return
    assert body == h11_body(raw)
    assert b"".join(chunks_of(raw[:-5])) == body
