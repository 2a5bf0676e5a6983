"""RFC 9112, section by section: both ways in give the same answer to the same bytes, and nothing is smuggled past.

Each case is sent twice, byte for byte the same: first on a new connection (the fast way, which hands over what is not
for it), then on one that Hypercorn already has (the ordinary way). Behind each stands a second request, which must be
served only if the connection may be kept.
"""

from dataclasses import dataclass

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.engine_contract.raw import RawAnswer, get, post
from tests.harness import CHAT, Running, question
from tests.wire.visitors import at_rest, gate, raw

LINE = f"POST {CHAT} HTTP/1.1"
ID = "x-request-id: #id#"  # each case's own, and so its requests are known at the engine
TYPE = "content-type: application/json"
BODY = b'{"model": "fake-model", "messages": [{"role": "user", "content": "hi"}]}'
LENGTH = f"content-length: {len(BODY)}"
CHUNKED = "transfer-encoding: chunked"
ONE_CHUNK = b"%x\r\n%b\r\n" % (len(BODY), BODY)


@dataclass(frozen=True)
class Case:
    """`kept`: the connection takes another request. `why`: the section of RFC 9112, and what is decided."""

    why: str
    request: bytes
    status: int
    kept: bool = False


def case(
    why: str,
    status: int,
    *fields: str | bytes,
    line: str | bytes = LINE,
    host: str | bytes | None = "host: gate",
    framing: str | None = LENGTH,
    body: bytes = BODY,
    end: bytes = b"\r\n",
    kept: bool | None = None,
) -> Case:
    """A request that is valid but for what is given; kept if it is served, unless `kept` says otherwise."""
    lines = [
        text if isinstance(text, bytes) else text.encode() for text in (line, ID, TYPE, host, framing, *fields) if text
    ]
    return Case(why, end.join(lines) + 2 * end + body, status, status == 200 if kept is None else kept)


