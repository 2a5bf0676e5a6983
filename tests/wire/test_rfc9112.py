"""RFC 9112, section by section: both ways in give each request the same answer, and nothing else reaches the engine.

A request with a declared length is one for the fast way, the same one with a chunked body is one for Hypercorn.
"""

from collections.abc import Callable

import msgspec
import pytest

from tests.harness import CHAT, question
from tests.wire.visitors import gate, raw

LINE = f"POST {CHAT} HTTP/1.1\r\n".encode()
HOST = b"host: gate\r\n"
JSON = b"content-type: application/json\r\n"
BODY = msgspec.json.encode(question())

SERVED = {
    "the plain request": LINE + HOST,
    # 2.2: a server should ignore at least one empty line before the request line
    "one empty line before": b"\r\n" + LINE + HOST,
    # 2.3: a client of HTTP/1.0 need not have a Host
    "HTTP/1.0": f"POST {CHAT} HTTP/1.0\r\n".encode(),
    # 3.2.2: a server must accept the absolute form, and take its authority for the Host
    "absolute form": f"POST http://gate{CHAT} HTTP/1.1\r\n".encode() + HOST,
    "absolute form with another host": f"POST HTTP://other:8080{CHAT} HTTP/1.1\r\n".encode() + HOST,
    "a query": f"POST {CHAT}?api-version=1 HTTP/1.1\r\n".encode() + HOST,
    # 3.2: what a Host may be; RFC 9110, 7.2: it may be empty
    "host with port": LINE + b"host: gate:8080\r\n",
    "host of IPv6": LINE + b"host: [::1]:8080\r\n",
    "empty host": LINE + b"host:\r\n",
    # 5: names in any case, optional white space around a value, tabs and bytes above 127 in it
    "name in capitals": LINE + b"HOST: gate\r\n",
    "white space around the host": LINE + b"host: \t gate \t \r\n",
    "a tab in a value": LINE + HOST + b"x: a\tb\r\n",
    "bytes above 127 in a value": LINE + HOST + b"x: a\xffb\r\n",
    "an empty value": LINE + HOST + b"x:\r\n",
    "a field twice": LINE + HOST + b"x: a\r\nx: b\r\n",
}

REFUSED = {
    # 2.2
    "three empty lines before": (b"\r\n\r\n\r\n" + LINE + HOST, 400),
    "a bare LF before": (b"\n" + LINE + HOST, 400),
    "a space before": (b" " + LINE + HOST, 400),
    "a bare LF behind the request line": (LINE.replace(b"\r", b"") + HOST, 400),
    "a bare LF behind a field": (LINE + b"host: gate\nx: a\r\n", 400),
    "a bare CR in a value": (LINE + HOST + b"x: a\rb\r\n", 400),
    "white space before the first field": (LINE + b" host: gate\r\n", 400),
    # 2.3
    "no version": (f"POST {CHAT}\r\n".encode() + HOST, 400),
    "HTTP/1.2": (f"POST {CHAT} HTTP/1.2\r\n".encode() + HOST, 400),
    "HTTP/1.10": (f"POST {CHAT} HTTP/1.10\r\n".encode() + HOST, 400),
    "HTTP/2.0 in letters": (f"POST {CHAT} HTTP/2.0\r\n".encode() + HOST, 505),
    "version in lower case": (f"POST {CHAT} http/1.1\r\n".encode() + HOST, 400),
    # 3
    "two spaces behind the method": (f"POST  {CHAT} HTTP/1.1\r\n".encode() + HOST, 400),
    "two spaces before the version": (f"POST {CHAT}  HTTP/1.1\r\n".encode() + HOST, 400),
    "a space behind the version": (f"POST {CHAT} HTTP/1.1 \r\n".encode() + HOST, 400),
    "a tab for a space": (f"POST\t{CHAT} HTTP/1.1\r\n".encode() + HOST, 400),
    # 3.1
    "method in lower case": (f"post {CHAT} HTTP/1.1\r\n".encode() + HOST, 400),
    "a method of its own": (f"GRAB {CHAT} HTTP/1.1\r\n".encode() + HOST, 400),
    # 3.2
    "no host": (LINE, 400),
    "two hosts": (LINE + HOST + HOST, 400),
    "a list of hosts": (LINE + b"host: gate, other\r\n", 400),
    "a host with a path": (LINE + b"host: gate/x\r\n", 400),
    "a host with a user": (LINE + b"host: user@gate\r\n", 400),
    "a port that is no number": (LINE + b"host: gate:x\r\n", 400),
    "a space in the path": (b"POST /v1/chat completions HTTP/1.1\r\n" + HOST, 400),
    "a path that is not ASCII": (f"POST {CHAT}".encode() + b"\xff HTTP/1.1\r\n" + HOST, 400),
    "authority form": (b"POST gate:80 HTTP/1.1\r\n" + HOST, 400),
    "asterisk form": (b"POST * HTTP/1.1\r\n" + HOST, 400),
    "CONNECT": (b"CONNECT gate:80 HTTP/1.1\r\n" + HOST, 400),
    # 5
    "a space before the colon": (LINE + b"host : gate\r\n", 400),
    "a tab before the colon": (LINE + HOST + b"x\t: a\r\n", 400),
    "no colon": (LINE + HOST + b"x\r\n", 400),
    "no name": (LINE + HOST + b": a\r\n", 400),
    "a name that is no token": (LINE + HOST + b"x(y): a\r\n", 400),
    "a name that is not ASCII": (LINE + HOST + b"x\xff: a\r\n", 400),
    "a folded value": (LINE + HOST + b"x: a\r\n b\r\n", 400),
    "NUL in a value": (LINE + HOST + b"x: a\x00b\r\n", 400),
    "a control character in a value": (LINE + HOST + b"x: a\x01b\r\n", 400),
    "DEL in a value": (LINE + HOST + b"x: a\x7fb\r\n", 400),
}


