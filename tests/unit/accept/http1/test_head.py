"""Heads of the fast way: what it takes, and what it leaves to Hypercorn."""

import pytest

from sluicegate.accept.http1.head import Head, may_be_hot
from sluicegate.dialects.routes import ENDPOINTS
from tests.harness import CHAT

LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
HOST = b"Host: gate\r\n"
LENGTH = b"Content-Length: 2\r\n"


def test_parse() -> None:
    head = Head.parse(LINE + HOST + b"Content-Length: 2\r\nX-A:\tb  c\r\nx-a: D\r\n\r\n")
    assert head is not None
    assert head.endpoint is ENDPOINTS[CHAT]
    assert head.headers == [(b"host", b"gate"), (b"content-length", b"2"), (b"x-a", b"b  c"), (b"x-a", b"D")]
    assert head.keep_alive


def test_query() -> None:
    """As the client sent it, for the engine; what is before it decides."""
    head = Head.parse(LINE.replace(b" H", b"?beta=true&x=%20?y#z H") + HOST + LENGTH + b"\r\n")
    assert head is not None
    assert (head.endpoint, head.query) == (ENDPOINTS[CHAT], b"?beta=true&x=%20?y#z")


@pytest.mark.parametrize(
    "fields",
    [
        b"connection: upgrade\r\nupgrade: h2c\r\n",
        b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQ\r\nUpgrade: h2c\r\n",
        b"upgrade: websocket\r\nconnection: upgrade\r\nUPGRADE:h2c\r\n",
    ],
)
def test_upgrade_is_ignored(fields: bytes) -> None:
    head = Head.parse(LINE + HOST + fields + LENGTH + b"\r\n")
    assert head is not None
    assert head.keep_alive
    assert (b"content-length", b"2") in head.headers


@pytest.mark.parametrize("field", [b"expect: 100-continue", b"Expect:100-Continue "])
def test_client_that_waits_for_a_100(field: bytes) -> None:
    head = Head.parse(LINE + HOST + LENGTH + field + b"\r\n\r\n")
    assert head is not None
    assert head.expects


def test_connection_close() -> None:
    head = Head.parse(LINE + HOST + b"content-length: 2\r\nconnection: x, close\r\n\r\n")
    assert head is not None
    assert not head.keep_alive


@pytest.mark.parametrize(
    "data",
    [
        LINE + LENGTH + b"\r\n",
        LINE + HOST + b"\r\n",
        LINE + HOST + b"content-length: 0\r\n\r\n",
        LINE + HOST + HOST + LENGTH + b"\r\n",
        LINE + b"host: a b\r\n" + LENGTH + b"\r\n",
        LINE + HOST + LENGTH + b"expect: 200-ok\r\n\r\n",
        LINE + HOST + b"Transfer-Encoding: chunked\r\n\r\n",
        LINE + HOST + b"content-length: 0\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
        LINE + HOST + LENGTH + b"content-length: 2\r\n\r\n",
        LINE + HOST + LENGTH + b"x: a\r\n b\r\n\r\n",
        LINE + HOST + LENGTH + b"x: a",
        LINE.replace(b"POST ", b"POST  ") + HOST + LENGTH + b"\r\n",
        LINE.replace(b"1.1", b"1.0") + HOST + LENGTH + b"\r\n",
        LINE.replace(b"POST", b"GET") + HOST + LENGTH + b"\r\n",
        b"POST /v1/audio/transcriptions HTTP/1.1\r\n" + HOST + LENGTH + b"\r\n",
        b"POST /v1/chat/completions?a\xe9 HTTP/1.1\r\n" + HOST + LENGTH + b"\r\n",
        b"POST /v1/chat/completions?a b HTTP/1.1\r\n" + HOST + LENGTH + b"\r\n",
        b"POST /v1/audio/transcriptions?a HTTP/1.1\r\n" + HOST + LENGTH + b"\r\n",
        b"POST /nowhere?/v1/chat/completions HTTP/1.1\r\n" + HOST + LENGTH + b"\r\n",
        b"\r\n" + LINE + HOST + LENGTH + b"\r\n",
        b"",
    ],
)
def test_anything_else_is_not_for_the_fast_way(data: bytes) -> None:
    assert Head.parse(data) is None


@pytest.mark.parametrize("buffer", [b"", b"P", b"POST /", LINE + HOST, LINE + b"x: y\r"])
def test_may_be_hot(buffer: bytes) -> None:
    assert may_be_hot(buffer)


@pytest.mark.parametrize(
    "buffer", [b"G", b"post /", b"POST http", b"\r\n", b"PRI *", LINE + b"x: y\n", LINE[:-2] + b"\n"]
)
def test_cannot_be_hot_any_more(buffer: bytes) -> None:
    assert not may_be_hot(buffer)