CASES = {
    # -- 2.2 Message Parsing ----------------------------------------------------------------------------------------
    "plain": case("valid", 200),
    "empty line before": case("2.2: one SHOULD be ignored", 200, line="\r\n" + LINE),
    "two empty lines before": case("2.2: at least one is; a second is refused", 400, line="\r\n\r\n" + LINE),
    "bare LF before": case("2.2: MAY be a line's end; refused", 400, line="\n" + LINE),
    "bare LF everywhere": case("2.2: MAY be a line's end; refused", 400, end=b"\n"),
    "bare LF after the request line": case("2.2: as above", 400, line=LINE + "\nx: y"),
    "bare LF after a field": case("2.2: as above", 400, "x: y\nz: w"),
    "bare LF as the blank line": case("2.2: as above", 400, "x: y\n\nz: w"),
    "bare CR in a value": case("2.2: invalid, or replaced by a space; refused", 400, "x: a\rb"),
    "bare CR in a name": case("2.2: as above", 400, "x\r: a"),
    "bare CR after a value": case("2.2: as above", 400, "x: a\r"),
    "bare CR in the request line": case("2.2: as above", 400, line=LINE.replace(" H", "\rH")),
    "white space before the first field": case(
        "2.2: MUST be refused or dropped; refused", 400, line=LINE + "\r\n x: y"
    ),
    # -- 2.3 HTTP Version, 3 Request Line ---------------------------------------------------------------------------
    "HTTP/1.0": case("2.3: served and closed", 200, line=LINE[:-1] + "0", kept=False),
    "HTTP/1.0 without Host": case("3.2: not needed", 200, line=LINE[:-1] + "0", host=None, kept=False),
    "HTTP/1.0, kept": case("9.3: may be asked for", 200, "connection: keep-alive", line=LINE[:-1] + "0", kept=False),
    "HTTP/1.2": case("RFC 9110, 2.5: SHOULD be read as 1.1; there is none, refused", 400, line=LINE[:-1] + "2"),
    "HTTP/2.0 as text": case("RFC 9110, 15.6.6: 505 or 400", 400, line=LINE[:-3] + "2.0"),
    "HTTP/0.9": case("as above", 400, line=LINE[:-3] + "0.9"),
    "HTTP/1.10": case("2.3: one digit", 400, line=LINE + "0"),
    "HTTP/1": case("2.3: one digit", 400, line=LINE[:-2]),
    "http/1.1": case("2.3: the name is case-sensitive", 400, line=LINE.replace("HTTP", "http")),
    "no version": case("3: malformed", 400, line=f"POST {CHAT}"),
    "two spaces after the method": case("3: MAY be repaired; refused", 400, line=f"POST  {CHAT} HTTP/1.1"),
    "two spaces after the target": case("3: as above", 400, line=f"POST {CHAT}  HTTP/1.1"),
    "tab in the request line": case("3: as above", 400, line=f"POST\t{CHAT} HTTP/1.1"),
    "space after the version": case("3: as above", 400, line=LINE + " "),
    "space before the method": case("3: as above", 400, line=" " + LINE),
    "space in the target": case("3.2: no white space", 400, line="POST /v1/chat completions HTTP/1.1"),
    "control character in the target": case("3.2", 400, line=f"POST {CHAT}\x01 HTTP/1.1"),
    "target that is not ASCII": case("3.2", 400, line=f"POST {CHAT}".encode() + b"\xff HTTP/1.1"),
    "method in lower case": case("RFC 9110, 9.1: case-sensitive", 400, line=LINE.replace("POST", "post")),
    "unknown method": case("RFC 9110, 9.1: 501 or 400", 400, line=LINE.replace("POST", "GRAB")),
    "method that is no token": case("3.1", 400, line=LINE.replace("POST", "PO(ST")),
    # -- 3.2 Request Target -----------------------------------------------------------------------------------------
    "URL as the target": case("3.2.2: MUST be accepted", 200, line=f"POST http://gate{CHAT} HTTP/1.1"),
    "URL with a port": case("3.2.2", 200, line=f"POST HTTP://gate:8080{CHAT}?a=b HTTP/1.1"),
    "URL without Host": case("3.2: needed all the same", 400, line=f"POST http://gate{CHAT} HTTP/1.1", host=None),
    "URL without authority": case("RFC 9110, 4.2.1: invalid", 400, line=f"POST http://{CHAT} HTTP/1.1"),
    "URL with a user": case("RFC 9110, 4.2.4: an error", 400, line=f"POST http://me@gate{CHAT} HTTP/1.1"),
    "URL of another kind": case("3.2.2", 400, line=f"POST ftp://gate{CHAT} HTTP/1.1"),
    "URL of another host": case("3.2.2: Host is ignored", 200, line=f"POST http://other{CHAT} HTTP/1.1"),
    "query": case("3.2.1: valid", 200, line=f"POST {CHAT}?api-version=1 HTTP/1.1"),
    "percent-encoded": case("RFC 3986, 6.2.2.2: the same", 200, line="POST /v1/%63hat%2Fcompletion%73?a=%20 HTTP/1.1"),
    "dot segments": case("RFC 3986, 5.2.4: removed", 200, line="POST /v1/./x/../chat/completions HTTP/1.1"),
    "encoded dot segments": case(
        "RFC 3986, 6.2.2: as above", 200, line="POST /v1/%2e/x/.%2E/chat/completions HTTP/1.1"
    ),
    "dot segments in a URL": case("as above", 200, line="POST http://gate/v1/./chat/completions HTTP/1.1"),
    "dot segments up to the root": case(
        "would get past a proxy's rule for /x", 404, line=f"POST /x/..{CHAT} HTTP/1.1", kept=True
    ),
    "no slash": case("3.2.1", 400, line=f"POST {CHAT[1:]} HTTP/1.1"),
    "asterisk": case("3.2.4: for OPTIONS only", 400, line="POST * HTTP/1.1"),
    "authority": case("3.2.3: for CONNECT only", 400, line="POST gate:80 HTTP/1.1"),
    "CONNECT": case("3.2.3: no tunnels", 400, line="CONNECT gate:80 HTTP/1.1"),
    # -- 3.2 Host ---------------------------------------------------------------------------------------------------
    "no Host": case("3.2: MUST be refused", 400, host=None),
    "two Hosts": case("3.2: MUST be refused", 400, "host: other"),
    "two equal Hosts": case("3.2: MUST be refused", 400, "Host: gate"),
    "empty Host": case("3.2: valid", 200, host="host:"),
    "Host with a port": case("3.2: valid", 200, host="Host: gate.example:8080"),
    "Host that is an IPv6 address": case("3.2: valid", 200, host="host: [::1]:8080"),
    "Host with spaces around": case("5.1: valid", 200, host="host: \t gate \t"),
    "list of Hosts": case("3.2: MUST be refused", 400, host="host: gate, other"),
    "Host with a space": case("3.2: MUST be refused", 400, host="host: a b"),
    "Host with a path": case("3.2: as above", 400, host="host: gate/v1"),
    "Host with a user": case("3.2: as above", 400, host="host: me@gate"),
    "Host with two ports": case("3.2: as above", 400, host="host: gate:80:80"),
    "Host with a port that is a word": case("3.2: as above", 400, host="host: gate:http"),
    "Host that is not ASCII": case("3.2: as above", 400, host=b"host: g\xe4te"),
    "Host with half a bracket": case("3.2: as above", 400, host="host: [::1"),
    # -- 5 Field Syntax ---------------------------------------------------------------------------------------------
    "empty value": case("5: valid", 200, "x:"),
    "field twice": case("RFC 9110, 5.3: valid", 200, "x: y", "x: z"),
    "no space after the colon": case("5: valid", 200, "x:y"),
    "tab in a value": case("RFC 9110, 5.5: valid", 200, "x: a\tb"),
    "value that is not ASCII": case("RFC 9110, 5.5: valid", 200, b"x: \xe9\xff"),
    "space before the colon": case("5.1: MUST be refused", 400, "x : y"),
    "tab before the colon": case("5.1: as above", 400, "x\t: y"),
    "space in a name": case("5.1", 400, "x y: z"),
    "empty name": case("5.1", 400, ": y"),
    "no colon": case("5", 400, "x"),
    "name that is no token": case("RFC 9110, 5.6.2", 400, "x(y): z"),
    "name that is not ASCII": case("RFC 9110, 5.6.2", 400, b"\xe9: z"),
    "folded value": case("5.2: MUST be refused or replaced; refused", 400, "x: a\r\n b"),
    "value folded by a tab": case("5.2: as above", 400, "x: a\r\n\tb"),
    "NUL in a value": case("RFC 9110, 5.5: MUST be refused or replaced; refused", 400, "x: a\0b"),
    "control character in a value": case("RFC 9110, 5.5: invalid, MAY be kept; refused", 400, "x: a\x01b"),
    "vertical tab in a value": case("RFC 9110, 5.5: as above", 400, "x: a\x0bb"),
    "DEL in a value": case("RFC 9110, 5.5: as above", 400, "x: a\x7fb"),
    "NUL in a name": case("5.1", 400, "x\0: a"),
    # -- 6 Message Body ---------------------------------------------------------------------------------------------
    "no length": case("6.3: no body, and that is no JSON", 400, framing=None, body=b"", kept=True),
    "leading zeros": case("RFC 9110, 8.6: valid", 200, framing=LENGTH.replace(": ", ": 00")),
    "spaces behind a length": case("5.1: not part of it", 200, framing=LENGTH + " \t"),
    "no body": case("6.3: and that is no JSON", 400, framing="content-length: 0", body=b"", kept=True),
    "no body, close": case("9.6", 400, "connection: close", framing="content-length: 0", body=b""),
    "two lengths": case("6.3: MUST be refused", 400, "content-length: 3"),
    "two equal lengths": case("6.3: MUST be refused or merged; refused", 400, LENGTH),
    "list of lengths": case("6.3: as above", 400, framing="content-length: 2, 2"),
    "list of different lengths": case("6.3: MUST be refused", 400, framing="content-length: 2, 3"),
    "negative length": case("6.3: MUST be refused", 400, framing="content-length: -2"),
    "length with a plus": case("6.3: as above", 400, framing="content-length: +2"),
    "hexadecimal length": case("6.3: as above", 400, framing="content-length: 0x2"),
    "length with an underscore": case("6.3: as above", 400, framing="content-length: 1_0"),
    "length that is a fraction": case("6.3: as above", 400, framing="content-length: 2.0"),
    "length with a space in it": case("6.3: as above", 400, framing="content-length: 2 2"),
    "empty length": case("6.3: as above", 400, framing="content-length:"),
    "length above the limit": case("RFC 9110, 15.5.14", 413, framing="content-length: 999999999999"),
    "length of 20 digits": case("RFC 9110, 8.6: no overflow", 413, framing="content-length: " + "9" * 20),
    "length of 26 digits": case("RFC 9110, 8.6: no overflow", 400, framing="content-length: " + "9" * 26),
    "length and coding": case("6.3: MAY be refused; refused", 400, CHUNKED, body=b"0\r\n\r\n"),
    "coding and length": case("6.3: as above", 400, LENGTH, framing=CHUNKED, body=b"0\r\n\r\n"),
    "coding in HTTP/1.0": case("6.1: faulty framing", 400, line=LINE[:-1] + "0", framing=CHUNKED, body=b"0\r\n\r\n"),
    "coding before chunked": case("6.1: SHOULD be 501", 501, framing="transfer-encoding: gzip, chunked"),
    "coding in two fields": case("6.1: as above", 501, CHUNKED, framing="transfer-encoding: gzip"),
    "chunked is not last": case("6.3: MUST be refused", 400, framing="transfer-encoding: chunked, gzip"),
    "no chunked": case("6.3: as above", 400, framing="transfer-encoding: gzip"),
    "identity": case("6.1: no longer a coding", 400, framing="transfer-encoding: identity"),
    "chunked twice": case("6.1: MUST NOT be", 400, framing="transfer-encoding: chunked, chunked"),
    "chunked in two fields": case("6.1: as above", 400, CHUNKED, framing=CHUNKED),
    "misspelt chunked": case("6.1", 400, framing="transfer-encoding: xchunked"),
    "chunked after a vertical tab": case("RFC 9110, 5.5", 400, framing="transfer-encoding: \x0bchunked"),
    "quoted chunked": case("7", 400, framing='transfer-encoding: "chunked"'),
    "chunked with a parameter": case("7.1: SHOULD be an error", 400, framing="transfer-encoding: chunked;a=b"),
    "empty coding": case("6.1", 400, framing="transfer-encoding:"),
    # -- 7.1 Chunked ------------------------------------------------------------------------------------------------
    "chunked": case("7.1: valid", 200, framing=CHUNKED, body=ONE_CHUNK + b"0\r\n\r\n"),
    "Chunked": case("7: case-insensitive", 200, framing="Transfer-Encoding: Chunked", body=ONE_CHUNK + b"0\r\n\r\n"),
    "leading zeros of a chunk's size": case(
        "7.1: valid", 200, framing=CHUNKED, body=b"00" + ONE_CHUNK + b"000\r\n\r\n"
    ),
    "chunk extension": case(
        "7.1.1: ignored", 200, framing=CHUNKED, body=ONE_CHUNK.replace(b"\r", b';a="b"\r', 1) + b"0;c\r\n\r\n"
    ),
    "trailer": case("7.1.2: dropped", 200, framing=CHUNKED, body=ONE_CHUNK + b"0\r\nx: y\r\n\r\n"),
    "chunk's size is no number": case("7.1", 400, framing=CHUNKED, body=b"x" + ONE_CHUNK + b"0\r\n\r\n"),
    "chunk's size has a prefix": case("7.1", 400, framing=CHUNKED, body=b"0x" + ONE_CHUNK + b"0\r\n\r\n"),
    "chunk's size has a sign": case("7.1", 400, framing=CHUNKED, body=b"+" + ONE_CHUNK + b"0\r\n\r\n"),
    "chunk's size has an underscore": case("7.1", 400, framing=CHUNKED, body=b"0_" + ONE_CHUNK + b"0\r\n\r\n"),
    "chunk's size is missing": case("7.1", 400, framing=CHUNKED, body=b"\r\n" + ONE_CHUNK + b"0\r\n\r\n"),
    "chunk's size does not end": case("7.1: no overflow", 400, framing=CHUNKED, body=b"f" * 30 + b"\r\n"),
    "space before a chunk's size": case("7.1", 400, framing=CHUNKED, body=b" " + ONE_CHUNK + b"0\r\n\r\n"),
    "space after a chunk's size": case(
        "7.1: not in the grammar, though some send it", 400, framing=CHUNKED, body=ONE_CHUNK.replace(b"\r", b" \r", 1)
    ),
    "bare LF after a chunk's size": case(
        "7.1", 400, framing=CHUNKED, body=ONE_CHUNK.replace(b"\r\n", b"\n", 1) + b"0\r\n\r\n"
    ),
    "bare LF in a chunk's extension": case(
        "7.1.1", 400, framing=CHUNKED, body=ONE_CHUNK.replace(b"\r\n", b";\n\r\n", 1) + b"0\r\n\r\n"
    ),
    "bare CR in a chunk's extension": case(
        "7.1.1", 400, framing=CHUNKED, body=ONE_CHUNK.replace(b"\r\n", b";\ra\r\n", 1) + b"0\r\n\r\n"
    ),
    "chunk longer than its size": case("7.1", 400, framing=CHUNKED, body=ONE_CHUNK[:-2] + b"x\r\n0\r\n\r\n"),
    "bare LF after a chunk": case("7.1", 400, framing=CHUNKED, body=ONE_CHUNK[:-2] + b"\n0\r\n\r\n"),
    "bare LF as the end": case("7.1", 400, framing=CHUNKED, body=ONE_CHUNK + b"0\r\n\n"),
    "bare LF in the trailers": case("7.1.2", 400, framing=CHUNKED, body=ONE_CHUNK + b"0\r\nx: y\n\r\n"),
    "folded trailer": case("5.2", 400, framing=CHUNKED, body=ONE_CHUNK + b"0\r\nx: y\r\n z\r\n\r\n"),
    "control character in a trailer": case("5.5", 400, framing=CHUNKED, body=ONE_CHUNK + b"0\r\nx: \x01\r\n\r\n"),
    "trailer without a colon": case("5", 400, framing=CHUNKED, body=ONE_CHUNK + b"0\r\nx\r\n\r\n"),
    # -- 9 Connection Management ------------------------------------------------------------------------------------
    "close": case("9.6: what follows is not read", 200, "connection: close", kept=False),
    "close among others": case("9.6: a list", 200, "connection: x, Close", kept=False),
    "close of a chunked request": case(
        "9.6", 200, "connection: close", framing=CHUNKED, body=ONE_CHUNK + b"0\r\n\r\n", kept=False
    ),
    # -- RFC 6585, 5 ------------------------------------------------------------------------------------------------
    "field too long": case("431", 431, "x: " + "y" * 40_000),
    "fields too many": case("431", 431, *["x: y"] * 10_000),
    "target too long": case("414 or 431", 431, line=f"POST {CHAT}?{'x' * 40_000} HTTP/1.1"),
}


