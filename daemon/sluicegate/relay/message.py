"""What a request and an answer look like on the other side of the gate: which headers cross it."""

from collections.abc import Iterable

from ..exchange import Headers, Request

#: Client headers that the engine gets, with those of engine.pass_headers. An allow-list: no other reaches the engine.
TO_ENGINE = frozenset(
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

#: Engine headers that the client does not get: those of the hop, and those that the gateway sets itself. CORS among
#: them: whose pages may come here is for cors.origins to say, and a browser refuses an answer that says it twice.
_NOT_TO_CLIENT = frozenset(
    {
        b"access-control-allow-credentials",
        b"access-control-allow-headers",
        b"access-control-allow-methods",
        b"access-control-allow-origin",
        b"access-control-allow-private-network",
        b"access-control-expose-headers",
        b"access-control-max-age",
        b"connection",
        b"content-length",
        b"date",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"server",
        b"te",
        b"timing-allow-origin",
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


#: Those of them that an engine with a key of the gateway's does not get: they are none of its business.
_KEYS = frozenset({b"authorization", b"x-api-key"})


def to_engine(pass_headers: Iterable[str], *, with_key: bool = False) -> frozenset[bytes]:
    """The client headers that the engine gets if `pass_headers` (names in lower case) are configured.

    `with_key`: it asks for a key, and gets the gateway's in the place of the client's.
    """
    passed = TO_ENGINE.union(name.encode("ascii") for name in pass_headers)
    return passed - _KEYS if with_key else passed


def request_head(
    request: Request, content_length: int | None, passed: frozenset[bytes] = TO_ENGINE, authorization: bytes = b""
) -> bytes:
    """The head to send to the engine, blank line included, with the headers that are `passed`.

    `content_length` in bytes; None: chunked. `authorization`: the gateway's own, if any.
    """
    endpoint = request.endpoint
    path = (endpoint.target or endpoint.path).encode("ascii")
    lines = [b"%s %s%s HTTP/1.1\r\nhost: engine" % (endpoint.method.encode("ascii"), path, request.query)]
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


def stream_headers(engine: Headers) -> Headers:
    """The same for a stream."""
    return [field for field in answer_headers(engine) if field[0] not in _BUFFERING] + UNBUFFERED
