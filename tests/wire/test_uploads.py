"""Multipart bodies, which are passed on as they come: nothing of them is read while their client waits for a slot."""

import gzip

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.fakes.engine import FakeEngine
from tests.fakes.script import Behaviour
from tests.harness import CHAT, Running, question
from tests.wire.visitors import Visitor, ask, at_rest, come, gate

PATH = "/v1/audio/transcriptions"
BODY = b"--x\r\ncontent-disposition: form-data; name=file; filename=a\r\n\r\n\x00\xff\r\n--x--\r\n"
HEAD = f"POST {PATH} HTTP/1.1\r\nhost: gate\r\ncontent-type: multipart/form-data; boundary=x\r\n".encode()
UPLOADS = {
    "length": HEAD + b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY),
    "chunked": HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
}
every_framing = pytest.mark.parametrize("framing", UPLOADS)


async def occupy(engine: FakeEngine, running: Running) -> tuple[Visitor, trio.Event]:
    """A client that holds the only slot until the event is set."""
    hold = trio.Event()
    engine.script.next(Behaviour(hold=hold))
    holder = await come("fast", running)
    await holder.send(CHAT, question())
    await engine.until(lambda: engine.running == 1)
    return holder, hold


async def line_up(running: Running, framing: str) -> Visitor:
    visitor = await come("fast", running)
    await visitor.stream.send_all(UPLOADS[framing])
    while running.gateway.admission.queued == 0:
        await wait_all_tasks_blocked()
    return visitor


@every_framing
async def test_an_upload_waits_for_its_slot_and_arrives_whole(framing: str) -> None:
    async with gate(max_active=1) as (engine, running):
        holder, hold = await occupy(engine, running)
        async with holder, await line_up(running, framing) as waiter:
            hold.set()
            answer = await waiter.answer()
            assert (answer.status, answer.json()) == (200, {"text": f"{len(BODY)} bytes", "usage": USAGE})
            assert engine.posts()[-1].body == BODY
            await holder.answer()
        await at_rest(running)


@every_framing
async def test_a_packed_upload_arrives_unpacked(framing: str) -> None:
    packed = gzip.compress(BODY)
    head = HEAD + b"content-encoding: gzip\r\n"
    requests = {
        "length": head + b"content-length: %d\r\n\r\n%s" % (len(packed), packed),
        "chunked": head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(packed), packed),
    }
    async with gate() as (engine, running):
        assert (await ask(running, requests[framing])).status == 200
        assert engine.posts()[-1].body == BODY
        assert engine.posts()[-1].header("content-encoding") is None
        await at_rest(running)


USAGE = {"type": "duration", "seconds": 1}


@every_framing
async def test_unread_upload_is_refused(framing: str) -> None:
    """An upload that times out in the queue before it was read is refused like any other request."""
    async with gate(max_active=1, queue_timeout_s=0.1) as (engine, running):
        holder, hold = await occupy(engine, running)
        async with holder, await line_up(running, framing) as waiter:
            answer = await waiter.answer()
            assert (answer.status, answer.complete) == (503, True)
            assert answer.header("x-sluicegate-outcome") == "shed_queue_timeout"
            hold.set()
            await holder.answer()
        await at_rest(running)


@every_framing
async def test_client_gone_while_its_upload_is_queued(framing: str) -> None:
    """The request leaves the queue at once."""
    async with gate(max_active=1) as (engine, running):
        holder, hold = await occupy(engine, running)
        async with holder:
            await (await line_up(running, framing)).leave("close")
            with trio.fail_after(0.5):
                while running.gateway.admission.queued:
                    await wait_all_tasks_blocked(0.001)
            hold.set()
            await holder.answer()
        assert running.outcomes() == {"client_gone_queued": 1, "served": 1}
        await at_rest(running)


@every_framing
async def test_client_gone_while_its_upload_is_active(framing: str) -> None:
    """The slot and the engine are free again."""
    async with gate(max_active=1) as (engine, running):
        engine.script.next(Behaviour(hold=trio.Event()))
        visitor = await come("fast", running)
        await visitor.stream.send_all(UPLOADS[framing])
        await engine.until(lambda: engine.running == 1)
        await visitor.leave("close")
        with trio.fail_after(0.5):
            await engine.until(lambda: (engine.running, engine.aborted) == (0, 1))
        await running.settled()
        assert running.outcomes() == {"client_gone_active": 1}
        await at_rest(running)
