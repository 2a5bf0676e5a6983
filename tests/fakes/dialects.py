"""What vLLM 0.32 answers, as data: whole bodies and event sequences per dialect. Pure.

Shapes follow vLLM's `entrypoints/` and the recordings in tests/recordings; the contract suite holds them together.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

#: Ids and times never vary, so that two answers to one question can be compared byte by byte.
CREATED = 1_700_000_000
FINGERPRINT = "vllm-0.32.0-fake"

Json = dict[str, Any]


class Dialect(enum.StrEnum):
    """The protocols that generate."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    COHERE = "cohere"


@dataclass(frozen=True)
class Job:
    """A generating request, understood. `texts` has one entry per token; the end-of-sequence token is `""`."""

    dialect: Dialect
    id: str
    model: str
    prompt_tokens: int
    texts: tuple[str, ...]
    finish: str
    limit: int
    stream: bool
    include_usage: bool = False
    continuous_usage: bool = False

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.texts)


@dataclass(frozen=True)
class Event:
    """One SSE event, and how many tokens must exist before vLLM sends it."""

    data: bytes
    after: int


def encode(body: object) -> bytes:
    """Compact JSON, UTF-8 unescaped, as vLLM writes it."""
    return msgspec.json.encode(body)


def error_body(message: str, kind: str, code: int, param: str | None = None) -> Json:
    """vLLM's error answer."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def messages_error(kind: str, message: str) -> Json:
    """vLLM's error answer and error event on /v1/messages."""
    return {"type": "error", "error": {"type": kind, "message": message}}


def whole(job: Job) -> Json:
    """The body of an answer that is not streamed."""
    return _WHOLE[job.dialect](job)


def events(job: Job, *, done: bool = True) -> Iterator[Event]:
    """The events of a streamed answer, in order. `done` False leaves out `[DONE]` where the dialect has one."""
    yield from _EVENTS[job.dialect](job)
    if done and job.dialect in (Dialect.CHAT, Dialect.COMPLETIONS, Dialect.COHERE):
        yield Event(DONE, len(job.texts))


DONE = b"data: [DONE]\n\n"


def error_events(dialect: Dialect) -> list[bytes]:
    """What follows when the engine fails while streaming, up to the end of the body.

    Empty for /v1/responses: there vLLM's own error handling fails, and the connection is closed in mid-body.
    """
    if dialect is Dialect.RESPONSES:
        return []
    if dialect is Dialect.MESSAGES:
        return [_named("error", messages_error("internal_error", "Internal server error"))]
    if dialect is Dialect.COHERE:
        end = {"type": "message-end", "delta": {"error": "Internal server error", "finish_reason": "ERROR"}}
        return [_data(end), DONE]
    return [_data(error_body("Internal server error", "InternalServerError", 500)), DONE]


def huge_event(dialect: Dialect, size: int) -> bytes:
    """An event of the dialect with `size` bytes of text, of a type that clients pass over."""
    if dialect in (Dialect.CHAT, Dialect.COMPLETIONS):
        return _data({"object": "padding", "choices": [], "padding": "x" * size})
    return _named("ping", {"type": "ping", "padding": "x" * size})


def _data(body: Json) -> bytes:
    return b"data: %b\n\n" % encode(body)


def _named(name: str, body: Json) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), encode(body))


def _usage(job: Job, completion: int) -> Json:
    total = job.prompt_tokens + completion
    return {"prompt_tokens": job.prompt_tokens, "total_tokens": total, "completion_tokens": completion}


