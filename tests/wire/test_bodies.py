"""Memory for bodies: what is decided before one is read, what all of them may take, and when it is free again."""

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from sluicegate.config.schema import QueueMode
from sluicegate.engines.engine import EngineState
from tests.engine_contract.raw import RawAnswer, RawClient, post
from tests.fakes.engine import FakeEngine
from tests.fakes.script import Behaviour
from tests.harness import CHAT, Running, question
from tests.wire.daemons import Daemon, started, streaming
from tests.wire.visitors import WAYS, Visitor, ask, at_rest, chunked, come, gate, raw

LARGE = 30_000_000
MIB = 1 << 20

#: How a body that is still to come is announced.
FRAMINGS = {"length": f"content-length: {LARGE}", "chunked": "transfer-encoding: chunked"}
#: No field: the client sends its body at once.
EXPECTS = {"at-once": (), "expects": ("expect: 100-continue",)}
every_framing = pytest.mark.parametrize("framing", FRAMINGS)
every_expectation = pytest.mark.parametrize("expects", EXPECTS)


def head(framing: str, *fields: str, path: str = CHAT) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "host: gate", "content-type: application/json", FRAMINGS[framing], *fields)
    return "\r\n".join((*lines, "", "")).encode()


def of_size(size: int) -> dict[str, Any]:
    return question(messages=[{"role": "user", "content": "x" * size}])


@asynccontextmanager
async def occupied(engine: FakeEngine, running: Running) -> AsyncIterator[trio.Event]:
    """A client holds the only slot until the event is set, or the block ends."""
    hold = trio.Event()
    engine.script.next(Behaviour(hold=hold))
    holder = await come("fast", running)
    await holder.send(CHAT, question())
    await engine.until(lambda: engine.running == 1)
    async with holder:
        yield hold
        hold.set()
        await holder.answer()


async def queued(running: Running, body: object) -> Visitor:
    """A client that waits in the queue, its body read."""
    before = running.gateway.admission.queued
    visitor = await come("fast", running)
    await visitor.send(CHAT, body)
    while running.gateway.admission.queued == before:
        await wait_all_tasks_blocked(0.001)
    return visitor


def is_refused(answer: RawAnswer, status: int, outcome: str) -> None:
    assert (answer.status, answer.header("x-sluicegate-outcome")) == (status, outcome)
    assert answer.complete


@every_expectation
@every_framing
@pytest.mark.parametrize("path", [CHAT, "/v1/audio/transcriptions"])
async def test_all_slots_busy(framing: str, expects: str, path: str) -> None:
    """The client that has sent its head only is refused, without a 100 before that; it is counted and logged once."""
    async with gate(max_active=1, queue_mode=QueueMode.REJECT) as (engine, running):
        async with occupied(engine, running):
            is_refused(await ask(running, head(framing, *EXPECTS[expects], path=path)), 429, "shed_busy")
            while running.gateway.ledger.open_count > 1:  # its connection may linger
                await wait_all_tasks_blocked(0.001)
            assert running.outcomes() == {"shed_busy": 1}
            (line,) = running.log_lines("request")
            assert (line["endpoint"], line["status"]) == (path, 429)
        await at_rest(running)


@every_expectation
@every_framing
async def test_queue_full(framing: str, expects: str) -> None:
    async with gate(max_active=1, queue_max=1) as (engine, running):
        async with occupied(engine, running) as hold, await queued(running, question()) as waiter:
            is_refused(await ask(running, head(framing, *EXPECTS[expects])), 429, "shed_queue_full")
            hold.set()
            assert (await waiter.answer()).status == 200
        await at_rest(running)


@every_expectation
@every_framing
@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
async def test_no_engine(framing: str, expects: str, path: str) -> None:
    async with gate() as (engine, running):
        engine.kill()
        await running.engine_state(EngineState.DOWN)
        is_refused(await ask(running, head(framing, *EXPECTS[expects], path=path)), 503, "engine_unavailable")
        await at_rest(running)


@every_expectation
async def test_draining(expects: str) -> None:
    async with gate() as (engine, running), await raw(running) as client:
        engine.script.next(Behaviour(hold=trio.Event()))
        holder = await come("fast", running)
        async with holder:
            await holder.send(CHAT, question())
            await engine.until(lambda: engine.running == 1)
            running.gateway.stop()
            is_refused(await client.ask(head("length", *EXPECTS[expects])), 503, "shed_draining")


@every_expectation
async def test_declared_too_large(expects: str) -> None:
    async with gate(body_max_bytes=10_000) as (_, running):
        is_refused(await ask(running, head("length", *EXPECTS[expects])), 413, "too_large")
        await at_rest(running)


