"""The splicer: for every split of the bytes the client gets what it would have got directly, and nothing but that."""

import json
from collections.abc import Iterable

import pytest

from sluicegate.account.meter import StreamMeter
from sluicegate.dialects.sse import MAX_EVENT_BYTES, EventSplitter
from sluicegate.exchange import Dialect
from sluicegate.relay.connection import Answer, EngineBroken
from sluicegate.relay.splice import Splicer, framed
from tests.unit.relay.framing import (
    FINAL_FRAME,
    HEAD,
    STAMP,
    STREAMS,
    RecordedStream,
    body_of,
    fed,
    h11_body,
    payload,
    without_additions,
)

TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"

by_name = pytest.mark.parametrize("stream", STREAMS, ids=repr)
asked_or_not = pytest.mark.parametrize("asked", [False, True], ids=["hidden", "asked"])


def open_splicer(dialect: Dialect = Dialect.CHAT, *, asked: bool = False, head: bytes = HEAD) -> Splicer:
    return Splicer(Answer(head), EventSplitter(), StreamMeter(dialect, asked, lambda: 2.0, 1.0))


def splice(stream: RecordedStream, parts: Iterable[bytes], *, asked: bool) -> bytes:
    """The client's bytes for `parts`, the end of the body included."""
    splicer = open_splicer(stream.dialect, asked=asked, head=stream.head)
    out = b"".join([fed(splicer, part) for part in parts])
    assert splicer.complete
    assert splicer.healthy
    return out + splicer.closing()


def check_whole(stream: RecordedStream, out: bytes, *, asked: bool) -> None:
    body = body_of(out)
    assert without_additions(body) == stream.visible(len(stream.events), asked=asked)
    stamped = asked and stream.usage_at is not None
    assert len(STAMP.findall(body)) == stamped
    assert bool(FINAL_FRAME.search(body)) is not stamped


@pytest.mark.parametrize(
    ("stream", "asked"),
    [(stream, False) for stream in STREAMS] + [(stream, True) for stream in STREAMS if stream.usage_at is not None],
    ids=str,
)
def test_two_pieces_whatever_the_byte_between_them(stream: RecordedStream, asked: bool) -> None:
    """After the first piece, every whole event in it has gone out, in whole chunks, and nothing else."""
    raw = stream.raw
    arrived = stream.arrived()
    for cut in range(len(raw) + 1):
        splicer = open_splicer(stream.dialect, asked=asked, head=stream.head)
        first = fed(splicer, raw[:cut])
        seen = STAMP.sub(b"", payload(first))
        assert seen == stream.visible(arrived[cut], asked=asked), cut
        out = first + fed(splicer, raw[cut:]) + splicer.closing()
        assert without_additions(body_of(out)) == stream.visible(len(stream.events), asked=asked), cut


@asked_or_not
@by_name
def test_byte_by_byte(stream: RecordedStream, asked: bool) -> None:
    splicer = open_splicer(stream.dialect, asked=asked, head=stream.head)
    out = b""
    for count, arrived in enumerate(stream.arrived()[1:], 1):
        out += fed(splicer, stream.raw[count - 1 : count])
        assert STAMP.sub(b"", payload(out)) == stream.visible(arrived, asked=asked), count
    check_whole(stream, out + splicer.closing(), asked=asked)


@asked_or_not
@by_name
def test_in_one_piece_and_read_by_another_parser(stream: RecordedStream, asked: bool) -> None:
    out = splice(stream, [stream.raw], asked=asked)
    check_whole(stream, out, asked=asked)
    assert h11_body(out) == body_of(out)


@by_name
def test_chunk_by_chunk_the_framing_is_the_engines_own(stream: RecordedStream) -> None:
    """What vLLM sends as it sends it: all but the hidden usage chunk and the end is verbatim."""
    kept = [framed(event) for rank, event in enumerate(stream.events) if rank != stream.usage_at]
    assert stream.raw == b"".join(framed(event) for event in stream.events) + b"0\r\n\r\n"
    out = splice(stream, [*map(framed, stream.events), b"0\r\n\r\n"], asked=False)
    assert out.startswith(b"".join(kept))
    rest = body_of(out[len(b"".join(kept)) :])
    assert FINAL_FRAME.fullmatch(rest)
    frame = json.loads(rest.removeprefix(b": sluicegate "))
    assert frame["latency_s"] == 1.0


@pytest.mark.parametrize(
    "foreign",
    [
        b"%X\r\n%s\r\n",
        b"000%x\r\n%s\r\n",
        b"%x;a=b\r\n%s\r\n",
        b'%x;a="b"\r\n%s\r\n',
    ],
)
def test_framing_that_is_not_vllms_is_put_in_ours(foreign: bytes) -> None:
    event = b"data: " + b"x" * 180 + b"\n\n"  # 0xbc bytes: upper and lower case differ
    splicer = open_splicer()
    assert fed(splicer, framed(TOKEN)) == framed(TOKEN)
    assert fed(splicer, foreign % (len(event), event)) == framed(event)
    assert fed(splicer, framed(event)) == framed(event)


