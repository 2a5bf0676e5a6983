"""What there is to know of a dialect; the base is what OpenAI's dialects share, and one file for each says the rest."""

from typing import Any, Protocol

import msgspec
from msgspec import Raw

from .usage import Usage, counts, usage_inside, usage_of


class Chunk(msgspec.Struct):
    """The members of an event's data that matter in any dialect; empty where absent."""

    choices: Raw = Raw()
    delta: Raw = Raw()
    usage: Raw = Raw()
    error: Raw = Raw()
    message: Raw = Raw()
    response: Raw = Raw()
    sequence_number: Any = None
    type: Any = None

    @property
    def kind(self) -> str:
        return self.type if isinstance(self.type, str) else ""


def says_something(raw: Raw) -> bool:
    """Whether a member holds anything: `false`, 0, "", {} and what is made of nothing else, as null, hold nothing.

    Gateways and older engines put an empty `error` into every chunk of a healthy stream.
    """
    data = bytes(raw)
    if data in _NOTHING:
        return False
    try:
        return _holds(_ANY.decode(data))
    except (ValueError, RecursionError):
        return True  # too deep or too odd to be empty


def _holds(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, dict):
        return any(map(_holds, value.values()))
    return any(map(_holds, value)) if isinstance(value, list) else bool(value)


_NOTHING = frozenset({b"", b"null"})
_ANY = msgspec.json.Decoder()


class Heard(Protocol):
    """What a stream has said so far, which `Grammar.hear` writes. `prompt`: prompt tokens that came ahead of the usage.

    `sequence_number`: that of the latest event, in a dialect that counts its events.
    """

    usage: Usage | None
    prompt: int | None
    ended: bool
    failed: bool
    sequence_number: int | None


class Grammar:
    """One dialect. Stateless.

    `usage_on_request`: a stream has its usage only if `stream_options.include_usage` asks for it, in a chunk of its
    own without choices. The gate always asks, so that chunk is the gate's where the client did not.
    `ends_with_done`: the end of a stream is `[DONE]`; else an event that `hear` knows.
    `marker`: bytes that every event holds which carries usage or is the end, other than `[DONE]`.
    `numbered`: its events are, by a member `sequence_number`.
    `without_output`: names of events that come before there is any output.
    `ping`: an event that says nothing, which the gateway may send while a stream waits.
    """

    usage_on_request = False
    ends_with_done = True
    marker = b'"usage"'
    numbered = False
    without_output: tuple[str, ...] = ()
    ping = b": ping\n\n"

    def usage(self, raw: Raw) -> Usage | None:
        """A usage object; None where it is absent or not understood."""
        found = counts(raw)
        return usage_of(found.prompt_tokens, found.completion_tokens)

    def answer_usage(self, body: bytes) -> Usage | None:
        """The usage in a whole (not streamed) answer; None where there is none or it is not understood."""
        return self.usage(usage_inside(body))

    def hear(self, heard: Heard, kind: str, chunk: Chunk) -> None:
        """Note what an event says, beyond a usage chunk, `[DONE]` and an error. `kind`: its name, else its type."""

    def error_object(self, status: int, message: str, code: str) -> dict[str, Any]:
        """The JSON object of an answer with HTTP status `status` (400-599). `code` is for programs."""
        return {"error": {"message": message, "type": _type(status), "param": None, "code": code}}

    def error_body(self, status: int, message: str, code: str) -> bytes:
        """The JSON body of such an answer."""
        return msgspec.json.encode(self.error_object(status, message, code))

    def error_event(self, status: int, message: str, code: str, sequence_number: int) -> bytes:  # noqa: ARG002
        """The event that ends a broken stream, blank line included. Nothing follows it, no `[DONE]` either.

        `status`: the HTTP status that the error would have had before the stream began. `sequence_number`: the number
        of the event in its stream, in a dialect that counts its events.
        """
        return b"data: " + self.error_body(status, message, code) + b"\n\n"


# OpenAI's "Error codes" page: `slow_down` (429) has the type rate_limit_error, `server_is_overloaded` (503)
# service_unavailable_error; a wrong key (401) and every other 4xx are an invalid_request_error.
_TYPES = {429: "rate_limit_error", 503: "service_unavailable_error"}


def _type(status: int) -> str:
    return _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
