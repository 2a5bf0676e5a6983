"""ASGI's side of a client, on virtual time: each piece of an answer has its deadline, and no answer more than that."""

import pytest
import trio
from hypercorn.typing import ASGISendEvent, HTTPRequestEvent
from trio.testing import MockClock

from sluicegate.accept.asgi import AsgiBody, AsgiClient
from sluicegate.accept.handler import Peer
from sluicegate.accept.intake import PIECE
from sluicegate.config.schema import Config
from sluicegate.exchange import ClientStalled

STALL_S = 15.0


class Transport:
    """Takes each event in so many seconds."""

    def __init__(self, takes_s: float = 0.0) -> None:
        self.takes_s = takes_s
        self.events: list[ASGISendEvent] = []
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True

    async def send(self, event: ASGISendEvent) -> None:
        await trio.sleep(self.takes_s)
        self.events.append(event)

    async def receive(self) -> HTTPRequestEvent:
        await trio.sleep_forever()
        raise AssertionError

    @property
    def body(self) -> bytes:
        return b"".join(event["body"] for event in self.events if event["type"] == "http.response.body")


async def client_of(transport: Transport, nursery: trio.Nursery) -> AsgiClient:
    peer = Peer(transport.abort)
    body = AsgiBody(transport.receive, [], Config(), nursery, peer)
    return AsgiClient("id-1", transport.send, body, peer, STALL_S)


@pytest.mark.parametrize("whole", [True, False])
async def test_slow_client_gets_a_large_answer(autojump_clock: MockClock, whole: bool) -> None:
    """A client that takes each piece in time gets all of a large answer."""
    transport = Transport(takes_s=STALL_S - 1)
    data = b"x" * (10 * PIECE + 1)
    async with trio.open_nursery() as nursery:
        client = await client_of(transport, nursery)
        began = trio.current_time()
        if whole:
            await client.respond(200, [(b"x-engine", b"1")], data)
        else:
            await client.start(200, [])
            await client.send(data)
            await client.finish()
        assert trio.current_time() - began > 10 * STALL_S
        nursery.cancel_scope.cancel()
    assert transport.body == data
    start, *_, last = transport.events
    assert start["type"] == "http.response.start"
    assert (b"x-request-id", b"id-1") in start["headers"]
    assert ((b"content-length", b"%d" % len(data)) in start["headers"]) is whole
    assert last["type"] == "http.response.body"
    assert not last["more_body"]


@pytest.mark.parametrize("step", ["start", "send", "finish"])
async def test_client_that_takes_nothing_is_stalled(autojump_clock: MockClock, step: str) -> None:
    """A client that does not take a piece in time is stalled, whatever the call."""
    transport = Transport()
    async with trio.open_nursery() as nursery:
        client = await client_of(transport, nursery)
        steps = {
            "start": lambda: client.start(200, []),
            "send": lambda: client.send(b"x"),
            "finish": client.finish,
        }
        for name, act in steps.items():
            if name == step:
                transport.takes_s = STALL_S + 1
                began = trio.current_time()
                with pytest.raises(ClientStalled):
                    await act()
                assert trio.current_time() - began == pytest.approx(STALL_S)
                assert transport.aborted
                break
            await act()
        nursery.cancel_scope.cancel()


async def test_nothing_is_sent_for_nothing(autojump_clock: MockClock) -> None:
    transport = Transport()
    async with trio.open_nursery() as nursery:
        client = await client_of(transport, nursery)
        before = client.started
        await client.respond(204, [], b"")
        assert (before, client.started) == (False, True)
        nursery.cancel_scope.cancel()
    assert [event["type"] for event in transport.events] == ["http.response.start", "http.response.body"]


@pytest.mark.parametrize("size", [0, 2, 2 * PIECE])
async def test_closing_at_the_last_byte_is_no_abort(autojump_clock: MockClock, size: int) -> None:
    """A client that disconnects has its request cancelled; with its whole answer at hand it has aborted nothing."""

    class Leaving(Transport):
        async def send(self, event: ASGISendEvent) -> None:
            await super().send(event)
            if event["type"] == "http.response.body" and len(self.body) == size:
                body.disconnected()
                await trio.lowlevel.checkpoint()

    transport = Leaving()
    responded = False
    async with trio.open_nursery() as nursery:
        body = AsgiBody(transport.receive, [], Config(), nursery, Peer(transport.abort))
        client = AsgiClient("id-1", transport.send, body, Peer(transport.abort), STALL_S)
        await client.respond(200, [], b"x" * size)
        responded = True
        nursery.cancel_scope.cancel()
    assert responded
