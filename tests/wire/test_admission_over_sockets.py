"""What becomes of a request in the plain cases, over real sockets and on every way in."""

from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from sluicegate.config.schema import TcpAddress
from sluicegate.outcome import Outcome
from tests.engine_contract.raw import RawClient, post
from tests.fakes.engine import FakeEngine, open_engine
from tests.fakes.script import BEFORE_FIRST_EVENT, BEFORE_HEAD, ON_ACCEPT, Behaviour, Fault, Kind
from tests.harness import CHAT, QUESTIONS, Running, configuration, open_gateway, question
from tests.shed import SHED, ShedCase
from tests.wire.visitors import WAYS, Visitor, assert_refused, at_rest, come, gate, log_line, visit

pytestmark = pytest.mark.parametrize("way", WAYS)


async def occupy(engine: FakeEngine, running: Running, way: str, stack: AsyncExitStack) -> tuple[Visitor, trio.Event]:
    """A client that has a slot until the event is set."""
    hold = trio.Event()
    engine.script.next(Behaviour(hold=hold))
    holder = await stack.enter_async_context(await come(way, running))
    await holder.send(CHAT, question())
    await engine.until(lambda: engine.running == 1)
    return holder, hold


async def line_up(running: Running, way: str, stack: AsyncExitStack, path: str = CHAT) -> Visitor:
    """A client that waits for a slot."""
    waiting = running.gateway.admission.queued
    visitor = await stack.enter_async_context(await come(way, running))
    await visitor.send(path, question(path))
    while running.gateway.admission.queued == waiting:
        await wait_all_tasks_blocked()
    return visitor


async def test_slot_free_goes_at_once(way: str) -> None:
    async with gate(max_active=1) as (engine, running):
        for path in QUESTIONS:
            answer = await visit(way, running, path, None, "x-request-id: mine-1" + path.replace("/", "."))
            assert answer.status == 200
            assert answer.header("x-request-id") == "mine-1" + path.replace("/", ".")
            assert answer.header("x-sluicegate-outcome") is None
            assert engine.posts()[-1].header("x-request-id") == answer.header("x-request-id")
            line = await log_line(running, answer.header("x-request-id"))
            assert (line["outcome"], line["status"], line["endpoint"]) == ("served", 200, path)
            assert line["completion_tokens"] == 8
            assert running.metric("api_requests_total", endpoint=path, status="200") == 1
        assert running.outcomes() == {"served": len(QUESTIONS)}
        await at_rest(running)


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
@pytest.mark.parametrize("case", SHED.values(), ids=SHED)
async def test_shed(way: str, case: ShedCase, path: str) -> None:
    """Each case of the table, over sockets: client, log and metrics are told, and no one else notices."""
    settings = {"max_active": 1, **case.settings}
    async with gate(**settings) as (engine, running), AsyncExitStack() as stack:
        holder, hold = await occupy(engine, running, way, stack)
        before = [holder, *[await line_up(running, way, stack) for _ in range(case.before - 1)]]
        assert running.metric("api_active_requests") == 1
        assert running.metric("api_queue_depth") == case.before - 1
        answer = await visit(way, running, path)
        message = await assert_refused(running, answer, case.outcome, case.status, path=path)
        assert (message, answer.header("retry-after")) == (case.message, "1")
        hold.set()
        assert [(await visitor.answer()).status for visitor in before] == [200] * case.before
        await running.settled()
        assert running.outcomes() == {"served": case.before, case.outcome.value: 1}
        assert len(engine.posts()) == case.before
        await at_rest(running)


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/tokenize"])
async def test_engine_unreachable_503(way: str, path: str) -> None:
    """The request gets a 503 on arrival, without a slot."""
    body = {"model": "fake-model", "prompt": "Hm?"} if path == "/tokenize" else question(path)
    async with open_engine() as engine, trio.open_nursery() as nursery:
        port = await nursery.start(engine.serve_tcp)
        # No probe tells the gateway: the first request finds out, and later ones are refused on arrival.
        async with open_gateway(configuration(f"http://127.0.0.1:{port}", probe_interval_s=60)) as running:
            nursery.cancel_scope.cancel()
            await engine.until(lambda: engine.connections == 0)
            answer = await visit(way, running, path, body)
            await assert_refused(running, answer, Outcome.ENGINE_UNAVAILABLE, 503, path=path)
            before = running.gateway.admission.view().slot_time_s
            answer = await visit(way, running, path, body)
            message = await assert_refused(running, answer, Outcome.ENGINE_UNAVAILABLE, 503, path=path)
            assert message == "No engine can take requests now: the engine cannot be reached. Retry in a few seconds."
            for line in running.log_lines("request"):
                assert f"the engine at 127.0.0.1:{port} cannot be reached (" in line["detail"].replace("The e", "the e")
            assert running.gateway.admission.view().slot_time_s == before, "it took a slot"
            assert running.metric("api_engine_up") == 0
            assert engine.posts() == []
            await at_rest(running)


