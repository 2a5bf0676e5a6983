"""Cohere's API, version 2: chats and embeddings.

vLLM's errors are OpenAI's on /v2/embed and Cohere's on /cohere/v2/chat; the gateway's serve both kinds of reader.
"""

from typing import Any

import msgspec

from .grammar import Chunk, Grammar, Heard
from .usage import Usage, usage_of


class Cohere(Grammar):
    marker = b"message-end"
    without_output = ("message-start",)

    def answer_usage(self, body: bytes) -> Usage | None:
        try:
            found = _ANSWER.decode(body)
        except (ValueError, RecursionError):
            return None
        billed = found.meta.billed_units if found.meta else None
        if billed is not None:
            return usage_of(_whole(billed.input_tokens), 0)  # an embedding has no completion
        return _usage(found.usage)

    def hear(self, heard: Heard, kind: str, chunk: Chunk) -> None:
        if kind != "message-end":
            return
        try:
            end = _END.decode(chunk.delta)
        except (ValueError, RecursionError):
            return
        heard.failed = heard.failed or bool(end.error)
        heard.usage = _usage(end.usage) or heard.usage

    def error_object(self, status: int, message: str, code: str) -> dict[str, Any]:
        return {"message": message} | super().error_object(status, message, code)

    def error_event(self, status: int, message: str, code: str, sequence_number: int) -> bytes:  # noqa: ARG002
        event = {"type": "message-end", "delta": {"finish_reason": "ERROR", "error": message}}
        return b"data: " + msgspec.json.encode(event) + b"\n\n"


class _Counts(msgspec.Struct):
    """vLLM writes them as floating-point numbers in a whole answer."""

    input_tokens: float | None = None
    output_tokens: float | None = None


class _Usage(msgspec.Struct):
    tokens: _Counts | None = None


class _Meta(msgspec.Struct):
    billed_units: _Counts | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None
    meta: _Meta | None = None


class _End(msgspec.Struct):
    usage: _Usage | None = None
    error: str | None = None


_ANSWER = msgspec.json.Decoder(_Answer)
_END = msgspec.json.Decoder(_End)


def _usage(found: _Usage | None) -> Usage | None:
    tokens = found.tokens if found else None
    return usage_of(_whole(tokens.input_tokens), _whole(tokens.output_tokens)) if tokens else None


def _whole(count: float | None) -> int | None:
    return None if count is None or count < 0 else int(count)