@pytest.mark.parametrize("way", ["fast", "ordinary"])
async def test_only_valid_requests_are_served(way: str) -> None:
    """Anything invalid is refused, and its connection is closed."""
    expected = {name: (one.status, one.kept, one.status == 200, one.kept) for name, one in CASES.items()}
    got: dict[str, tuple[int, bool, bool, bool]] = {}
    answers: dict[str, RawAnswer] = {}
    async with gate(max_active=2 * len(CASES)) as (engine, running):

        async def send(name: str, request: bytes, rank: int) -> None:
            behind = post(CHAT, question(), f"x-request-id: behind-{rank}")
            answer, kept = await _ask(running, way, request.replace(b"#id#", b"case-%d" % rank) + behind)
            answers[name] = answer
            ids = [seen.header("x-request-id") for seen in engine.posts()]
            got[name] = (answer.status, kept, f"case-{rank}" in ids, f"behind-{rank}" in ids)

        async with trio.open_nursery() as nursery:
            for rank, (name, one) in enumerate(CASES.items()):
                nursery.start_soon(send, name, one.request, rank)
        assert {name: (found, expected[name]) for name, found in got.items() if found != expected[name]} == {}
        assert len(got) == len(CASES)
        for name, answer in answers.items():
            if answer.status != 200:
                _assert_told(running, name, answer)
        await at_rest(running)


