"""Whatever comes for a head: the fast way takes none that the judge of the ordinary way refuses, nor reads another."""

import contextlib

import h11
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sluicegate.accept.http1.grammar import Malformed, check_head
from sluicegate.accept.http1.head import Head

LINE = b"POST /v1/chat/completions HTTP/1.1"

#: Between them everything that parsers disagree about.
ODD = st.sampled_from(
    [b" ", b"\t", b"\r", b"\n", b"\r\n", b"\0", b"\x0b", b"\x7f", b"\xff", b":", b",", b"/", b"@", b"+", b"0"]
)

FIELDS = st.sampled_from(
    [
        b"host: gate",
        b"Host:gate:80",
        b"host: a b",
        b"host:",
        b"content-length: 2",
        b"Content-Length: 02",
        b"content-length: 2, 2",
        b"content-length: -1",
        b"transfer-encoding: chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"connection: close",
        b"expect: 100-continue",
        b"x-y: z",
        b"x: a\r\n b",
        b": y",
        b"x : y",
    ]
)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """A head on a hot route, mutilated in up to three places, up to its first blank line."""
    line = LINE.replace(b" H", b"?a=b H") if draw(st.booleans()) else LINE
    data = b"\r\n".join([line, *draw(st.lists(FIELDS, max_size=5))])
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(ODD) + data[at + draw(st.integers(0, 1)) :]
    return data.split(b"\r\n\r\n", 1)[0] + b"\r\n\r\n"


@settings(deadline=None, max_examples=500)
@given(heads())
@example(LINE + b"\r\n\r\n")
@example(LINE + b"\r\nhost: gate\r\ncontent-length: 2\r\n\r\n")
def test_fast_parser_agrees_with_h11(data: bytes) -> None:
    """The fast parser accepts only heads that h11 reads in the same way."""
    head = Head.parse(data)
    if head is None:
        return
    check_head(data)
    ordinary = h11.Connection(h11.SERVER)
    ordinary.receive_data(data)
    event = ordinary.next_event()
    assert isinstance(event, h11.Request)
    assert [(name, value.rstrip(b" \t")) for name, value in head.headers] == list(event.headers)
    assert head.endpoint.path.encode() + head.query == event.target


@settings(deadline=None)
@given(st.binary(max_size=300) | heads())
def test_the_judge_says_no_or_nothing(data: bytes) -> None:
    with contextlib.suppress(Malformed):
        check_head(data)
