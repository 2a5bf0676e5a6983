"""Invalid requests and unknown paths: each is answered, nothing reaches the engine, and no other client notices."""

import contextlib
import gzip
import itertools
import json
import zlib

import h2.config
import h2.connection
import pytest
import trio

from sluicegate.outcome import Outcome
from tests.engine_contract.raw import RawAnswer
from tests.harness import CHAT, Running, question
from tests.wire.visitors import (
    WAYS,
    Http2Visitor,
    ask,
    assert_refused,
    at_rest,
    chunked,
    come,
    dial,
    gate,
    log_line,
    raw,
    visit,
)

POST = f"POST {CHAT} HTTP/1.1\r\nhost: gate\r\n"

#: What is no HTTP at all; of everything that nearly is, test_http_grammar.py has a table.
HEADS_THAT_ARE_NONE = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "NUL in the path": b"GET /\x00 HTTP/1.1\r\nhost: a\r\n\r\n",
    "path that is not ASCII": b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n",
    "no Host": b"GET /health HTTP/1.1\r\n\r\n",
    "two lengths": b"POST /health HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\n{}",
}

BODIES_THAT_ARE_NONE = {
    "nothing": b"",
    "no JSON": b"Where does the water go?",
    "cut off": b'{"messages": [{"role": "user", "content": "Where does',
    "not UTF-8": b'{"model": "\xff\xfe"}',
    "NUL": b'{"model": "\x00"}',
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "two objects": b"{}{}",
    "model of a wrong type": b'{"model": 7}',
    "stream of a wrong type": b'{"stream": {}}',
    "stream_options of a wrong type": b'{"stream": true, "stream_options": "yes"}',
    "100,000 brackets": b'{"x": ' + b"[" * 100_000,
    "100,000 nested lists": b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


def assert_not_http(running: Running, answer: RawAnswer, statuses: tuple[int, ...] = (400,)) -> None:
    """Refused as no request, with the gateway's own error and a closed connection."""
    assert answer.status in statuses, answer
    assert answer.complete
    assert answer.header("connection") == "close"
    assert answer.header("x-sluicegate-outcome") == "invalid"
    assert answer.header("x-request-id") in {line["request_id"] for line in running.log_lines("request")}


async def assert_closed(stream: trio.abc.Stream) -> None:
    """Nothing more comes but the end."""
    with contextlib.suppress(trio.BrokenResourceError):
        assert await stream.receive_some() == b""


ASK = json.dumps(question()).encode()

#: Content-Encoding and body → status and outcome. unit/accept/test_codings.py has the rest of them.
PACKED: dict[str, tuple[str, bytes, int, Outcome | None]] = {
    "gzip": ("gzip", gzip.compress(ASK), 200, None),
    "deflate": ("Deflate", zlib.compress(ASK), 200, None),
    "no gzip": ("gzip", ASK, 400, Outcome.INVALID),
    "bomb": ("gzip", gzip.compress(bytes(40_000_000)), 413, Outcome.TOO_LARGE),
    "not taken": ("br", ASK, 415, Outcome.INVALID),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", PACKED.values(), ids=PACKED.keys())
async def test_packed_bodies(way: str, case: tuple[str, bytes, int, Outcome | None]) -> None:
    coding, body, status, outcome = case
    async with gate() as (engine, running):
        answer = await visit(way, running, CHAT, body, f"content-encoding: {coding}")
        if outcome is None:
            assert answer.status == 200
            assert [(seen.body, seen.header("content-encoding")) for seen in engine.posts()] == [(ASK, None)]
        else:
            await assert_refused_with(running, answer, outcome, status)
            assert engine.posts() == []
            assert (answer.header("accept-encoding") or "").startswith("gzip, deflate") == (status == 415)
        await at_rest(running)


async def assert_refused_with(running: Running, answer: RawAnswer, outcome: Outcome, status: int) -> None:
    """Refused so; the error's code may be closer than the outcome."""
    assert (answer.status, answer.complete, answer.header("x-sluicegate-outcome")) == (status, True, outcome.value)
    line = await log_line(running, answer.header("x-request-id"))
    assert (line["outcome"], line["status"], line["endpoint"]) == (outcome.value, status, CHAT)


@pytest.mark.parametrize("head", HEADS_THAT_ARE_NONE.values(), ids=HEADS_THAT_ARE_NONE.keys())
async def test_a_head_that_is_none_is_a_400_and_the_end(head: bytes) -> None:
    async with gate() as (engine, running), await raw(running) as client:
        answer = await client.ask(head)
        assert_not_http(running, answer)
        await assert_closed(client.stream)
        assert running.outcomes() == {"invalid": 1}
        assert engine.posts() == []
        await at_rest(running)


@pytest.mark.parametrize("way", ["fast", "chunked", "http2"])
async def test_invalid_body_is_a_400(way: str) -> None:
    """The 400 is in the client's dialect and quotes nothing of the body."""
    async with gate() as (engine, running):
        for path, body in itertools.product((CHAT, "/v1/messages"), BODIES_THAT_ARE_NONE.values()):
            answer = await visit(way, running, path, body)
            message = await assert_refused(running, answer, Outcome.INVALID, 400, path=path, retry_after=False)
            assert "water" not in message
            assert "Where" not in message
        assert engine.posts() == []
        await at_rest(running)


async def test_a_head_that_does_not_come_to_its_end_is_a_408() -> None:
    async with gate(head_read_s=0.1) as (_, running), await raw(running) as client:
        answer = await client.ask(POST.encode())
        assert_not_http(running, answer, (408,))
        await assert_closed(client.stream)
        assert running.outcomes() == {"invalid": 1}


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nhost:"], ids=["nothing", "half a GET"])
async def test_a_connection_that_asks_for_nothing_is_closed(sent: bytes) -> None:
    async with gate(keep_alive_s=0.1) as (_, running), await raw(running) as client:
        await client.stream.send_all(sent)
        await assert_closed(client.stream)
        assert running.outcomes() == {}


@pytest.mark.parametrize("sent", [POST.encode() + b"content-length: 90\r\n\r\n{", chunked(CHAT, {})[:-5]])
async def test_a_body_that_does_not_come_to_its_end_is_a_408(sent: bytes) -> None:
    async with gate(body_read_s=0.1) as (engine, running):
        answer = await ask(running, sent)
        await assert_refused(running, answer, Outcome.INVALID, 408, retry_after=False)
        assert engine.posts() == []
        await at_rest(running)


async def test_incomplete_body_on_http2_is_a_408() -> None:
    """A body on HTTP/2 that does not end in time gets a 408."""
    async with gate(body_read_s=0.1) as (_, running), Http2Visitor(await dial(running)) as visitor:
        await visitor.begin(CHAT)
        await assert_refused(running, await visitor.answer(), Outcome.INVALID, 408, retry_after=False)
        await at_rest(running)


@pytest.mark.parametrize("fields", ["content-length: {}", "transfer-encoding: chunked"])
@pytest.mark.parametrize("path", [CHAT, "/v1/audio/transcriptions", "/nowhere"])
async def test_body_too_large_is_refused(path: str, fields: str) -> None:
    """The client reads only after it has sent all it can, as most programs do."""
    size, piece = 4_000_000, 50_000
    async with gate(body_max_bytes=100_000) as (engine, running), await raw(running) as client:
        head = (
            f"POST {path} HTTP/1.1\r\nhost: gate\r\ncontent-type: multipart/form-data; boundary=b\r\n{fields}\r\n\r\n"
        )
        await client.stream.send_all(head.format(size).encode())
        framed = b"%x\r\n%b\r\n" % (piece, b"x" * piece) if "chunked" in fields else b"x" * piece
        for _ in range(size // piece):
            await client.stream.send_all(framed)
        await client.stream.send_all(b"0\r\n\r\n" if "chunked" in fields else b"")
        answer = await client.answer()
        if path == "/nowhere":
            assert (answer.status, answer.complete) == (404, True)
        else:
            await assert_refused(running, answer, Outcome.TOO_LARGE, 413, path=path, retry_after=False)
        await running.settled()
        assert running.gateway.engines.default.connections.busy == 0
        assert engine.running == 0
        await at_rest(running)


async def test_body_too_large_on_http2() -> None:
    """The refused body leaves the HTTP/2 connection usable."""
    async with gate(body_max_bytes=2000) as (_, running), Http2Visitor(await dial(running)) as visitor:
        await visitor.begin(CHAT)
        await visitor.more(b"x" * 3000)
        await visitor.until_body()
        await visitor.more(b"x" * 3000, end=True)
        await assert_refused(running, await visitor.answer(), Outcome.TOO_LARGE, 413, retry_after=False)
        assert (await visitor.ask(CHAT, question())).status == 200


@pytest.mark.parametrize(
    "head",
    [
        POST + "content-length: 2\r\nx: " + "x" * 40_000 + "\r\n\r\n",
        POST + "content-length: 2\r\n" + "x: y\r\n" * 8_000 + "\r\n",
        POST + "x: " + "x" * 80_000,
        "GET /health HTTP/1.1\r\nhost: gate\r\nx: " + "x" * 80_000 + "\r\n\r\n",
        "GET /" + "x" * 80_000 + " HTTP/1.1\r\nhost: gate\r\n\r\n",
    ],
    ids=["one field", "many fields", "no end", "quart", "path"],
)
async def test_a_head_too_large_is_a_431(head: str) -> None:
    async with gate() as (engine, running), await raw(running) as client:
        assert_not_http(running, await client.ask(head.encode()), (431,))
        await assert_closed(client.stream)
        assert engine.posts() == []


async def _http2(running: Running, *head: tuple[bytes, bytes]) -> None:
    """Open a connection, send a head that no client library would let through, and wait for what comes of it."""
    careless = h2.config.H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)
    client = h2.connection.H2Connection(careless)
    client.initiate_connection()
    client.send_headers(1, head, end_stream=True)
    async with await dial(running) as stream:
        await stream.send_all(client.data_to_send())
        with contextlib.suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass


@pytest.mark.parametrize(
    "head",
    [
        [(b":method", b"GET"), (b":path", b"/\xff"), (b":scheme", b"http"), (b":authority", b"gate")],
        [(b":method", b"G\xff"), (b":path", b"/"), (b":scheme", b"http"), (b":authority", b"gate")],
        [(b":method", b"CONNECT"), (b":authority", b"gate")],
        [(b":method", b"GET"), (b":path", b""), (b":scheme", b"http"), (b":authority", b"gate")],
        [(b":method", b"POST"), (b":path", CHAT.encode()), (b":scheme", b"http"), (b"content-length", b"7")],
        [(b":method", b"POST"), (b":path", CHAT.encode()), (b":scheme", b"http"), (b"transfer-encoding", b"chunked")],
    ],
    ids=["path", "method", "CONNECT", "no path", "length", "transfer-encoding"],
)
async def test_nonsense_on_http2(head: list[tuple[bytes, bytes]]) -> None:
    """Nonsense ends its own connection and no other."""
    async with gate() as (engine, running), await come("http2", running) as bystander:
        assert (await bystander.ask(CHAT, question())).status == 200
        await _http2(running, *head)
        assert (await bystander.ask(CHAT, question())).status == 200
        await running.settled()
        assert len(engine.posts()) == 2
        await at_rest(running)