async def _ask(running: Running, way: str, sent: bytes) -> tuple[RawAnswer, bool]:
    """The answer to the first of two requests, and whether the second got one, too."""
    async with await raw(running) as client:
        if way == "ordinary":
            assert (await client.ask(get("/health"))).status == 200
        await client.stream.send_all(sent)
        answer = await client.answer_only()
        assert answer.complete
        try:
            return answer, (await client.answer()).status == 200
        except (EOFError, ConnectionResetError):
            return answer, False


def _assert_told(running: Running, name: str, answer: RawAnswer) -> None:
    """The client by an error that says why without quoting it; the operator by log and metrics."""
    outcome = "too_large" if answer.status == 413 else "invalid"
    assert answer.header("x-sluicegate-outcome") == outcome, name
    assert b'"error"' in answer.body, name
    assert b"#" not in answer.body, name
    lines = [line for line in running.log_lines("request") if line["request_id"] == answer.header("x-request-id")]
    assert [(line["outcome"], line["status"]) for line in lines] == [(outcome, answer.status)], name


@pytest.mark.parametrize("way", ["fast", "ordinary"])
async def test_a_refused_head_is_answered_in_its_dialect(way: str) -> None:
    async with gate() as (_, running):
        answer, _ = await _ask(running, way, b"POST /v1/messages HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}")
        assert answer.json() == {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "The request is not valid HTTP/1.1: it has no Host field.",
            },
        }
        assert running.outcomes() == {"invalid": 1}
        assert running.metric("api_requests_total", endpoint="other", status="400") == 1


