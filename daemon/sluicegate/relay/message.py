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

#: What tells a proxy in front to pass a stream on as it comes: caches and compressors, and nginx, which buffers unless
#: told. In place of the engine's own fields of these names.
UNBUFFERED: Headers = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]

_BUFFERING = frozenset(name for name, _ in UNBUFFERED)


def request_head(request: Request, content_length: int | None) -> bytes:
    """The head to send to the engine, blank line included. `content_length` in bytes; None: chunked."""
    endpoint = request.endpoint
    path = (endpoint.target or endpoint.path).encode("ascii")
    lines = [b"%s %s%s HTTP/1.1\r\nhost: engine" % (endpoint.method.encode("ascii"), path, request.query)]
    lines += [b"%s: %s" % field for field in request.headers if field[0] in _TO_ENGINE]
    lines.append(b"x-request-id: " + request.id.encode("ascii"))
    if content_length is None:
        lines.append(b"transfer-encoding: chunked\r\n\r\n")
    else:
        lines.append(b"content-length: %d\r\n\r\n" % content_length)
    return b"\r\n".join(lines)


def answer_headers(engine: Headers) -> Headers:
    """The engine's headers that the client gets."""
    return [field for field in engine if field[0] not in _NOT_TO_CLIENT]


def stream_headers(engine: Headers) -> Headers:
    """The same for a stream."""
    return [field for field in answer_headers(engine) if field[0] not in _BUFFERING] + UNBUFFERED
