"""From a request's head to a Request: its id, and the checks that a head must pass. Shared by all ways in."""

import os
import re

import trio

from ..config.schema import LimitConfig
from ..exchange import Body, Dialect, Endpoint, Headers, Request, Room
from ..outcome import Outcome, Refusal

#: A client must take each piece of this size within client_stall_s: with the default of 15 s, 4 KiB/s (bytes).
PIECE = 65536

#: Request ids that are taken over from clients; anything else could forge log lines or upset the engine.
_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def request_id(headers: Headers) -> str:
    """The client's x-request-id if it is sane, else a new one of 32 hexadecimal digits."""
    for name, value in headers:
        if name == b"x-request-id" and _SANE_ID.fullmatch(value := value.rstrip(b" \t")):
            return value.decode("ascii")
    return new_id()


def new_id() -> str:
    """A new request id."""
    return os.urandom(16).hex()


def dialect_of(target: str) -> Dialect:
    """The dialect to refuse in what came for `target` and matched no route."""
    return Dialect.MESSAGES if target.startswith("/v1/messages") else Dialect.CHAT


def make_request(endpoint: Endpoint, headers: Headers, body: Body, query: bytes = b"", client: str = "") -> Request:
    """A Request that has just arrived. `headers` with names in lower case, `query` with its question mark."""
    return Request(request_id(headers), endpoint, headers, body, trio.current_time(), query, client)


class Held:
    """What a body holds of its room."""

    held = 0
    _room: Room

    def hold(self, room: Room, length: int) -> None:
        """Take `length` bytes more, or Refusal."""
        room.take(length)
        self._room = room
        self.held += length

    def release(self) -> None:
        if self.held:
            self._room.release(self.held)
            self.held = 0


def declared_length(headers: Headers, limits: LimitConfig) -> int | None:
    """The body's declared length in bytes, None if it is chunked; 0 if neither is said.

    Refusal: INVALID if lengths conflict, which is how requests are smuggled past a gateway; TOO_LARGE over the limit.
    """
    # The fast way's parser leaves white space behind a value.
    lengths = {value.rstrip(b" \t") for name, value in headers if name == b"content-length"}
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if len(lengths) > 1 or (lengths and codings):
        raise Refusal(Outcome.INVALID, 400, "The request declares its length in conflicting ways.")
    if codings:
        if [value.lower() for value in codings] != [b"chunked"]:
            raise Refusal(Outcome.INVALID, 400, "The only transfer-encoding that is understood is 'chunked'.")
        return None
    if not lengths:
        return 0
    (text,) = lengths
    if not text.isdigit():
        raise Refusal(Outcome.INVALID, 400, "The request's content-length is not a number.")
    if len(text) > 15 or int(text) > limits.body_max_bytes:
        raise too_large(limits)
    return int(text)


def too_large(limits: LimitConfig) -> Refusal:
    message = f"The request body is larger than the {limits.body_max_bytes} bytes that this gateway takes."
    return Refusal(Outcome.TOO_LARGE, 413, message)


def too_slow(seconds: float) -> Refusal:
    return Refusal(Outcome.INVALID, 408, f"The request body did not arrive within {seconds:g} s.")
