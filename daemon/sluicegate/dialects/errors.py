"""Errors as each dialect's own clients expect them: as the body of an answer, and as the last event of a stream."""

from typing import Any

import msgspec

from ..exchange import Dialect


def error_body(dialect: Dialect, status: int, message: str, code: str | None) -> bytes:
    """The JSON body of an answer with HTTP status `status` (400-599).

    `code` is for programs (an outcome's name); Anthropic's errors have no place for it.
    """
    return msgspec.json.encode(_error_object(dialect, status, message, code))


def error_event(dialect: Dialect, status: int, message: str, code: str | None, sequence_number: int = 0) -> bytes:
    """The event that ends a broken stream, blank line included. Nothing follows it, no `[DONE]` either.

    `status` is the HTTP status that the error would have had before the stream began. `sequence_number` is used by
    Responses alone: the number that the event has in its stream.
    """
    if dialect is Dialect.RESPONSES:
        event = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": sequence_number}
        # The documented ResponseErrorEvent has no `error`, but only on seeing one does OpenAI's client raise APIError
        # rather than hand the event to a program that may not look at it (openai 3.54, _streaming.py).
        event |= _error_object(dialect, status, message, code)
        return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"
    data = b"data: " + error_body(dialect, status, message, code) + b"\n\n"
    return b"event: error\n" + data if dialect is Dialect.MESSAGES else data


def _error_object(dialect: Dialect, status: int, message: str, code: str | None) -> dict[str, Any]:
    if dialect is Dialect.MESSAGES:
        return {"type": "error", "error": {"type": _anthropic_type(status), "message": message}}
    return {"error": {"message": message, "type": _openai_type(status), "param": None, "code": code}}


# OpenAI's "Error codes" page: `slow_down` (429) has the type rate_limit_error, `server_is_overloaded` (503)
# service_unavailable_error; a wrong key (401) and every other 4xx are an invalid_request_error.
_OPENAI_TYPES = {429: "rate_limit_error", 503: "service_unavailable_error"}


def _openai_type(status: int) -> str:
    return _OPENAI_TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")


# Anthropic's "Errors" page; timeout_error and conflict_error as in anthropic.types.shared.ErrorType (2.12).
# 503 is not on that page: its meaning here, come back later, is their 529's.
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def _anthropic_type(status: int) -> str:
    return _ANTHROPIC_TYPES.get(status) or ("api_error" if status >= 500 else "invalid_request_error")
