"""What a request's head must be: an id that is safe to log, and one length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from sluicegate.accept.intake import declared_length, make_request, new_id, request_id, too_large, too_slow
from sluicegate.config.schema import LimitConfig
from sluicegate.dialects.routes import ENDPOINTS
from sluicegate.exchange import Headers
from sluicegate.outcome import Outcome, Refusal
from tests.harness import CHAT, SimBody

LIMITS = LimitConfig(body_max_bytes=1024)


@pytest.mark.parametrize("sane", ["a", "0", "A-Z_a.z:9", "x" * 128])
def test_a_sane_id_is_taken_over(sane: str) -> None:
    assert request_id([(b"accept", b"*/*"), (b"x-request-id", sane.encode())]) == sane


@pytest.mark.parametrize(
    "insane", [b"", b" ", b"a b", b"a\nb", b"a\x00", b"x" * 129, "ü".encode(), b'"', b"a;b", b"a/b", b"<b>", b"a\n"]
)
def test_any_other_id_is_replaced(insane: bytes) -> None:
    made = request_id([(b"x-request-id", insane)])
    assert len(made) == 32
    assert int(made, 16) >= 0


def test_without_an_id_each_request_gets_a_new_one() -> None:
    assert request_id([]) != request_id([]) != new_id()


def test_the_first_sane_one_counts() -> None:
    assert request_id([(b"x-request-id", b"not sane"), (b"x-request-id", b"b"), (b"x-request-id", b"c")]) == "b"


@given(st.binary(max_size=200))
def test_request_id_can_be_logged(value: bytes) -> None:
    """Whatever the client sends as an ID, the one that is used is short, printable and free of quotes."""
    used = request_id([(b"x-request-id", value)])
    assert 1 <= len(used) <= 128
    assert used.isascii()
    assert used.isprintable()
    assert not set(used) & set(" \"'\\{}<>;/")


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ([], 0),
        ([(b"content-length", b"0")], 0),
        ([(b"content-length", b"1024")], 1024),
        ([(b"content-length", b"0000000010")], 10),
        ([(b"content-length", b"7"), (b"content-length", b"7")], 7),
        ([(b"transfer-encoding", b"chunked")], None),
        ([(b"transfer-encoding", b"Chunked")], None),
    ],
)
def test_a_length_that_is_declared(headers: Headers, length: int | None) -> None:
    assert declared_length(headers, LIMITS) == length


CHUNKED = (b"transfer-encoding", b"chunked")


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"7"), (b"content-length", b"8")],
        [(b"content-length", b"7"), (b"content-length", b"07")],
        [(b"content-length", b"7"), CHUNKED],
        [CHUNKED, (b"content-length", b"7")],
        [CHUNKED, CHUNKED],
        [(b"transfer-encoding", b"gzip, chunked")],
        [(b"transfer-encoding", b"identity")],
        [(b"transfer-encoding", b"")],
        [(b"content-length", b"")],
        [(b"content-length", b"-1")],
        [(b"content-length", b"+1")],
        [(b"content-length", b"1 1")],
        [(b"content-length", b"0x10")],
        [(b"content-length", b"1_0")],
        [(b"content-length", "٣".encode())],
        [(b"content-length", b"\xb2")],
    ],
)
def test_two_lengths_or_none_is_refused(headers: Headers) -> None:
    with pytest.raises(Refusal) as caught:
        declared_length(headers, LIMITS)
    assert (caught.value.outcome, caught.value.status) == (Outcome.INVALID, 400)


@pytest.mark.parametrize("length", [b"1025", b"9" * 15, b"9" * 16, b"9" * 5000, b"0" * 16])
def test_length_over_the_limit_is_too_large(length: bytes) -> None:
    """A length over the limit, or with too many digits, is too large."""
    with pytest.raises(Refusal) as caught:
        declared_length([(b"content-length", length)], LIMITS)
    assert (caught.value.outcome, caught.value.status) == (Outcome.TOO_LARGE, 413)
    assert "1024 bytes" in caught.value.message


def test_refusals_name_their_limit() -> None:
    assert repr(too_large(LIMITS)) == (
        "Refusal(too_large, 413, 'The request body is larger than the 1024 bytes that this gateway takes.', "
        "retry_after_s=None)"
    )
    slow = too_slow(2.5)
    assert (slow.outcome, slow.status, slow.message) == (
        Outcome.INVALID,
        408,
        "The request body did not arrive within 2.5 s.",
    )


async def test_request_has_its_time_and_headers(mock_clock: MockClock) -> None:
    """A request knows when it arrived, and finds a header by its name."""
    mock_clock.jump(12.5)
    headers: Headers = [(b"x-request-id", b"mine"), (b"accept", b"a"), (b"accept", b"b")]
    request = make_request(ENDPOINTS[CHAT], headers, SimBody(b""))
    assert (request.id, request.received_at) == ("mine", 12.5)
    assert request.header(b"accept") == b"a"
    assert request.header(b"cookie") is None
