"""The route table: the engine's paths that the gate passes on. What is not listed here does not exist to a client.

vLLM's `--api-key` leaves many of its routes open (/invocations, /pooling, /metrics, ...), so this table, not the
engine, decides what can be reached from outside. docs/routes.md says of every route of vLLM's why it is here or not.
"""

import re
from dataclasses import replace

from ..exchange import Dialect, Endpoint

_TABLE = (
    Endpoint("/v1/chat/completions", Dialect.CHAT),
    Endpoint("/v1/chat/completions/batch", Dialect.PLAIN),
    Endpoint("/v1/completions", Dialect.COMPLETIONS),
    Endpoint("/v1/responses", Dialect.RESPONSES),
    Endpoint("/v1/messages", Dialect.MESSAGES),
    Endpoint("/cohere/v2/chat", Dialect.COHERE),
    # SageMaker's one path for all: a chat, a completion, an embedding, ... Only the first two can be streams, and the
    # gate treats those alike.
    Endpoint("/invocations", Dialect.CHAT),
    Endpoint("/v1/embeddings", Dialect.PLAIN),
    Endpoint("/v2/embed", Dialect.COHERE),
    Endpoint("/rerank", Dialect.PLAIN),
    Endpoint("/v1/rerank", Dialect.PLAIN),
    Endpoint("/v2/rerank", Dialect.PLAIN),
    Endpoint("/score", Dialect.PLAIN),
    Endpoint("/v1/score", Dialect.PLAIN),
    Endpoint("/classify", Dialect.PLAIN),
    Endpoint("/pooling", Dialect.PLAIN),
    Endpoint("/generative_scoring", Dialect.PLAIN),
    Endpoint("/v1/systemone", Dialect.PLAIN),
    Endpoint("/v1/decisions", Dialect.PLAIN),
    # multipart/form-data with an audio file: nothing in it that the gate needs is worth parsing it for
    Endpoint("/v1/audio/transcriptions", Dialect.PLAIN, opaque=True),
    Endpoint("/v1/audio/translations", Dialect.PLAIN, opaque=True),
    # The tokenizer runs on the engine's CPU: no GPU, so no slot
    Endpoint("/tokenize", Dialect.PLAIN, needs_slot=False),
    Endpoint("/detokenize", Dialect.PLAIN, needs_slot=False),
    Endpoint("/v1/messages/count_tokens", Dialect.MESSAGES, needs_slot=False),
)

#: Questions about what the engine has already: no body and no slot. They are rare, and compared one by one.
LOOKUPS = (
    Endpoint("/version", Dialect.PLAIN, needs_slot=False, method="GET", bodiless=True),
    Endpoint("/v1/responses/{response_id}", Dialect.STORED, needs_slot=False, method="GET", bodiless=True),
    Endpoint("/v1/responses/{response_id}/cancel", Dialect.STORED, needs_slot=False, bodiless=True),
)

#: What the gateway answers itself (accept/app.py), with parameters in braces.
OWN = ("/health", "/ready", "/ping", "/metrics", "/engine/metrics", "/v1/models", "/v1/models/{model}")

#: The endpoints with a fixed path and method POST, by path: nearly all requests.
ENDPOINTS: dict[str, Endpoint] = {endpoint.path: endpoint for endpoint in _TABLE}

#: Every path of the table, each the value of a label.
PATHS = (*ENDPOINTS, *(lookup.path for lookup in LOOKUPS))

#: What vLLM makes, and what a client may choose: `request_id` in the body of POST /v1/responses. Not the names of the
#: engine's own routes below /v1/responses.
_RESPONSE_ID = "(?!render(?:$|/))[A-Za-z0-9_:-][A-Za-z0-9._:-]{0,127}"

_PATTERNS = [(re.compile(endpoint.path.replace("{response_id}", _RESPONSE_ID)), endpoint) for endpoint in LOOKUPS]

#: Longest path for which `meant` looks for what it may mean (characters).
_MEANT_MAX = 200


def find(method: str, path: str) -> Endpoint | None:
    """The endpoint for a request with this method and decoded path; None if the engine does not get it."""
    if method == "POST" and (endpoint := ENDPOINTS.get(path)) is not None:
        return endpoint
    for pattern, endpoint in _PATTERNS:
        if endpoint.method == method and pattern.fullmatch(path):
            return replace(endpoint, target=path)
    return None


def allowed(path: str) -> str:
    """The method that the engine's endpoint at `path` takes; "" if there is none."""
    if path in ENDPOINTS:
        return "POST"
    return next((endpoint.method for pattern, endpoint in _PATTERNS if pattern.fullmatch(path)), "")


def methods(path: str) -> str:
    """Every method that a path takes, whoever answers it; "" if there is no such route."""
    if path == "/ping":
        return "GET, POST"
    own = path in OWN or (path.startswith("/v1/models/") and path != "/v1/models/")
    return "GET" if own else allowed(path)


def meant(path: str) -> str:
    """The route that an unknown `path` was probably meant for; "" if that cannot be told.

    Base URLs go wrong in few ways: /v1 twice or missing, a slash too many, a prefix that a proxy should have removed.
    """
    if len(path) > _MEANT_MAX:
        return ""
    parts = [part for part in path.split("/") if part]
    for start in range(len(parts)):
        for prefix in ("/", "/v1/"):
            candidate = prefix + "/".join(parts[start:])
            if candidate in OWN or allowed(candidate) or candidate.startswith("/v1/models/"):
                return candidate
    return ""
