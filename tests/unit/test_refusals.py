"""Error answers: one place makes them, and the same refusal looks the same on every way out."""

import json

import pytest

from sluicegate import refusals
from sluicegate.exchange import Dialect, Headers
from sluicegate.outcome import Outcome, Refusal

FULL = Refusal(Outcome.SHED_QUEUE_FULL, 429, "Retry after 7 s.", retry_after_s=7)


def test_answer_carries_outcome_and_retry_after() -> None:
    made = refusals.answer(Dialect.CHAT, FULL)
    assert made.status == 429
    assert made.headers == [
        (b"content-type", b"application/json"),
        (b"x-sluicegate-outcome", b"shed_queue_full"),
        (b"retry-after", b"7"),
    ]
    error = json.loads(made.body)["error"]
    assert error == {
        "message": "Retry after 7 s.",
        "type": "rate_limit_error",
        "param": None,
        "code": "shed_queue_full",
    }


@pytest.mark.parametrize(("seconds", "told"), [(None, False), (1, False), (60, False), (61, True), (3600, True)])
def test_a_long_wait_is_not_retried_by_the_client(seconds: int | None, told: bool) -> None:
    refusal = Refusal(Outcome.SHED_QUEUE_TIMEOUT, 503, "Later.", retry_after_s=seconds)
    for dialect in Dialect:
        headers = refusals.answer(dialect, refusal).headers
        assert ((b"x-should-retry", b"false") in headers) is told


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([(b"retry-after", b"33")], [(b"retry-after", b"33"), (b"x-should-retry", b"false")]),
        ([(b"retry-after-ms", b"500")], [(b"retry-after-ms", b"500"), (b"x-should-retry", b"false")]),
        ([(b"x-should-retry", b"true")], [(b"x-should-retry", b"true"), (b"retry-after", b"90")]),
    ],
)
def test_an_engines_word_about_a_retry_counts(fields: Headers, expected: Headers) -> None:
    refusal = Refusal(Outcome.ENGINE_ERROR, 503, "No.", retry_after_s=90, headers=fields)
    assert refusals.answer(Dialect.CHAT, refusal).headers[2:] == expected


def test_code_replaces_the_outcome_for_programs() -> None:
    refusal = Refusal(Outcome.INVALID, 404, "No such route.", code="not_found")
    made = refusals.answer(Dialect.CHAT, refusal)
    assert json.loads(made.body)["error"]["code"] == "not_found"
    assert (b"x-sluicegate-outcome", b"invalid") in made.headers


def test_closing_response_is_the_same_answer_with_a_head() -> None:
    refusal = Refusal(Outcome.SHED_BUSY, 503, "Too many connections (limit 3). Retry later.", retry_after_s=1)
    head, _, body = refusals.closing_response(Dialect.CHAT, refusal).partition(b"\r\n\r\n")
    made = refusals.answer(Dialect.CHAT, refusal)
    assert body == made.body
    assert json.loads(body)["error"]["type"] == "service_unavailable_error"
    line, *fields = head.split(b"\r\n")
    assert line == b"HTTP/1.1 503 Service Unavailable"
    assert fields == [
        b"connection: close",
        *(b"%s: %s" % field for field in made.headers),
        b"content-length: %d" % len(body),
    ]


def test_last_event_ends_a_stream_in_its_dialect() -> None:
    refusal = Refusal(Outcome.TIMEOUT_IDLE, 504, "The engine sent nothing for 30 s.")
    assert refusals.last_event(Dialect.CHAT, refusal, 0).startswith(b'data: {"error":')
    assert refusals.last_event(Dialect.MESSAGES, refusal, 0).startswith(b"event: error\ndata: ")
    event = refusals.last_event(Dialect.RESPONSES, refusal, 41)
    assert json.loads(event.split(b"data: ")[1])["sequence_number"] == 41
