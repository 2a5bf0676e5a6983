"""Messages: Anthropic's dialect."""

from typing import Any

from msgspec import Raw

from .grammar import Chunk, Grammar, Heard
from .usage import Counts, Usage, counts, usage_inside, usage_of


class Messages(Grammar):
    ends_with_done = False
    marker = b"message_"
    without_output = ("ping",)
    ping = b'event: ping\ndata: {"type": "ping"}\n\n'

    def usage(self, raw: Raw) -> Usage | None:
        found = counts(raw)
        return usage_of(_prompt(found), found.output_tokens)

    def hear(self, heard: Heard, kind: str, chunk: Chunk) -> None:
        if kind == "message_start":
            heard.prompt = _prompt(counts(usage_inside(chunk.message)))
        elif kind == "message_delta":
            found = counts(chunk.usage)
            heard.usage = usage_of(_prompt(found) or heard.prompt, found.output_tokens) or heard.usage
        elif kind == "message_stop":
            heard.ended = True

    def error_object(self, status: int, message: str, code: str) -> dict[str, Any]:  # noqa: ARG002
        """Anthropic's errors have no place for a code."""
        return {"type": "error", "error": {"type": _type(status), "message": message}}

    def error_event(self, status: int, message: str, code: str, sequence_number: int) -> bytes:
        return b"event: error\n" + super().error_event(status, message, code, sequence_number)


def _prompt(found: Counts) -> int | None:
    """Prompt tokens. Anthropic's input_tokens leave out what was read from or put into the cache."""
    if found.input_tokens is None:
        return None
    return found.input_tokens + (found.cache_read_input_tokens or 0) + (found.cache_creation_input_tokens or 0)


# Anthropic's "Errors" page; timeout_error and conflict_error as in anthropic.types.shared.ErrorType (2.12).
# 503 is not on that page: its meaning here, come back later, is their 529's.
_TYPES = {
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


def _type(status: int) -> str:
    return _TYPES.get(status) or ("api_error" if status >= 500 else "invalid_request_error")