async def test_engine_without_a_model_503_at_the_door(way: str) -> None:
    async with gate(model="") as (engine, running):
        message = await assert_refused(running, await visit(way, running), Outcome.ENGINE_UNAVAILABLE, 503)
        assert "no model loaded" in message
        assert running.gateway.admission.view().slot_time_s is None
        assert engine.posts() == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fault",
    [
        Fault(Kind.CLOSE, ON_ACCEPT),
        Fault(Kind.RESET, BEFORE_HEAD),
        Fault(Kind.GARBAGE, BEFORE_HEAD),
        Fault(Kind.CLOSE, BEFORE_FIRST_EVENT),
        Fault(Kind.STATUS, status=500),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.at}",
)
async def test_engine_refuses_or_breaks_before_the_answer_502(way: str, fault: Fault, stream: bool) -> None:
    async with gate() as (engine, running):
        engine.script.default = Behaviour(fault=fault)
        answer = await visit(way, running, CHAT, question(stream=stream))
        await assert_refused(running, answer, Outcome.ENGINE_ERROR, 502, retry_after=False)
        await at_rest(running)


async def test_the_engines_own_4xx_pass_through_unchanged(way: str) -> None:
    async with gate() as (engine, running):
        direct = await _direct(engine, running, question(model="no-such-model"))
        answer = await visit(way, running, CHAT, question(model="no-such-model"))
        assert (answer.status, answer.body) == (404, direct)
        assert answer.header("x-sluicegate-outcome") is None
        line = await log_line(running, answer.header("x-request-id"))
        assert (line["outcome"], line["status"], line.get("model")) == ("invalid", 404, None)
        await at_rest(running)


async def _direct(engine: FakeEngine, running: Running, body: object) -> bytes:
    """What the engine itself answers."""
    address = running.gateway.engines.default.address
    assert isinstance(address, TcpAddress)
    async with RawClient(await trio.open_tcp_stream(address.host, address.port)) as client:
        return (await client.ask(post(CHAT, body))).body


@pytest.mark.parametrize("stream", [False, True])
async def test_request_timeout_before_the_head_504(way: str, stream: bool) -> None:
    async with gate(max_active=1, request_s=0.15) as (engine, running):
        engine.script.next(Behaviour(hold=trio.Event()))
        answer = await visit(way, running, CHAT, question(stream=stream))
        await assert_refused(running, answer, Outcome.TIMEOUT_TOTAL, 504, retry_after=False)
        await engine.until(lambda: engine.running == 0)
        assert engine.aborted == 1
        await at_rest(running)


async def test_request_timeout_after_the_head_an_error_event(way: str) -> None:
    async with gate(max_active=len(QUESTIONS), request_s=1.0) as (engine, running):
        engine.script.default = Behaviour(hold=trio.Event(), hold_at=4)

        async def one(path: str) -> None:
            answer = await visit(way, running, path, question(path, stream=True))
            assert (answer.status, answer.complete) == (200, True)
            *_, last = answer.events()
            if path.startswith("/v1/messages"):
                assert last.startswith(b'event: error\ndata: {"type":"error","error":{"type":"timeout_error"')
            else:
                assert b'"code":"timeout_total"' in last
            assert b"[DONE]" not in answer.body
            assert (await log_line(running, answer.header("x-request-id")))["outcome"] == "timeout_total"

        async with trio.open_nursery() as nursery:
            for path in QUESTIONS:
                nursery.start_soon(one, path)
        await engine.until(lambda: engine.running == 0)
        await at_rest(running)
