"""Answers of an engine, cut anywhere, wrong in any way: what is made of them, and whether the connection is kept."""

import itertools

import pytest
import trio

from sluicegate.relay.connection import HEAD_MAX, AnswerHead, EngineBroken, EngineConnection
from tests.unit.relay.scripted import ScriptedWire

REQUEST = b"POST /v1/x HTTP/1.1\r\n\r\n"
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Two: a\r\nx-two: b\r\n\r\nhello"
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNKED = CHUNKED_HEAD + b"3\r\nhel\r\n2;note=1\r\nlo\r\n0\r\nx-trailer: 1\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\nhello"
CLOSING = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello"
SHOUTED_CHUNKED = CHUNKED.replace(b"transfer-encoding: chunked", b"TRANSFER-ENCODING: Chunked ")
SHOUTED_LENGTH = LENGTH.replace(b"Content-Length", b"CONTENT-LENGTH").replace(b"X-Two: a", b"CONNECTION: X-Two, CLOSE")
OLD = b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello"
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"
NOTICED = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + LENGTH


async def exchange(wire: ScriptedWire) -> tuple[EngineConnection, AnswerHead, bytes]:
    """Ask, and read the answer to its end."""
    connection = EngineConnection(wire)
    await connection.send(REQUEST)
    head = await connection.head()
    assert not connection.reusable, "in the middle of an exchange"
    return connection, head, await body(connection)


async def body(connection: EngineConnection) -> bytes:
    parts = []
    while (part := await connection.body_part()) is not None:
        assert part
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    ("answer", "status", "expected", "kept"),
    [
        (LENGTH, 200, b"hello", True),
        (CHUNKED, 200, b"hello", True),
        (UNTIL_CLOSE, 200, b"hello", False),
        (CLOSING, 200, b"hello", False),
        (SHOUTED_CHUNKED, 200, b"hello", True),
        (SHOUTED_LENGTH, 200, b"hello", False),
        (OLD, 200, b"hello", False),
        (EMPTY, 204, b"", True),
        (NOTICED, 200, b"hello", True),
    ],
    ids=[
        "length",
        "chunked",
        "until close",
        "connection: close",
        "Chunked",
        "CLOSE",
        "HTTP/1.0",
        "no body",
        "after notices",
    ],
)
async def test_an_answer_is_the_same_wherever_it_is_cut(
    answer: bytes, status: int, expected: bytes, kept: bool
) -> None:
    cuts = [(at,) for at in range(len(answer))] + [(1, at) for at in range(2, len(answer), 3)]
    for cut in [*cuts, tuple(range(1, len(answer)))]:  # in one piece, in two at any place, in three, byte by byte
        parts = [answer[a:b] for a, b in itertools.pairwise([0, *cut, len(answer)]) if a < b]
        connection, head, read = await exchange(ScriptedWire(*parts))
        assert (head.status, read, connection.reusable) == (status, expected, kept), cut


async def test_headers_are_lower_case_and_in_order() -> None:
    _, head, _ = await exchange(ScriptedWire(LENGTH))
    assert head.headers == [(b"content-length", b"5"), (b"x-two", b"a"), (b"x-two", b"b")]
    assert head.header(b"x-two") == b"a"
    assert head.header(b"x-three") == b""


@pytest.mark.parametrize(
    ("coding", "chunked"), [(b"chunked", True), (b"Chunked", True), (b"CHUNKED ", True), (b"gzip, chunked", False)]
)
async def test_when_an_answer_is_chunked_and_no_more(coding: bytes, chunked: bool) -> None:
    """Only then the pump can pass its bytes on. A coding is compared without regard to case (RFC 9112, 7)."""
    connection, _, read = await exchange(ScriptedWire(CHUNKED.replace(b": chunked", b": " + coding)))
    assert (read, connection.answer.chunked) == (b"hello", chunked)


async def test_two_exchanges_on_one_connection() -> None:
    wire = ScriptedWire(CHUNKED, LENGTH)
    connection, _, _ = await exchange(wire)
    assert connection.answer_begun
    await connection.send(REQUEST)
    assert (connection.reusable, connection.answer_begun) == (False, False)
    head = await connection.head()
    assert (connection.reusable, connection.answer_begun) == (False, True)
    assert (head.status, await body(connection)) == (200, b"hello")
    assert connection.reusable
    assert wire.sent == REQUEST * 2