def _chat_whole(job: Job) -> Json:
    message: Json = {"role": "assistant", "content": job.text, "refusal": None, "annotations": None, "audio": None}
    message |= {"function_call": None, "reasoning": None}
    choice: Json = {"index": 0, "message": message, "logprobs": None, "finish_reason": job.finish, "stop_reason": None}
    choice |= {"token_ids": None, "routed_experts": None}
    return {
        **_stem(job, "chat.completion"),
        "choices": [choice],
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": {**_usage(job, len(job.texts)), "prompt_tokens_details": None, "completion_tokens_details": None},
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "prompt_text": None,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def _stem(job: Job, kind: str) -> Json:
    return {"id": job.id, "object": kind, "created": CREATED, "model": job.model}


def _chat_events(job: Job) -> Iterator[Event]:
    stem = _stem(job, "chat.completion.chunk")

    def chunk(choice: Json, completion: int, extra: Json) -> Event:
        body = {**stem, "choices": [choice]}
        if job.continuous_usage:
            body["usage"] = {**_usage(job, completion), "completion_tokens_details": None}
        return Event(_data({**body, **extra}), max(1, completion))

    first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    yield chunk(first, 0, {"prompt_token_ids": None, "prompt_text": None})
    for rank, text in enumerate(job.texts, 1):
        choice: Json = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
        if rank == len(job.texts):
            choice |= {"finish_reason": job.finish, "stop_reason": None}
        yield chunk({**choice, "token_ids": None}, rank, _fingerprint(job, rank))
    if job.include_usage:
        yield _usage_event(job, stem)


def _fingerprint(job: Job, rank: int) -> Json:
    """It rides on the last chunk, which is the usage chunk if there is one."""
    last = rank == len(job.texts) and not job.include_usage
    return {"system_fingerprint": FINGERPRINT} if last else {}


def _usage_event(job: Job, stem: Json) -> Event:
    count = len(job.texts)
    return Event(_data({**stem, "choices": [], "usage": _usage(job, count), "system_fingerprint": FINGERPRINT}), count)


def _completions_whole(job: Job) -> Json:
    choice: Json = {"index": 0, "text": job.text, "logprobs": None, "finish_reason": job.finish, "stop_reason": None}
    choice |= {"token_ids": None, "prompt_logprobs": None, "prompt_token_ids": None, "routed_experts": None}
    return {
        **_stem(job, "text_completion"),
        "choices": [choice],
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": {**_usage(job, len(job.texts)), "prompt_tokens_details": None, "completion_tokens_details": None},
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def _completions_events(job: Job) -> Iterator[Event]:
    stem = _stem(job, "text_completion")
    for rank, text in enumerate(job.texts, 1):
        finish = job.finish if rank == len(job.texts) else None
        choice: Json = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish, "stop_reason": None}
        body = {**stem, "choices": [{**choice, "prompt_token_ids": None, "token_ids": None}]}
        if job.continuous_usage:
            body["usage"] = _usage(job, rank)
        yield Event(_data({**body, **_fingerprint(job, rank)}), rank)
    if job.include_usage:
        yield _usage_event(job, stem)


def _messages_whole(job: Job) -> Json:
    return {
        "id": job.id,
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": job.text}],
        "model": job.model,
        "stop_reason": _stop_reason(job),
        "usage": {"input_tokens": job.prompt_tokens, "output_tokens": len(job.texts)},
    }


def _stop_reason(job: Job) -> str:
    return "max_tokens" if job.finish == "length" else "end_turn"


def _messages_events(job: Job) -> Iterator[Event]:
    message: Json = {"id": job.id, "type": "message", "role": "assistant", "content": [], "model": job.model}
    message |= {"stop_reason": None, "stop_sequence": None}
    message |= {"usage": {"input_tokens": job.prompt_tokens, "output_tokens": 0}}
    yield Event(_named("message_start", {"type": "message_start", "message": message}), 1)
    block = {"type": "text", "text": ""}
    opened = False
    for rank, text in enumerate(job.texts, 1):
        if not text:
            continue
        if not opened:
            opened = True
            start = {"type": "content_block_start", "content_block": block, "index": 0}
            yield Event(_named("content_block_start", start), rank)
        delta = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}, "index": 0}
        yield Event(_named("content_block_delta", delta), rank)
    count = len(job.texts)
    if opened:
        yield Event(_named("content_block_stop", {"type": "content_block_stop", "index": 0}), count)
    usage = {"input_tokens": job.prompt_tokens, "output_tokens": count}
    stop = {"stop_reason": _stop_reason(job), "stop_sequence": None}
    yield Event(_named("message_delta", {"type": "message_delta", "delta": stop, "usage": usage}), count)
    yield Event(_named("message_stop", {"type": "message_stop"}), count)


def _response(job: Job, status: str, output: list[Json], usage: Json | None) -> Json:
    return {
        "id": job.id,
        "created_at": CREATED,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None,
        "metadata": None,
        "model": job.model,
        "object": "response",
        "output": output,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "none",
        "tools": [],
        "top_p": 1.0,
        "background": False,
        "max_output_tokens": job.limit,
        "max_tool_calls": None,
        "previous_response_id": None,
        "prompt": None,
        "reasoning": None,
        "service_tier": "auto",
        "status": status,
        "text": None,
        "top_logprobs": None,
        "truncation": "disabled",
        "usage": usage,
        "user": None,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "input_messages": None,
        "output_messages": None,
    }


