"""Pings on every way in: while a stream waits in the queue and in prefill, with the pump behind them."""

import pytest
import trio

from tests.conformance import test_sdks as sdks
from tests.engine_contract.target import Target
from tests.fakes.script import BEFORE_HEAD, Behaviour, Fault, Kind
from tests.harness import CHAT, QUESTIONS, question
from tests.wire.visitors import WAYS, at_rest, come, gate, log_line, visit

#: Between two pings (seconds).
PING_S = 0.1

every_way = pytest.mark.parametrize("way", WAYS)


@every_way
@pytest.mark.parametrize("path", QUESTIONS)
async def test_pinged_until_the_first_output(way: str, path: str) -> None:
    """In the queue, in prefill, and not within the stream, which the pump carries on the fast way."""
    ping = b'event: ping\ndata: {"type": "ping"}' if path == "/v1/messages" else b": ping"
    slot, prefill, rest = trio.Event(), trio.Event(), trio.Event()
    async with gate(max_active=1, ping_s=PING_S) as (engine, running):
        usual = await visit(way, running, path, question(path, stream=True))
        engine.script.next(Behaviour(hold=slot), Behaviour(hold=prefill))
        async with await come(way, running) as first, await come(way, running) as second:
            await first.send(path, question(path))
            await engine.until(lambda: engine.running == 1)
            await second.send(path, question(path, stream=True))
            answer = await second.until_events(2)
            assert (answer.status, answer.events()[:2]) == (200, [ping, ping])
            slot.set()
            assert (await first.answer()).status == 200
            await engine.until(lambda: engine.running == 1 and len(engine.posts()) == 3)
            begun = 2 if path == "/v1/responses" else 0  # what Responses sends at its beginning is no output
            answer = await second.until_events(len(answer.events()) + begun + 3)
            assert answer.events()[-2:] == [ping, ping]
            assert running.gateway.pump is not None
            assert running.gateway.pump.flows == 0, "who pings writes to the socket alone"
            prefill.set()
            answer = await second.answer()
            assert answer.complete
            assert len([event for event in answer.events() if event != ping]) == len(usual.events())
            assert answer.events()[-1].startswith(b": sluicegate")
            # The connection takes the next request.
            engine.script.next(Behaviour(hold=rest, hold_at=3))
            await second.send(path, question(path, stream=True))
            await second.until_events(3)
            while way == "fast" and not running.gateway.pump.flows:
                await trio.lowlevel.checkpoint()
            rest.set()
            assert (await second.answer()).events()[-1].startswith(b": sluicegate")
        await at_rest(running)


@every_way
async def test_an_error_after_a_ping(way: str) -> None:
    """An event under the 200, and the connection can be used again."""
    async with gate(ping_s=PING_S, first_token_s=0.7) as (engine, running), await come(way, running) as visitor:
        engine.script.next(Behaviour(fault=Fault(Kind.STALL, BEFORE_HEAD)))
        answer = await visitor.ask(CHAT, question(stream=True), "x-request-id: late")
        *pings, last = answer.events()
        assert (answer.status, answer.complete, set(pings)) == (200, True, {b": ping"})
        assert b'"code":"timeout_first_token"' in last
        line = await log_line(running, "late")
        assert (line["outcome"], line["status"], "ttft_s" in line) == ("timeout_first_token", 200, False)
        assert (await visitor.ask(CHAT, question(stream=True))).events()[-1].startswith(b": sluicegate")
        await at_rest(running)


@every_way
@pytest.mark.parametrize("how", ["close", "reset", "half_close"])
async def test_a_pinged_client_that_leaves(way: str, how: str) -> None:
    async with gate(max_active=1, ping_s=PING_S) as (engine, running), await come(way, running) as visitor:
        engine.script.next(Behaviour(hold=trio.Event()))
        await visitor.send(CHAT, question(stream=True))
        await visitor.until_events(2)
        await visitor.leave(how)
        await running.settled()
        assert running.outcomes() == {"client_gone_active": 1}
        await at_rest(running)


@pytest.mark.parametrize("program", [sdks.chat, sdks.completions, sdks.responses, sdks.messages])
async def test_official_sdks_take_no_notice(program: sdks.Ask) -> None:
    async with gate(ping_s=PING_S) as (engine, running):
        directly, pinged = list[str](), list[str]()
        target = Target(running.base_url, engine.model or "")
        await trio.to_thread.run_sync(program, target, directly)
        engine.script.next(Behaviour(delay_s=3 * PING_S))
        await trio.to_thread.run_sync(program, target, pinged)
        assert "".join(pinged) == "".join(directly) != ""
        await at_rest(running)
