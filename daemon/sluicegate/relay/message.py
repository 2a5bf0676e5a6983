"""What a request and an answer look like on the other side of the gate: which headers cross it."""

from ..exchange import Headers, Request

#: Client headers that the engine gets. An allow-list: what is not named here does not reach the engine.
_TO_ENGINE = frozenset(
    {
        b"accept",
        b"anthropic-beta",
        b"anthropic-version",
        b"authorization",
        b"content-type",
        b"traceparent",
        b"tracestate",
        b"user-agent",
        b"x-api-key",
    }
)

#: Engine headers that the client does not get: those of the hop, and those that the gateway sets itself.
_NOT_TO_CLIENT = frozenset(
    {
        b"connection",
        b"content-length",
        b"date",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"server",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-request-id",
    }
)


#: The same for an engine that asks for a key: ours. The client's is none of its business.
_TO_ENGINE_WITH_KEY = _TO_ENGINE - {b"authorization", b"x-api-key"}


def request_head(request: Request, content_length: int | None, authorization: bytes = b"") -> bytes:
    """The head to send to the engine, blank line included. `content_length` in bytes; None: chunked.

    `authorization`, if any, goes to the engine in the place of the client's own.
    """
    endpoint = request.endpoint
    path = (endpoint.target or endpoint.path).encode("ascii")
    lines = [b"%s %s%s HTTP/1.1\r\nhost: engine" % (endpoint.method.encode("ascii"), path, request.query)]
    passed = _TO_ENGINE_WITH_KEY if authorization else _TO_ENGINE
    lines += [b"%s: %s" % field for field in request.headers if field[0] in passed]
    if authorization:
        lines.append(b"authorization: " + authorization)
    lines.append(b"x-request-id: " + request.id.encode("ascii"))
    if content_length is None:
        lines.append(b"transfer-encoding: chunked\r\n\r\n")
    else:
        lines.append(b"content-length: %d\r\n\r\n" % content_length)
    return b"\r\n".join(lines)


def answer_headers(engine: Headers) -> Headers:
    """The engine's headers that the client gets."""
    return [field for field in engine if field[0] not in _NOT_TO_CLIENT]