@every_framing
async def test_who_may_send_is_told_to_go_on(framing: str) -> None:
    async with gate() as (engine, running), await raw(running) as client:
        request = post(CHAT, question()) if framing == "length" else chunked(CHAT, question())
        fields, _, body = request.partition(b"\r\n\r\n")
        await client.stream.send_all(fields + b"\r\nexpect: 100-Continue\r\n\r\n")
        interim = await client.stream.receive_some(1000)
        assert interim == b"HTTP/1.1 100 Continue\r\n\r\n" or interim.startswith(b"HTTP/1.1 100 ")
        assert engine.posts() == []
        answer = await client.ask(body)
        assert answer.status == 200
        assert (await client.ask(post(CHAT, question()))).status == 200


@pytest.mark.parametrize("way", WAYS)
async def test_no_room_for_one_more(way: str) -> None:
    """Queued bodies count. Who is refused may come again; small bodies on the fast way are taken all the time."""
    async with gate(max_active=1, body_max_bytes=MIB, bodies_max_bytes=MIB) as (engine, running):
        async with occupied(engine, running) as hold, await queued(running, of_size(700_000)) as waiter:
            async with await come(way, running) as visitor:
                answer = await visitor.ask(CHAT, of_size(700_000))
                is_refused(answer, 503, "shed_exhausted")
                assert answer.header("retry-after") == "1"
                assert "no memory for request bodies left" in answer.body.decode()
            async with await queued(running, of_size(50_000)) as small:
                hold.set()
                assert (await waiter.answer()).status == 200
                assert (await small.answer()).status == 200
        assert running.outcomes()["shed_exhausted"] == 1
        async with await come(way, running) as visitor:
            assert (await visitor.ask(CHAT, of_size(700_000))).status == 200
        await at_rest(running)


async def test_no_room_is_said_before_the_body() -> None:
    async with gate(max_active=1, body_max_bytes=40_000_000, bodies_max_bytes=MIB) as (engine, running):
        async with occupied(engine, running), await queued(running, of_size(15_000_000)) as waiter:
            is_refused(await ask(running, head("length", "expect: 100-continue")), 503, "shed_exhausted")
            await waiter.leave("close")
        await at_rest(running)


async def test_what_is_unpacked_counts() -> None:
    async with gate(max_active=1, body_max_bytes=MIB, bodies_max_bytes=MIB) as (engine, running):
        packed = gzip.compress(b'{"messages": "%s"}' % (b"x" * 700_000))
        assert len(packed) < 10_000
        async with occupied(engine, running) as hold, await queued(running, of_size(700_000)) as waiter:
            is_refused(await ask(running, post(CHAT, packed, "content-encoding: gzip")), 503, "shed_exhausted")
            hold.set()
            await waiter.answer()
        await at_rest(running)


async def test_largest_body_alone() -> None:
    """A budget below the largest body refuses no body that comes alone."""
    async with gate(body_max_bytes=2 * MIB, bodies_max_bytes=1024) as (_, running):
        assert (await ask(running, post(CHAT, of_size(MIB)))).status == 200
        await at_rest(running)


async def test_stream_holds_no_body() -> None:
    """Once the engine has it, nobody needs it any more."""
    async with gate() as (engine, running), await come("fast", running) as visitor:
        hold = trio.Event()
        engine.script.next(Behaviour(hold=hold, hold_at=2))
        await visitor.send(CHAT, of_size(MIB) | {"stream": True})
        await visitor.until_events(2)
        assert running.gateway.pipeline.bodies.held == 0
        hold.set()
        assert (await visitor.answer()).complete
        await at_rest(running)


async def test_client_gone_in_the_middle_of_its_body() -> None:
    async with gate() as (_, running):
        async with await raw(running) as client:
            await client.stream.send_all(head("length") + b"x" * MIB)
            while running.gateway.pipeline.bodies.held < MIB:
                await wait_all_tasks_blocked(0.001)
        await running.settled()
        await at_rest(running)


async def upload(daemon: Daemon, request: bytes, statuses: list[int]) -> None:
    """Send all of it, unless the gateway has answered and closed before; and read the answer."""
    async with await daemon.dial() as client, trio.open_nursery() as nursery:
        nursery.start_soon(send, client, request)
        statuses.append((await client.answer()).status)
        nursery.cancel_scope.cancel()


async def send(client: RawClient, request: bytes) -> None:
    with suppress(trio.BrokenResourceError):
        await client.stream.send_all(request)


@pytest.mark.parametrize(("path", "status"), [(CHAT, 429), ("/v1/audio/transcriptions", 429), ("/nowhere", 404)])
@every_framing
async def test_refused_bodies_take_no_memory(config: Path, framing: str, path: str, status: int) -> None:
    """20 × 30 MB at a time, of which some tens of MB would be the buffers of 20 connections."""
    body = b"x" * LARGE
    if framing == "chunked":
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (LARGE, body)
    request = head(framing, path=path) + body
    async with started(config, environ={"MAX_ACTIVE": "1", "QUEUE_MODE": "reject"}) as (engine, daemon):
        client, hold = await streaming(engine, daemon)
        async with client:
            before = daemon.resident_kib
            statuses: list[int] = []
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(upload, daemon, request, statuses)
            assert statuses == [status] * 20
            assert daemon.most_resident_kib - before < 40 * 1024
            hold.set()
