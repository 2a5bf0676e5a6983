"""Where the splitter cuts. That it holds for any stream is in tests/property/test_framing.py."""

import pytest

from sluicegate.dialects.sse import MAX_EVENT_BYTES, EventSplitter


def test_whole_events_come_back_as_the_same_object() -> None:
    data = b"data: 1\n\ndata: 2\n\n"
    assert EventSplitter().feed(data) is data


def test_an_incomplete_rest_waits() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: 1\n\ndata: 2") == b"data: 1\n\n"
    assert splitter.held == b"data: 2"
    assert splitter.feed(b"\n") == b""
    assert splitter.feed(b"\ndata: 3") == b"data: 2\n\n"
    assert splitter.held == b"data: 3"
    assert splitter.feed(b"\n\n") == b"data: 3\n\n"
    assert splitter.held == b""


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n", b"\r\r\n", b"\n\r"])
def test_every_kind_of_blank_line_ends_an_event(end: bytes) -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: 1" + end + b"data") == b"data: 1" + end
    assert splitter.held == b"data"


def test_one_crlf_is_not_a_blank_line() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: 1\r\ndata: 2\r") == b""
    assert splitter.feed(b"\n") == b""
    assert splitter.feed(b"\r\n") == b"data: 1\r\ndata: 2\r\n\r\n"


def test_crlf_split_at_the_boundary() -> None:
    """A CRLF that is split between two reads leaves nothing behind."""
    splitter = EventSplitter()
    assert splitter.feed(b"data: 1\r\n\r") == b"data: 1\r\n\r"
    assert splitter.feed(b"\n") == b"\n"
    assert splitter.held == b""


@pytest.mark.parametrize("blank", [b"\n", b"\r", b"\r\n"])
def test_blank_line_between_events_passes(blank: bytes) -> None:
    """A blank line between events is passed on at once."""
    splitter = EventSplitter()
    assert splitter.feed(blank + b"data: 1") == blank
    assert splitter.held == b"data: 1"


def test_nothing_in_nothing_out() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"") == b""
    assert splitter.held == b""


def is_mid_event(splitter: EventSplitter) -> bool:
    return splitter.mid_event  # behind a call, so that mypy does not take it for unchanging


def test_oversized_event_goes_out_in_pieces() -> None:
    """An event too large to hold is passed on in pieces until its end."""
    splitter = EventSplitter(max_event_bytes=10)
    assert splitter.feed(b"data: 1\n\ndata: 2345") == b"data: 1\n\n"
    assert splitter.feed(b"6") == b"data: 23456"
    assert is_mid_event(splitter)
    assert splitter.held == b""
    assert splitter.feed(b"") == b""
    assert splitter.feed(b"7\r") == b"7\r"
    assert splitter.feed(b"\n") == b"\n"
    assert is_mid_event(splitter)
    assert splitter.feed(b"\ndata: 8") == b"\n"
    assert not is_mid_event(splitter)
    assert splitter.held == b"data: 8"
    assert splitter.feed(b"\n\n") == b"data: 8\n\n"


def test_oversized_event_after_another() -> None:
    """A batch that ends one oversized event may begin the next."""
    splitter = EventSplitter(max_event_bytes=10)
    assert splitter.feed(b"data: 123456") == b"data: 123456"
    assert splitter.feed(b"\n\ndata: 123456") == b"\n\ndata: 123456"
    assert is_mid_event(splitter)
    assert splitter.feed(b"\n\n") == b"\n\n"
    assert not is_mid_event(splitter)


def test_batch_may_exceed_the_bound() -> None:
    """The bound holds for one event, not for a batch of whole events."""
    data = b"data: 1\n\n" * (MAX_EVENT_BYTES // 4)
    splitter = EventSplitter()
    assert splitter.feed(data + b"data") == data
    assert splitter.held == b"data"


def test_repr_says_what_is_held() -> None:
    splitter = EventSplitter(max_event_bytes=4)
    splitter.feed(b"abc")
    assert repr(splitter) == "<EventSplitter holding 3 of at most 4 bytes, mid_event=False>"
