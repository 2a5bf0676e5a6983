"""What the fake engine makes of a request: a job to generate, a small answer, or vLLM's own refusal. Pure."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from tests.fakes.connection import Seen
from tests.fakes.dialects import CREATED, Dialect, Job, Json, encode, error_body, messages_error
from tests.fakes.script import Behaviour
from tests.fakes.tokens import Tokenizer, generate, render, text_of

GENERATING = {
    "/v1/chat/completions": Dialect.CHAT,
    "/v1/completions": Dialect.COMPLETIONS,
    "/v1/responses": Dialect.RESPONSES,
    "/v1/messages": Dialect.MESSAGES,
    "/invocations": Dialect.CHAT,
    "/cohere/v2/chat": Dialect.COHERE,
}
#: What vLLM serves beside: a gateway must not pass these on. They answer 200 with a tell-tale.
LEAKS = frozenset(
    {
        "/abort_requests", "/cohere/v2/chat/render", "/collective_rpc", "/detokenizer_info", "/docs",
        "/fault_tolerance/apply", "/inference/v1/generate", "/init_weight_transfer_engine", "/is_paused",
        "/is_sleeping", "/kv_event_sources", "/load", "/openapi.json", "/pause", "/redoc", "/reset_mm_cache",
        "/reset_prefix_cache", "/resume", "/scale_elastic_ep", "/server_info", "/shutdown_weight_transfer_engine",
        "/sleep", "/start_profile", "/stop_profile", "/tokenizer_info", "/update_weights",
        "/v1/chat/completions/render", "/v1/completions/render", "/v1/load_lora_adapter", "/v1/messages/render",
        "/v1/responses/render", "/v1/unload_lora_adapter", "/wake_up", "/weight_info",
    }
)  # fmt: skip


class RefusedError(Exception):
    """vLLM answers with an error: its status and body."""

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(f"{status} {body}")
        self.status = status
        self.body = body

    def on(self, path: str) -> bytes:
        """The body as it goes out on `path`: /v1/messages translates errors, but not those of validation."""
        error = self.body.get("error")
        if path.startswith("/v1/messages") and error is not None and error["type"] != "Bad Request":
            return encode(messages_error(error["type"], error["message"]))
        return encode(self.body)


def bad_request(message: str, param: str | None = None) -> RefusedError:
    """A 400 for a body that does not parse, as vLLM words it."""
    return RefusedError(400, error_body(f"1 validation error:\n  {message}", "Bad Request", 400, param))


def invalid(message: str, param: str, value: object = None) -> RefusedError:
    """A 400 for a value that vLLM refuses, as it words it."""
    more = f", value={value}" if value is not None else ""
    return RefusedError(400, error_body(f"{message} (parameter={param}{more})", "BadRequestError", 400, param))


@dataclass(frozen=True)
class Model:
    """The loaded model. An empty `name` means that none is loaded."""

    name: str
    max_model_len: int
    tokenizer: Tokenizer
    root: str

    def card(self) -> Json:
        """/v1/models."""
        card = {"id": self.name, "object": "model", "created": CREATED, "owned_by": "vllm", "root": self.root}
        card |= {"parent": None, "max_model_len": self.max_model_len, "permission": []}
        return {"object": "list", "data": [card] if self.name else []}

    def check(self, wanted: object) -> None:
        """Raise RefusedError (404) unless `wanted` is this model or not said."""
        if (wanted and wanted != self.name) or not self.name:
            message = f"The model `{wanted}` does not exist. Valid aliases: {self.name}."
            raise RefusedError(404, error_body(message, "NotFoundError", 404, "model"))


def body_of(request: Seen) -> Json:
    """The JSON object in the body. Raises RefusedError (400)."""
    if (request.header("content-type") or "").partition(";")[0].strip().lower() != "application/json":
        raise bad_request("Unsupported Media Type: Only 'application/json' is allowed")
    try:
        return msgspec.json.decode(request.body, type=dict[str, Any])
    except ValueError as exc:  # no JSON, or no UTF-8
        raise bad_request(str(exc), "body") from None


def _required(body: Json, name: str, kind: type | tuple[type, ...]) -> Any:
    value = body.get(name)
    if not isinstance(value, kind):
        what = "missing" if value is None else "type_error"
        given = f"<dict of {len(body)} items>"
        text = f"{{'type': '{what}', 'loc': 'body.{name}', 'msg': 'Field required', 'input': '{given}'}}"
        raise bad_request(text, f"body.{name}")
    return value


def _prompt(dialect: Dialect, body: Json, tokenizer: Tokenizer) -> str:
    if dialect in (Dialect.CHAT, Dialect.COHERE):
        return render(_required(body, "messages", list))
    if dialect is Dialect.MESSAGES:
        prompt = _messages_prompt(body)
        _required(body, "max_tokens", int)
        _required(body, "model", str)
        return prompt
    if dialect is Dialect.RESPONSES:
        given = _required(body, "input", (str, list))
        return render(given if isinstance(given, list) else [{"role": "user", "content": given}])
    given = body.get("prompt")
    if not given:
        raise invalid("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    if isinstance(given, list) and isinstance(given[0], int):
        return tokenizer.decode(given)
    return text_of(given)


def _messages_prompt(body: Json) -> str:
    messages = _required(body, "messages", list)
    system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
    return render([*system, *messages])


def _limit(body: Json, room: int, longest: int) -> int:
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        value = body.get(name)
        if isinstance(value, int):
            if value < 1:
                raise invalid(f"{name} must be at least 1, got {value}.", name, value)
            if value > longest:
                raise invalid(f"{name}={value} cannot be greater than max_model_len={longest}.", name, value)
            return min(room, value)
    return room


def understand(request: Seen, dialect: Dialect, model: Model, behaviour: Behaviour) -> Job:
    """The job that a generating request asks for. Raises RefusedError.

    Its id is made of X-Request-Id, as vLLM's is, or else of the prompt; on /v1/responses always of the prompt.
    """
    body = body_of(request)
    options = body.get("stream_options") or {}
    if options and not body.get("stream") and dialect in (Dialect.CHAT, Dialect.COMPLETIONS):
        raise invalid("Stream options can only be defined when `stream=True`.", "stream_options")
    prompt = _prompt(dialect, body, model.tokenizer)
    model.check(body.get("model"))
    prompt_tokens = len(model.tokenizer.encode(prompt))
    room = model.max_model_len - prompt_tokens
    if room <= 0:
        message = f"This model's maximum context length is {model.max_model_len} tokens."
        raise invalid(message, "input_tokens", prompt_tokens)
    limit = _limit(body, room, model.max_model_len)
    stops = behaviour.tokens <= limit and not body.get("ignore_eos")
    texts = [*generate(prompt, behaviour.tokens - 1), ""] if stops else generate(prompt, limit)
    prefix = {Dialect.COMPLETIONS: "cmpl-", Dialect.RESPONSES: "resp_"}.get(dialect, "chatcmpl-")
    given = request.header("x-request-id") if dialect is not Dialect.RESPONSES else None
    include_usage = bool(options.get("include_usage"))
    return Job(
        dialect,
        prefix + (given or f"{zlib.crc32(prompt.encode()):016x}"),
        model.name,
        prompt_tokens,
        tuple(texts),
        "stop" if stops else "length",
        limit,
        bool(body.get("stream")),
        include_usage,
        include_usage and bool(options.get("continuous_usage_stats")),
    )


def _usage(count: int) -> Json:
    return {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0, "prompt_tokens_details": None}


def _embeddings(request: Seen, model: Model) -> Json:
    body = body_of(request)
    given = _required(body, "input", (str, list))
    model.check(body.get("model"))
    texts = [given] if isinstance(given, str) else [text_of(part) for part in given]
    counts = [len(model.tokenizer.encode(text)) for text in texts]
    vectors = [[len(text) / 100, count / 10, 0.25] for text, count in zip(texts, counts, strict=True)]
    data = [{"index": rank, "object": "embedding", "embedding": vector} for rank, vector in enumerate(vectors)]
    stem = {"id": "embd-0", "object": "list", "created": CREATED, "model": model.name}
    return {**stem, "data": data, "usage": _usage(sum(counts))}


def _scores(model: Model, query: str, texts: list[str]) -> tuple[list[float], int]:
    words = set(query.split())
    counts = [len(model.tokenizer.encode(f"{query} {text}")) for text in texts]
    return [len(words & set(text.split())) / max(1, len(words)) for text in texts], sum(counts)


def _rerank(request: Seen, model: Model) -> Json:
    body = body_of(request)
    query, texts = _required(body, "query", str), [text_of(each) for each in _required(body, "documents", list)]
    model.check(body.get("model"))
    scores, count = _scores(model, query, texts)
    order = sorted(range(len(texts)), key=lambda rank: -scores[rank])[: body.get("top_n") or None]
    results = [
        {"index": rank, "document": {"text": texts[rank], "multi_modal": None}, "relevance_score": scores[rank]}
        for rank in order
    ]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"id": "rerank-0", "model": model.name, "usage": usage, "results": results}


def _score(request: Seen, model: Model) -> Json:
    body = body_of(request)
    query, given = _required(body, "text_1", str), _required(body, "text_2", (str, list))
    model.check(body.get("model"))
    scores, count = _scores(model, query, [given] if isinstance(given, str) else given)
    data = [{"index": rank, "object": "score", "score": score} for rank, score in enumerate(scores)]
    stem = {"id": "score-0", "object": "list", "created": CREATED, "model": model.name}
    return {**stem, "data": data, "usage": _usage(count)}


def _embed(request: Seen, model: Model) -> Json:
    """Cohere's."""
    body = body_of(request)
    texts = [text_of(each) for each in _required(body, "texts", list)]
    model.check(body.get("model"))
    count = sum(len(model.tokenizer.encode(text)) for text in texts)
    meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": count, "image_tokens": None}}
    vectors = [[len(text) / 100, 0.25] for text in texts]
    stem = {"id": "embd-0", "embeddings": {"float": vectors}, "texts": texts, "meta": meta}
    return stem | {"response_type": "embeddings_by_type"}