def with_length(head: bytes) -> bytes:
    return head + JSON + b"content-length: %d\r\n\r\n" % len(BODY) + BODY


def chunked(head: bytes) -> bytes:
    # HTTP/1.0 has no chunks: there both ways in get a length (RFC 9112, 6.1)
    if b"HTTP/1.0" in head:
        return with_length(head)
    return head + JSON + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.fixture(params=[with_length, chunked], ids=["fast", "ordinary"])
def framed(request: pytest.FixtureRequest) -> Callable[[bytes], bytes]:
    chosen: Callable[[bytes], bytes] = request.param
    return chosen


@pytest.mark.parametrize("case", SERVED)
async def test_what_a_server_must_take_is_served(framed: Callable[[bytes], bytes], case: str) -> None:
    async with gate() as (engine, running), await raw(running) as client:
        answer = await client.ask(framed(SERVED[case]))
        assert answer.status == 200, answer
        assert len(engine.posts()) == 1


@pytest.mark.parametrize("case", REFUSED)
async def test_what_breaks_it_is_refused_and_the_connection_closed(framed: Callable[[bytes], bytes], case: str) -> None:
    head, status = REFUSED[case]
    async with gate() as (engine, running), await raw(running) as client:
        answer = await client.ask(framed(head))
        assert (answer.status, answer.header("connection")) == (status, "close"), answer
        assert engine.posts() == []
        if answer.body:  # h11's own refusals have none
            assert answer.header("x-sluicegate-outcome") == "invalid"
            assert running.outcomes() == {"invalid": 1}


async def test_options_of_the_server_as_a_whole_are_told() -> None:
    async with gate() as (_, running), await raw(running) as client:
        answer = await client.ask(b"OPTIONS * HTTP/1.1\r\nhost: gate\r\n\r\n")
        assert (answer.status, answer.header("allow")) == (200, "GET, POST, OPTIONS")
        assert running.outcomes() == {}


async def test_an_empty_line_behind_a_body_does_not_disturb_the_next_request() -> None:
    async with gate() as (engine, running), await raw(running) as client:
        for _ in range(2):
            assert (await client.ask(with_length(LINE + HOST) + b"\r\n")).status == 200
        assert len(engine.posts()) == 2