async def test_body_parts_come_as_sent() -> None:
    """Parts come as the engine sent them; those that arrived together come as one."""
    parts = (CHUNKED_HEAD + b"3\r\nhel\r\n", b"2\r\nlo\r\n1\r\n!\r\n", b"0\r\n\r\n")
    connection = EngineConnection(ScriptedWire(*parts))
    await connection.send(REQUEST)
    await connection.head()
    assert [await connection.body_part() for _ in range(3)] == [b"hel", b"lo!", None]


@pytest.mark.parametrize("cut", range(1, len(CHUNKED)))
async def test_early_end_is_a_broken_exchange(cut: int) -> None:
    """An early end breaks the exchange wherever it comes."""
    with pytest.raises(EngineBroken, match=r"without an answer|in the middle of its answer"):
        await exchange(ScriptedWire(CHUNKED[:cut]))


@pytest.mark.parametrize("cut", [0, 10, len(LENGTH) - 3])
@pytest.mark.parametrize("error", [ConnectionResetError("reset by peer"), trio.BrokenResourceError("broken")])
async def test_a_connection_that_breaks_is_a_broken_exchange(cut: int, error: Exception) -> None:
    wire = ScriptedWire(*([LENGTH[:cut]] if cut else []), error)
    with pytest.raises(EngineBroken, match="the connection to the engine broke"):
        await exchange(wire)


@pytest.mark.parametrize("error", [BrokenPipeError("gone"), trio.BrokenResourceError(), trio.ClosedResourceError()])
async def test_failed_send_is_a_broken_exchange(error: Exception) -> None:
    """A request that cannot be sent breaks the exchange before any byte of an answer."""
    wire = ScriptedWire(LENGTH)
    wire.fails_to_send = error
    connection = EngineConnection(wire)
    with pytest.raises(EngineBroken, match="while the request was sent"):
        await connection.send(REQUEST)
    assert not connection.reusable
    assert not connection.answer_begun


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00\xffthis is not HTTP\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello, too long\r\n0\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_a_broken_exchange(answer: bytes) -> None:
    with pytest.raises(EngineBroken, match="not HTTP"):
        await exchange(ScriptedWire(answer))


async def test_protocol_switch_is_a_broken_exchange() -> None:
    """An engine that wants another protocol breaks the exchange."""
    answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    with pytest.raises(EngineBroken, match="change the protocol"):
        await exchange(ScriptedWire(answer))


@pytest.mark.parametrize("answer", [b"x-more: and more\r\n" * HEAD_MAX, b"x" * HEAD_MAX * 2], ids=["fields", "field"])
async def test_a_head_without_end_is_a_broken_exchange(answer: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\nx-first: " + answer
    pieces = [answer[at : at + 8192] for at in range(0, len(answer), 8192)]
    wire = ScriptedWire(*pieces)
    with pytest.raises(EngineBroken, match=f"larger than {HEAD_MAX} bytes"):
        await exchange(wire)
    assert len(wire.parts) >= len(pieces) - HEAD_MAX // 8192 - 1, "it read on"


@pytest.mark.parametrize("surplus", [b"x", b"\r\n\r\ngarbage\r\n\r\n", LENGTH], ids=["byte", "garbage", "an answer"])
@pytest.mark.parametrize("answer", [LENGTH, CHUNKED], ids=["length", "chunked"])
async def test_surplus_bytes_end_the_connections_use(answer: bytes, surplus: bytes) -> None:
    """Bytes after an answer are no part of it, and the connection is not used again."""
    for wire in (ScriptedWire(answer + surplus), ScriptedWire(answer[:-1], answer[-1:] + surplus)):
        connection, head, read = await exchange(wire)
        assert (head.status, read) == (200, b"hello")
        assert not connection.reusable


async def test_surplus_in_a_read_of_its_own_is_not_read_here() -> None:
    connection = EngineConnection(ScriptedWire(LENGTH, b"surplus"))
    await connection.send(REQUEST)
    await connection.head()
    assert await body(connection) == b"hello"
    assert connection.reusable, "the pool looks at the socket before it is used again"


async def test_left_in_the_middle_it_is_not_reusable() -> None:
    connection = EngineConnection(ScriptedWire(*CHUNKED.partition(b"3\r\n")))
    await connection.send(REQUEST)
    assert not connection.reusable
    await connection.head()
    assert not connection.reusable
    await connection.body_part()
    assert not connection.reusable


async def test_it_passes_its_wires_life_and_end_on() -> None:
    wire = ScriptedWire()
    connection = EngineConnection(wire)
    assert connection.looks_alive()
    wire.alive = False
    assert not connection.looks_alive()
    connection.close()
    assert wire.closed
    assert connection.sock is None
    assert repr(connection) == "<EngineConnection <ScriptedWire> idle=True reused=False>"
