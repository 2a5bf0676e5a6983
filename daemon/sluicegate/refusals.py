"""The one maker of error answers: status, headers and body, or the last event of a stream, in the client's dialect."""

from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus

from .dialects.grammars import GRAMMARS
from .exchange import Dialect, Headers
from .outcome import Refusal

#: OpenAI's Node client and Anthropic's Python client ignore a Retry-After above this (seconds) and retry within 8 s.
#: They obey `x-should-retry: false`, which then tells them to leave the retry to their caller.
RETRY_AFTER_HEEDED_S = 60


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """A whole error answer, but for the fields that each connection adds (content-length, date, x-request-id)."""

    status: int
    headers: Headers
    body: bytes


def answer(dialect: Dialect, refusal: Refusal) -> ErrorAnswer:
    """The answer to a client that has got nothing yet."""
    headers: Headers = [
        (b"content-type", b"application/json"),
        (b"x-sluicegate-outcome", refusal.outcome.value.encode("ascii")),
        *refusal.headers,
    ]
    told = {name for name, _ in refusal.headers}
    seconds = refusal.retry_after_s
    if seconds is not None:
        if not told & {b"retry-after", b"retry-after-ms"}:
            headers.append((b"retry-after", b"%d" % seconds))
        if seconds > RETRY_AFTER_HEEDED_S and b"x-should-retry" not in told:
            headers.append((b"x-should-retry", b"false"))
    body = GRAMMARS[dialect].error_body(refusal.status, refusal.message, refusal.code)
    return ErrorAnswer(refusal.status, headers, body)


def last_event(dialect: Dialect, refusal: Refusal, sequence_number: int) -> bytes:
    """The event that ends a stream which has begun. `sequence_number`: the event's own, in the dialect that counts."""
    return GRAMMARS[dialect].error_event(refusal.status, refusal.message, refusal.code, sequence_number)


def closing_response(dialect: Dialect, refusal: Refusal, more: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """A whole HTTP/1.1 response that closes its connection, for a client whose request is not read."""
    made = answer(dialect, refusal)
    fields = b"".join(b"%s: %s\r\n" % field for field in (*made.headers, *more))
    phrase = HTTPStatus(made.status).phrase.encode("ascii")
    head = b"HTTP/1.1 %d %s\r\nconnection: close\r\n" % (made.status, phrase)
    return b"%s%scontent-length: %d\r\n\r\n%s" % (head, fields, len(made.body), made.body)
