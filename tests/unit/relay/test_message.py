"""What crosses the gate in headers: an allow-list in, everything but the hop's own out."""

from sluicegate.config.schema import EngineConfig
from sluicegate.exchange import Dialect, Endpoint, Headers, Request
from sluicegate.relay.message import TO_ENGINE, answer_headers, request_head, stream_headers, to_engine
from tests.harness import SimBody
from tests.routes import documented_headers


def request(headers: Headers) -> Request:
    return Request("id-1", Endpoint("/v1/chat/completions", Dialect.CHAT), headers, SimBody(b""), 0.0)


def fields(head: bytes) -> list[bytes]:
    assert head.endswith(b"\r\n\r\n")
    return head.removesuffix(b"\r\n\r\n").split(b"\r\n")


def test_only_what_the_engine_needs_reaches_it() -> None:
    passed: Headers = [
        (b"content-type", b"application/json"),
        (b"accept", b"text/event-stream"),
        (b"authorization", b"Bearer k"),
        (b"x-api-key", b"k"),
        (b"anthropic-version", b"2023-06-01"),
        (b"anthropic-beta", b"b"),
        (b"traceparent", b"00-1-2-01"),
        (b"tracestate", b"a=b"),
        (b"user-agent", b"u"),
    ]
    stopped: Headers = [
        (b"host", b"gateway"),
        (b"connection", b"keep-alive, x-secret"),
        (b"content-length", b"999"),
        (b"transfer-encoding", b"chunked"),
        (b"expect", b"100-continue"),
        (b"upgrade", b"h2c"),
        (b"te", b"trailers"),
        (b"cookie", b"c=1"),
        (b"accept-encoding", b"gzip"),
        (b"x-request-id", b"forged"),
        (b"x-forwarded-for", b"1.2.3.4"),
        (b"x-priority", b"1"),
    ]
    head = request_head(request([*passed, *stopped]), 7)
    assert fields(head) == [
        b"POST /v1/chat/completions HTTP/1.1",
        b"host: engine",
        *[b"%s: %s" % field for field in passed],
        b"x-request-id: id-1",
        b"content-length: 7",
    ]


def test_our_key_takes_the_place_of_the_clients() -> None:
    headers: Headers = [(b"accept", b"a"), (b"authorization", b"Bearer theirs"), (b"x-api-key", b"theirs")]
    lines = fields(request_head(request(headers), 0, to_engine((), with_key=True), b"Bearer ours"))
    assert lines[2:4] == [b"accept: a", b"authorization: Bearer ours"]
    assert not [line for line in lines if b"theirs" in line]


def test_a_body_of_unknown_length_is_chunked() -> None:
    lines = fields(request_head(request([]), None))
    assert lines[-1] == b"transfer-encoding: chunked"
    assert not any(line.startswith(b"content-length") for line in lines)


def test_an_empty_body_has_a_length() -> None:
    assert fields(request_head(request([]), 0))[-1] == b"content-length: 0"


def test_answer_headers() -> None:
    """The client gets all headers except hop-by-hop ones and those that the gateway sets itself."""
    kept: Headers = [(b"content-type", b"application/json"), (b"x-engine", b"1"), (b"x-engine", b"2")]
    hop = [
        "access-control-allow-credentials",
        "access-control-allow-headers",
        "access-control-allow-methods",
        "access-control-allow-origin",
        "access-control-allow-private-network",
        "access-control-expose-headers",
        "access-control-max-age",
        "connection",
        "content-length",
        "date",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "server",
        "te",
        "timing-allow-origin",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
    ]
    assert answer_headers([*kept, *[(name.encode(), b"x") for name in hop]]) == kept


def test_what_is_configured_passes_besides() -> None:
    headers: Headers = [(b"accept", b"a"), (b"x-session-id", b"s"), (b"x-vllm-priority", b"1"), (b"cookie", b"c")]
    sent = fields(request_head(request(headers), 0, to_engine(["x-session-id", "cookie"])))
    assert sent[2:-2] == [b"accept: a", b"x-session-id: s", b"cookie: c"]


def test_docs_say_which_headers_pass() -> None:
    documented = documented_headers()
    always = {name for name, when in documented.items() if when == "always"}
    unless = {name for name, when in documented.items() if when.startswith("unless `[engine] api_key`")}
    assert always == {name.decode() for name in to_engine((), with_key=True)}
    assert unless == {name.decode() for name in TO_ENGINE} - always
    assert [name for name, when in documented.items() if when == "by default"] == list(EngineConfig().pass_headers)


def test_stream_headers() -> None:
    """Not buffered, whatever the engine says of that; and said once."""
    kept = [(b"content-type", b"text/event-stream"), (b"x-more", b"1")]
    ours = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
    assert stream_headers(kept) == kept + ours
    theirs = [(b"cache-control", b"public, max-age=60"), (b"x-accel-buffering", b"yes"), (b"connection", b"close")]
    assert stream_headers([*theirs, *kept, *theirs]) == kept + ours