def _item(job: Job, status: str, content: list[Json]) -> Json:
    item = {"id": f"msg_{job.id}", "content": content, "role": "assistant", "status": status}
    return {**item, "type": "message", "phase": None}


def _part(job: Job) -> Json:
    return {"annotations": [], "text": job.text, "type": "output_text", "logprobs": None}


def _responses_whole(job: Job) -> Json:
    count = len(job.texts)
    per_turn: Json = {"input_tokens_per_turn": [], "cached_tokens_per_turn": []}
    made_per_turn: Json = {"output_tokens_per_turn": [], "tool_output_tokens_per_turn": []}
    usage = {
        "input_tokens": job.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0, **per_turn},
        "output_tokens": count,
        "output_tokens_details": {"reasoning_tokens": 0, "tool_output_tokens": 0, **made_per_turn},
        "total_tokens": job.prompt_tokens + count,
    }
    status = "incomplete" if job.finish == "length" else "completed"
    return _response(job, status, [_item(job, "completed", [_part(job)])], usage)


def _responses_events(job: Job) -> Iterator[Event]:
    number = -1

    def event(name: str, after: int, **body: Any) -> Event:
        nonlocal number
        number += 1
        fields = {**body, "sequence_number": number, "type": name}
        return Event(_named(name, dict(sorted(fields.items()))), after)

    count = len(job.texts)
    begun = _response(job, "in_progress", [], None)
    # These two need no token: vLLM sends them before the request has even been scheduled.
    yield event("response.created", 0, response=begun)
    yield event("response.in_progress", 0, response=begun)
    place = {"item_id": f"msg_{job.id}", "output_index": 0}
    empty = {"annotations": [], "text": "", "type": "output_text", "logprobs": []}
    yield event("response.output_item.added", 1, item=_item(job, "in_progress", []), output_index=0)
    yield event("response.content_part.added", 1, content_index=0, **place, part=empty)
    for rank, text in enumerate(job.texts, 1):
        if text:
            yield event("response.output_text.delta", rank, content_index=0, delta=text, **place, logprobs=[])
    yield event("response.output_text.done", count, content_index=0, **place, logprobs=[], text=job.text)
    yield event("response.content_part.done", count, content_index=0, **place, part=_part(job))
    yield event("response.output_item.done", count, item=_item(job, "completed", [_part(job)]), output_index=0)
    yield event("response.completed", count, response=_responses_whole(job))


def _cohere_usage(job: Job, kind: type[int] | type[float]) -> Json:
    """In a whole answer vLLM writes floating-point numbers."""
    tokens = {"input_tokens": kind(job.prompt_tokens), "output_tokens": kind(len(job.texts))}
    return {"billed_units": tokens, "tokens": tokens}


def _cohere_finish(job: Job) -> str:
    return "MAX_TOKENS" if job.finish == "length" else "COMPLETE"


def _cohere_whole(job: Job) -> Json:
    message = {"role": "assistant", "content": [{"type": "text", "text": job.text}]}
    return {
        "id": job.id,
        "finish_reason": _cohere_finish(job),
        "message": message,
        "usage": _cohere_usage(job, float),
    }


def _cohere_events(job: Job) -> Iterator[Event]:
    def event(kind: str, after: int, **body: Any) -> Event:
        return Event(_data({"type": kind, **body}), after)

    yield event("message-start", 1, id=job.id, delta={"message": {"role": "assistant", "content": []}})
    start = {"message": {"content": {"type": "text", "text": ""}}}
    yield event("content-start", 1, index=0, delta=start)
    for rank, text in enumerate(job.texts, 1):
        if text:
            yield event("content-delta", rank, index=0, delta={"message": {"content": {"text": text}}})
    count = len(job.texts)
    yield event("content-end", count, index=0)
    end = {"finish_reason": _cohere_finish(job), "usage": _cohere_usage(job, int)}
    yield event("message-end", count, id=job.id, delta=end)


_WHOLE = {
    Dialect.CHAT: _chat_whole,
    Dialect.COMPLETIONS: _completions_whole,
    Dialect.RESPONSES: _responses_whole,
    Dialect.MESSAGES: _messages_whole,
    Dialect.COHERE: _cohere_whole,
}
_EVENTS = {
    Dialect.CHAT: _chat_events,
    Dialect.COMPLETIONS: _completions_events,
    Dialect.RESPONSES: _responses_events,
    Dialect.MESSAGES: _messages_events,
    Dialect.COHERE: _cohere_events,
}
