"""Responses: OpenAI's dialect of numbered events."""

import msgspec
from msgspec import Raw

from .grammar import Chunk, Grammar, Heard
from .usage import Usage, counts, usage_inside, usage_of


class Responses(Grammar):
    ends_with_done = False
    marker = b'"response"'
    numbered = True
    without_output = ("response.created", "response.queued", "response.in_progress")

    def usage(self, raw: Raw) -> Usage | None:
        found = counts(raw)
        return usage_of(found.input_tokens, found.output_tokens)

    def hear(self, heard: Heard, kind: str, chunk: Chunk) -> None:
        if isinstance(chunk.sequence_number, int):
            heard.sequence_number = chunk.sequence_number
        if kind in ("response.completed", "response.incomplete", "response.failed"):
            heard.ended = True
            heard.failed = heard.failed or kind == "response.failed"
            heard.usage = self.usage(usage_inside(chunk.response))

    def error_event(self, status: int, message: str, code: str, sequence_number: int) -> bytes:
        event = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": sequence_number}
        # The documented ResponseErrorEvent has no `error`, but only on seeing one does OpenAI's client raise APIError
        # rather than hand the event to a program that may not look at it (openai 3.54, _streaming.py).
        event |= self.error_object(status, message, code)
        return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"


class Stored(Responses):
    """A response that is there already: its tokens count where it was asked for, not each time somebody looks at it."""

    def usage(self, raw: Raw) -> Usage | None:  # noqa: ARG002
        return None