@pytest.mark.parametrize("trailers", [b"", b"x-checksum: 1\r\n", b"x-checksum: 1\r\nx-more: 2\r\n"])
def test_end_of_the_body_cut_anywhere(trailers: bytes) -> None:
    """The end is recognized with and without trailers, wherever a read cuts it."""
    end = b"0\r\n" + trailers + b"\r\n"
    for cut in range(len(end) + 1):
        splicer = open_splicer()
        assert fed(splicer, framed(TOKEN) + framed(DONE)) == framed(TOKEN + DONE)
        complete = []
        for part in (b"", end[:cut], end[cut:]):
            assert fed(splicer, part) == b""
            complete.append(splicer.complete)
        assert complete == [False, cut == len(end), True]
        assert splicer.healthy


def test_a_token_is_passed_on_without_a_copy() -> None:
    splicer = open_splicer()
    fed(splicer, framed(TOKEN))
    for data in (framed(TOKEN), framed(TOKEN) * 20, framed(b": keep-alive\n\n"), framed(TOKEN * 2)):
        assert fed(splicer, data) is data


def test_partial_event_over_chunks_is_held_back() -> None:
    """A read that ends in an event that spans chunks holds that event back."""
    splicer = open_splicer()
    assert fed(splicer, framed(TOKEN)) == framed(TOKEN)
    assert fed(splicer, framed(TOKEN) + framed(TOKEN[:9])) == framed(TOKEN)
    assert fed(splicer, framed(TOKEN[9:])) == framed(TOKEN)
    assert fed(splicer, framed(TOKEN)) == framed(TOKEN)


def test_size_line_cut_by_a_read() -> None:
    """Counted from the missing line end, the second chunk would seem to end where the first one does: for ever."""
    first, second = (b"data: " + b"x" * size + b"\n\n" for size in (180, 183))
    splicer = open_splicer()
    fed(splicer, framed(TOKEN))
    assert fed(splicer, framed(first) + framed(second)[:3]) == framed(first)
    assert fed(splicer, framed(second)[3:]) == framed(second)


def test_half_event_at_a_line_end_is_held_back() -> None:
    """A chunk that ends with a line but not with an event is held until its rest comes."""
    splicer = open_splicer()
    fed(splicer, framed(TOKEN))
    assert fed(splicer, framed(b"event: x\n")) == b""
    assert fed(splicer, framed(b"data: y\n\n")) == framed(b"event: x\ndata: y\n\n")


def test_text_that_looks_like_chunks_is_text() -> None:
    """Read apart from its size line, such a chunk could pass for another one."""
    event = b"4\r\nab\n\n"
    splicer = open_splicer()
    fed(splicer, framed(TOKEN))
    size_line, rest = framed(event)[:3], framed(event)[3:]
    assert fed(splicer, size_line) == b""
    assert fed(splicer, rest) == framed(event)


@pytest.mark.parametrize("cut", range(len(framed(TOKEN))))
def test_it_takes_over_in_the_middle_of_a_chunk(cut: int) -> None:
    answer, splitter = Answer(HEAD), EventSplitter()
    meter = StreamMeter(Dialect.CHAT, False, lambda: 2.0, 1.0)
    answer.feed(framed(TOKEN) + framed(TOKEN)[:cut])
    assert meter.pass_on(splitter.feed(answer.take())) == (TOKEN if cut < 4 + len(TOKEN) else TOKEN * 2)
    splicer = Splicer(answer, splitter, meter)
    assert fed(splicer, framed(TOKEN)[cut:]) == (framed(TOKEN) if cut < 4 + len(TOKEN) else b"")
    assert fed(splicer, framed(TOKEN)) == framed(TOKEN)


def test_takeover_within_an_event() -> None:
    """The splicer takes over in the middle of an event, between two chunks."""
    answer, splitter = Answer(HEAD), EventSplitter()
    meter = StreamMeter(Dialect.CHAT, False, lambda: 2.0, 1.0)
    answer.feed(framed(TOKEN) + framed(TOKEN[:10]))
    assert meter.pass_on(splitter.feed(answer.take())) == TOKEN
    splicer = Splicer(answer, splitter, meter)
    assert fed(splicer, framed(TOKEN[10:])) == framed(TOKEN)


def test_usage_chunk_is_taken_out_whole() -> None:
    """The usage chunk is taken out of the middle of a read."""
    splicer = open_splicer()
    assert fed(splicer, framed(TOKEN)) == framed(TOKEN)
    out = fed(splicer, framed(TOKEN) + framed(USAGE) + framed(DONE) + b"0\r\n\r\n")
    assert payload(out) == TOKEN + DONE
    assert splicer.healthy
    frame = json.loads(payload(splicer.closing().removesuffix(b"0\r\n\r\n")).removeprefix(b": sluicegate "))
    assert (frame["prompt_tokens"], frame["completion_tokens"]) == (3, 2)