def _listed(kind: str, member: str, answer: Json) -> "Small":
    """One answer to each of the texts in `member` of the body."""

    def small(request: Seen, model: Model) -> Json:
        body = body_of(request)
        given = _required(body, member, (str, list))
        model.check(body.get("model"))
        texts = [given] if isinstance(given, str) else [text_of(each) for each in given]
        data = [{"index": rank, **answer} for rank in range(len(texts))]
        count = sum(len(model.tokenizer.encode(text)) for text in texts)
        stem = {"id": f"{kind}-0", "object": "list", "created": CREATED, "model": model.name}
        return {**stem, "data": data, "usage": _usage(count)}

    return small


def _batch(request: Seen, model: Model) -> Json:
    """One choice to each conversation."""
    body = body_of(request)
    prompts = [render(messages) for messages in _required(body, "messages", list)]
    model.check(body.get("model"))
    choices = [
        {
            "index": rank,
            "message": {"role": "assistant", "content": "".join(generate(prompt, 2))},
            "finish_reason": "stop",
        }
        for rank, prompt in enumerate(prompts)
    ]
    count = sum(len(model.tokenizer.encode(prompt)) for prompt in prompts)
    usage = {"prompt_tokens": count, "completion_tokens": 2 * len(prompts), "total_tokens": count + 2 * len(prompts)}
    stem = {"id": "chatcmpl-0", "object": "chat.completion", "created": CREATED, "model": model.name}
    return {**stem, "choices": choices, "usage": usage}