async def test_broken_chunk_in_an_upload() -> None:
    """A broken chunk in an upload that is passed on makes the request invalid."""
    fields = "content-type: multipart/form-data; boundary=b\r\ntransfer-encoding: chunked"
    head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: gate\r\n{fields}\r\n\r\n".encode()
    async with gate() as (_, running), await raw(running) as client:
        await client.stream.send_all(head + b"3\r\n--b\r\n")
        while not running.metric("api_active_requests"):
            await wait_all_tasks_blocked()
        await client.stream.send_all(b"0x3\r\n--b\r\n")
        answer = await client.answer()
        assert (answer.status, answer.header("x-sluicegate-outcome")) == (400, "invalid")
        assert answer.header("connection") == "close"
        await at_rest(running)
        assert running.outcomes() == {"invalid": 1}


async def test_options_of_the_server_as_a_whole_are_told() -> None:
    """RFC 9112, 3.2.4, and RFC 9110, 9.3.7."""
    async with gate() as (_, running), await raw(running) as client:
        answer = await client.ask(b"OPTIONS * HTTP/1.1\r\nhost: gate\r\n\r\n")
        assert (answer.status, answer.header("allow")) == (200, "GET, POST, OPTIONS")
        assert answer.header("x-request-id")
        assert running.outcomes() == {}


async def test_empty_line_after_a_body() -> None:
    """RFC 9112, 2.2: some old clients send one."""
    async with gate() as (engine, running), await raw(running) as client:
        for _ in range(2):
            assert (await client.ask(CASES["plain"].request + b"\r\n")).status == 200
        assert len(engine.posts()) == 2