def test_usage_chunk_alone_leaves_nothing() -> None:
    """A usage chunk alone in a read leaves nothing, not even an empty chunk."""
    splicer = open_splicer()
    fed(splicer, framed(TOKEN))
    assert fed(splicer, framed(USAGE)) == b""  # an empty chunk would be the end of the body


def test_only_the_first_done_passes() -> None:
    splicer = open_splicer()
    assert payload(fed(splicer, framed(TOKEN) + framed(DONE) + framed(DONE))) == TOKEN + DONE
    assert fed(splicer, framed(DONE) + b"0\r\n\r\n") == b""
    assert splicer.healthy


@pytest.mark.parametrize("size", [4095, 4096, 65_536, 70_000, MAX_EVENT_BYTES - 20])
@pytest.mark.parametrize("read", [1000, 65_536])
def test_a_large_event_goes_out_whole(size: int, read: int) -> None:
    event = b'data: {"x":"%s"}\n\n' % (b"x" * (size - 16))
    assert len(event) == size
    splicer = open_splicer()
    fed(splicer, framed(TOKEN))
    raw = framed(event)
    outs = [fed(splicer, raw[at : at + read]) for at in range(0, len(raw), read)]
    assert payload(b"".join(outs)) == event
    assert sum(map(bool, outs)) == 1
    assert fed(splicer, framed(TOKEN)) == framed(TOKEN)


def test_oversized_event_goes_out_in_pieces() -> None:
    """An event above the bound goes out in pieces, and the stream goes on."""
    event = b"data: %s\n\n" % (b"x" * (2 * MAX_EVENT_BYTES))
    splitter = EventSplitter()
    splicer = Splicer(Answer(HEAD), splitter, StreamMeter(Dialect.CHAT, False, lambda: 2.0, 1.0))
    fed(splicer, framed(TOKEN))
    raw = framed(event)
    sizes = []
    out = b""
    for at in range(0, len(raw), 65_536):
        out += fed(splicer, raw[at : at + 65_536])
        sizes.append(min(at + 65_536, len(raw)) - len(out))
    assert payload(out) == event
    assert max(sizes) <= MAX_EVENT_BYTES + 65_536
    assert not splitter.mid_event
    assert fed(splicer, framed(TOKEN)) == framed(TOKEN)


@pytest.mark.parametrize("garbage", [b"zz\r\n", b"-1\r\n", b"\r\n", b" 5\r\n", b"5\rx", b"0x5\r\n", b"5 \x00\r\n"])
@pytest.mark.parametrize("before", [b"", framed(TOKEN)], ids=["alone", "behind an event"])
def test_what_is_no_chunk_is_no_answer(garbage: bytes, before: bytes) -> None:
    splicer = open_splicer()
    fed(splicer, framed(TOKEN))
    with pytest.raises(EngineBroken, match="not HTTP"):
        fed(splicer, before + garbage)


@pytest.mark.parametrize(
    "raw", [b"5\r\nabcdefg\r\n", framed(TOKEN)[:-2] + b"xx"], ids=["longer than it says", "without its line end"]
)
def test_a_chunk_that_does_not_end_where_it_should(raw: bytes) -> None:
    splicer = open_splicer()
    fed(splicer, framed(TOKEN))
    with pytest.raises(EngineBroken):
        fed(splicer, raw + framed(TOKEN))


def test_early_end_is_complete_but_not_healthy() -> None:
    """A body that ends before its stream does is complete but not healthy."""
    splicer = open_splicer()
    assert fed(splicer, framed(TOKEN) + framed(TOKEN[:-1]) + b"0\r\n\r\n") == framed(TOKEN)
    assert splicer.complete
    assert not splicer.healthy


def test_surplus_spoils_the_connection() -> None:
    """Bytes after the end of the body reach nobody, and the connection is not used again."""
    answer = Answer(HEAD)
    splicer = Splicer(answer, EventSplitter(), StreamMeter(Dialect.CHAT, False, lambda: 2.0, 1.0))
    fed(splicer, framed(TOKEN))
    assert payload(fed(splicer, framed(DONE) + b"0\r\n\r\n" + b"HTTP/1.1 200 OK\r\n\r\n")) == DONE
    assert splicer.complete
    assert answer.surplus


def test_trailers_are_not_headers() -> None:
    answer = Answer(HEAD)
    answer.feed(framed(TOKEN) + b"0\r\ncontent-encoding: gzip\r\n\r\n")
    assert answer.complete
    assert answer.head.header(b"content-encoding") == b""