def _decision(member: str) -> "Small":
    def small(request: Seen, model: Model) -> Json:
        body = body_of(request)
        _required(body, member, (str, list, dict))
        model.check(body.get("model"))
        return {"id": "decision-0", "model": model.name, "decisions": []}

    return small


def no_response(response_id: str) -> RefusedError:
    """The 404 for a response that is not stored."""
    error = error_body(f"Response with id '{response_id}' not found.", "invalid_request_error", 404, "response_id")
    return RefusedError(404, error)


def not_cancelled() -> RefusedError:
    """The 400 for a response that was not made in the background."""
    error = error_body("Cannot cancel a synchronous response.", "invalid_request_error", 400, "response_id")
    return RefusedError(400, error)


def _transcription(request: Seen, model: Model) -> Json:
    if not (request.header("content-type") or "").startswith("multipart/form-data"):
        raise bad_request("{'type': 'missing', 'loc': 'body.file'}", "body.file")
    return {"text": f"{len(request.body)} bytes", "usage": {"type": "duration", "seconds": 1}}


def _tokenize(request: Seen, model: Model) -> Json:
    body = body_of(request)
    text = render(body["messages"]) if "messages" in body else _required(body, "prompt", str)
    model.check(body.get("model"))
    ids = model.tokenizer.encode(text)
    return {"count": len(ids), "max_model_len": model.max_model_len, "tokens": ids, "token_strs": None}


def _detokenize(request: Seen, model: Model) -> Json:
    body = body_of(request)
    ids = _required(body, "tokens", list)
    model.check(body.get("model"))
    return {"prompt": model.tokenizer.decode(ids)}


def _count_tokens(request: Seen, model: Model) -> Json:
    body = body_of(request)
    prompt = _messages_prompt(body)
    model.check(body.get("model"))
    count = len(model.tokenizer.encode(prompt))
    return {"input_tokens": count, "context_management": {"original_input_tokens": count}}


Small = Callable[[Seen, Model], Json]
#: Answered at once, outside the scheduler.
FREE: dict[str, Small] = {
    "/tokenize": _tokenize,
    "/detokenize": _detokenize,
    "/v1/messages/count_tokens": _count_tokens,
}
#: Answered by the engine, in a slot.
POOLING: dict[str, Small] = {
    "/v1/chat/completions/batch": _batch,
    "/v1/embeddings": _embeddings,
    "/v2/embed": _embed,
    "/rerank": _rerank,
    "/v1/rerank": _rerank,
    "/v2/rerank": _rerank,
    "/score": _score,
    "/v1/score": _score,
    "/classify": _listed("classify", "input", {"label": "yes", "probs": [0.75, 0.25], "num_classes": 2}),
    "/pooling": _listed("pool", "input", {"object": "pooling", "data": [0.5, 0.25]}),
    "/generative_scoring": _listed("generative-scoring", "items", {"object": "score", "score": 0.5}),
    "/v1/systemone": _decision("questions"),
    "/v1/decisions": _decision("input"),
    "/v1/audio/transcriptions": _transcription,
    "/v1/audio/translations": _transcription,
}
