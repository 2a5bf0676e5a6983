"""A body and a client on a connection of the fast way: what is read, what is written, and when the connection ends."""

import socket

import pytest
import trio

from sluicegate.accept.http1.client import Http1Body, Http1Client
from sluicegate.accept.intake import too_slow
from sluicegate.bodies import Bodies, Room
from sluicegate.config.live import Live
from sluicegate.config.schema import Config
from sluicegate.exchange import ClientGone, Headers
from sluicegate.outcome import Outcome, Refusal

ROOM = Room(Bodies(Live(Config())))


class Peer:
    """A connection: what its peer has sent, and what it got, a send an item."""

    def __init__(self, received: bytes = b"", config: Config | None = None) -> None:
        self.received = received
        self.sent: list[bytes] = []
        self.closing = False
        self.config = Live(config or Config())
        self.taken: list[int] = []

    sock: socket.socket  # which only the pump asks for

    async def take(self, length: int, body: Http1Body) -> bytes:
        self.taken.append(length)
        if len(self.received) < length:
            await body.begin(length)
        body.come(len(self.received))
        data, self.received = self.received[:length], self.received[length:]
        if len(data) < length:
            raise too_slow(self.config.current.timeouts.body_read_s)
        return data

    async def send(self, data: bytes) -> None:
        self.sent.append(data)


def body_of(peer: Peer, *headers: tuple[bytes, bytes]) -> Http1Body:
    return Http1Body(peer, list(headers))


def client_of(peer: Peer, *, keep_alive: bool = True, body: Http1Body | None = None) -> Http1Client:
    return Http1Client(peer, "id-1", body, keep_alive=keep_alive)


def fields_of(head: bytes) -> Headers:
    """The fields of an answer's head but for its date."""
    lines = head.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    fields = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
    assert [name for name, _ in fields].count(b"date") == 1
    return [field for field in fields if field[0] != b"date"]


async def test_body_at_hand_is_taken() -> None:
    """The body takes its own bytes and leaves those that follow it."""
    peer = Peer(b"{}POST")
    body = body_of(peer, (b"content-length", b"2"))
    assert [part async for part in body.parts(ROOM)] == [b"{}"]
    assert (body.consumed, peer.received) == (True, b"POST")


async def test_incomplete_body_is_refused() -> None:
    """A body that does not arrive in time is refused with a 408 and is not consumed."""
    body = body_of(Peer(b"{"), (b"content-length", b"2"))
    with pytest.raises(Refusal) as caught:
        await body.whole(ROOM)
    assert (caught.value.outcome, caught.value.status, body.consumed) == (Outcome.INVALID, 408, False)


async def test_body_too_large_is_refused_unread() -> None:
    """A declared length over the limit is refused before anything is read."""
    peer = Peer()
    with pytest.raises(Refusal) as caught:
        await body_of(peer, (b"content-length", b"999999999999")).whole(ROOM)
    assert (caught.value.outcome, peer.taken) == (Outcome.TOO_LARGE, [])


async def test_a_small_answer_is_one_send() -> None:
    peer = Peer()
    client = client_of(peer)
    await client.respond(200, [(b"a", b"b")], b"{}")
    (sent,) = peer.sent
    assert sent.startswith(b"HTTP/1.1 200 OK\r\n")
    assert sent.endswith(b"\r\n\r\n{}")
    assert fields_of(sent) == [(b"a", b"b"), (b"x-request-id", b"id-1"), (b"content-length", b"2")]
    assert (client.started, client.complete, client.keep_alive) == (True, True, True)


@pytest.mark.parametrize("status", [200, 404])
async def test_closing_at_the_last_byte_is_no_abort(status: int) -> None:
    """A client that disconnects has its request cancelled; with its whole answer at hand it has aborted nothing."""

    class Leaving(Peer):
        async def send(self, data: bytes) -> None:
            scope.cancel()

    with trio.CancelScope() as scope:
        await client_of(Leaving()).respond(status, [], b"{}")
    assert scope.cancel_called
    assert not scope.cancelled_caught


async def test_head_goes_out_with_the_first_chunk() -> None:
    """The head of a stream waits for the first chunk and shares a write with it."""
    peer = Peer()
    client = client_of(peer)
    await client.start(200, [])
    assert (client.started, peer.sent) == (True, [])
    await client.send(b"0123456789abcdef")
    await client.send(b"a")
    await client.finish()
    first, *others = peer.sent
    assert fields_of(first) == [(b"x-request-id", b"id-1"), (b"transfer-encoding", b"chunked")]
    assert first.endswith(b"\r\n\r\n10\r\n0123456789abcdef\r\n")
    assert others == [b"1\r\na\r\n", b"0\r\n\r\n"]
    assert client.complete


@pytest.mark.parametrize("why", ["the client's wish", "the gateway closes", "a body that was not read"])
async def test_the_last_answer_says_so(why: str) -> None:
    peer = Peer()
    peer.closing = why == "the gateway closes"
    body = body_of(peer) if why == "a body that was not read" else None
    client = client_of(peer, keep_alive=why != "the client's wish", body=body)
    await client.respond(404, [], b"")
    assert (b"connection", b"close") in fields_of(peer.sent[0])
    assert not client.keep_alive


async def test_what_the_pump_owes_goes_out_first() -> None:
    peer = Peer()
    client = client_of(peer)
    await client.start(200, [])
    await client.send(b"a")
    client.owe(b"1\r\nb\r\n")
    await client.send(b"c")
    assert peer.sent[1:] == [b"1\r\nb\r\n1\r\nc\r\n"]


@pytest.mark.parametrize("how", ["finished", "end owed"])
async def test_nothing_is_sent_after_the_end(how: str) -> None:
    peer = Peer()
    client = client_of(peer)
    await client.start(200, [])
    if how == "finished":
        await client.finish()
    else:
        client.owe(b"1\r\nb\r\n0\r\n\r\n")
    count = len(peer.sent)
    with pytest.raises(ClientGone):
        await client.send(b"c")
    assert len(peer.sent) == count
