"""The route table: the engine's paths that the gate passes on. What is not listed here does not exist to a client.

vLLM's `--api-key` leaves many of its routes open (/invocations, /pooling, /metrics, ...), so this table, not the
engine, decides what can be reached from outside.
"""

from ..exchange import Dialect, Endpoint

_TABLE = (
    Endpoint("/v1/chat/completions", Dialect.CHAT),
    Endpoint("/v1/completions", Dialect.COMPLETIONS),
    Endpoint("/v1/responses", Dialect.RESPONSES),
    Endpoint("/v1/messages", Dialect.MESSAGES),
    Endpoint("/v1/embeddings", Dialect.PLAIN),
    Endpoint("/v1/rerank", Dialect.PLAIN),
    Endpoint("/v1/score", Dialect.PLAIN),
    # multipart/form-data with an audio file: nothing in it that the gate needs is worth parsing it for
    Endpoint("/v1/audio/transcriptions", Dialect.PLAIN, opaque=True),
    # The tokenizer runs on the engine's CPU: no GPU, so no slot
    Endpoint("/tokenize", Dialect.PLAIN, needs_slot=False),
    Endpoint("/detokenize", Dialect.PLAIN, needs_slot=False),
    Endpoint("/v1/messages/count_tokens", Dialect.MESSAGES, needs_slot=False),
)

#: Every endpoint by its path. All of them are POST.
ENDPOINTS: dict[str, Endpoint] = {endpoint.path: endpoint for endpoint in _TABLE}
