"""Clients that disconnect, by every means and on every way in: out of the queue at once, or their slot free at once."""

from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.fakes.script import Behaviour
from tests.harness import CHAT, Running, question
from tests.wire.test_admission_over_sockets import line_up, occupy
from tests.wire.visitors import WAYS, ChunkedVisitor, FastVisitor, Http2Visitor, Visitor, at_rest, come, gate, visit

LEAVINGS = [(way, how) for way in WAYS for how in ("close", "reset", "half_close")] + [
    (way, "cancel") for way in WAYS if WAYS[way] is Http2Visitor
]
pytestmark = pytest.mark.parametrize(("way", "how"), LEAVINGS)

#: From the leaving to the free slot, as the issue demands (seconds).
SOON_S = 0.5


async def _outcome(running: Running, outcome: str) -> None:
    """Wait for a request to end so."""
    with trio.fail_after(SOON_S):
        while outcome not in running.outcomes():
            await wait_all_tasks_blocked()


async def test_client_gone_while_queued(way: str, how: str) -> None:
    """The request leaves the queue at once, and its place is free."""
    async with gate(max_active=1, queue_max=1) as (engine, running), AsyncExitStack() as stack:
        holder, hold = await occupy(engine, running, way, stack)
        leaver = await line_up(running, way, stack)
        await leaver.leave(how)
        await _outcome(running, "client_gone_queued")
        assert running.gateway.admission.queued == 0
        next_one = await line_up(running, way, stack)
        hold.set()
        assert (await holder.answer()).status == (await next_one.answer()).status == 200
        await running.settled()
        assert len(engine.posts()) == 2, "a request that left the queue never reached the engine"
        assert running.outcomes() == {"served": 2, "client_gone_queued": 1}
        assert running.metric("api_requests_total", endpoint=CHAT, status="none") == 1
        await at_rest(running)


async def test_client_gone_between_two_requests(way: str, how: str) -> None:
    """A client that disconnects between two requests counts as no request."""
    async with gate() as (_, running), await come(way, running) as leaver:
        assert (await leaver.ask(CHAT, question())).status == 200
        await leaver.leave("close" if how == "cancel" else how)
        with trio.fail_after(SOON_S):
            while running.gateway.listening.connections:
                await wait_all_tasks_blocked()
        assert running.outcomes() == {"served": 1}
        await at_rest(running)


@pytest.mark.parametrize(("stream", "events"), [(False, 0), (True, 0), (True, 3)], ids=["whole", "prefill", "stream"])
async def test_client_gone_while_active(way: str, how: str, stream: bool, events: int) -> None:
    """The slot and the engine are free again."""
    async with gate(max_active=1) as (engine, running), await come(way, running) as leaver:
        engine.script.next(Behaviour(hold=trio.Event(), hold_at=events))
        await leaver.send(CHAT, question(stream=stream))
        if events:
            await leaver.until_events(events)
        await engine.until(lambda: engine.running == 1)
        await leaver.leave(how)
        with trio.fail_after(SOON_S):
            await engine.until(lambda: engine.running == 0 and engine.aborted == 1)
        await _outcome(running, "client_gone_active")
        assert (await visit(way, running)).status == 200, "the slot is free"
        await at_rest(running)


async def test_client_gone_within_its_body(way: str, how: str) -> None:
    """A request whose body never became whole does not reach the engine."""
    head = f"POST {CHAT} HTTP/1.1\r\nhost: gate\r\ncontent-type: application/json\r\n"
    framing: dict[type[Visitor], str] = {
        FastVisitor: 'content-length: 99\r\n\r\n{"mess',
        ChunkedVisitor: 'transfer-encoding: chunked\r\n\r\n6\r\n{"mess\r\n',
    }
    async with gate() as (engine, running), await come(way, running) as leaver:
        if isinstance(leaver, Http2Visitor):
            await leaver.begin(CHAT)
            await leaver.more(b'{"mess')
        else:
            await leaver.stream.send_all((head + framing[type(leaver)]).encode())
        while running.gateway.ledger.open_count == 0:
            await wait_all_tasks_blocked()
        await leaver.leave(how)
        await _outcome(running, "client_gone_queued")
        assert engine.posts() == []
        assert (await visit(way, running)).status == 200
        await at_rest(running)
