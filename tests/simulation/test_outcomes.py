"""Every outcome there is, each by the plainest way to it; and that each request has exactly one."""

import errno
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from sluicegate.accept.intake import too_large
from sluicegate.config.schema import LimitConfig
from sluicegate.exchange import ClientGone, Headers
from sluicegate.outcome import Outcome
from sluicegate.relay.wire import Wire
from tests.fakes.engine import FakeEngine, open_engine
from tests.fakes.script import BEFORE_HEAD, Behaviour, Fault, Kind
from tests.harness import Running, SimClient, question, simulate
from tests.shed import SHED, ShedCase
from tests.simulation.visiting import NeverWholeBody, Visitor, arrive, visit

#: What leads to an outcome: gets the gateway (one slot, a queue of one) and its engine, returns the visitor.
Way = Callable[[Running, FakeEngine], Awaitable[Visitor]]
WAYS: dict[Outcome, tuple[Way, dict[str, Any]]] = {}


def leads_to(outcome: Outcome, **settings: Any) -> Callable[[Way], Way]:
    def register(way: Way) -> Way:
        assert outcome not in WAYS
        WAYS[outcome] = (way, settings)
        return way

    return register


@leads_to(Outcome.SERVED)
async def _served(running: Running, engine: FakeEngine) -> Visitor:
    return await visit(running, question(stream=True))


@leads_to(Outcome.CLIENT_GONE_QUEUED)
async def _gone_queued(running: Running, engine: FakeEngine) -> Visitor:
    engine.script.next(Behaviour(prefill_s=5.0))
    async with trio.open_nursery() as nursery:
        holder, leaver = Visitor(running, question()), Visitor(running, question())
        await arrive(nursery, holder, leaver)
        leaver.leave()
    return leaver


@leads_to(Outcome.CLIENT_GONE_ACTIVE)
async def _gone_active(running: Running, engine: FakeEngine) -> Visitor:
    engine.script.next(Behaviour(prefill_s=5.0))
    async with trio.open_nursery() as nursery:
        leaver = Visitor(running, question())
        await arrive(nursery, leaver)
        leaver.leave()
    return leaver


def _shed(case: ShedCase) -> Way:
    async def way(running: Running, engine: FakeEngine) -> Visitor:
        engine.script.next(Behaviour(prefill_s=5.0))
        async with trio.open_nursery() as nursery:
            visitors = [Visitor(running, question()) for _ in range(case.before + 1)]
            await arrive(nursery, *visitors)
        return visitors[-1]

    return way


for _name in ("reject mode", "queue full", "queue timeout"):
    leads_to(SHED[_name].outcome, **SHED[_name].settings)(_shed(SHED[_name]))


@leads_to(Outcome.SHED_DRAINING)
async def _shed_draining(running: Running, engine: FakeEngine) -> Visitor:
    running.gateway.stop()
    return await visit(running, question())


@leads_to(Outcome.SHED_EXHAUSTED)
async def _shed_exhausted(running: Running, engine: FakeEngine) -> Visitor:
    async def dial() -> Wire:
        raise OSError(errno.EMFILE, "Too many open files")

    running.gateway.engines.default.connections.dial = dial
    return await visit(running, question())


@leads_to(Outcome.ENGINE_UNAVAILABLE)
async def _engine_unavailable(running: Running, engine: FakeEngine) -> Visitor:
    engine.kill()
    return await visit(running, question())


@leads_to(Outcome.ENGINE_ERROR)
async def _engine_error(running: Running, engine: FakeEngine) -> Visitor:
    engine.script.next(Behaviour(fault=Fault(Kind.RESET, BEFORE_HEAD)))
    return await visit(running, question())


@leads_to(Outcome.ENGINE_TRUNCATED)
async def _engine_truncated(running: Running, engine: FakeEngine) -> Visitor:
    engine.script.next(Behaviour(fault=Fault(Kind.CLOSE, 3)))
    return await visit(running, question(stream=True))


@leads_to(Outcome.TIMEOUT_FIRST_TOKEN)
async def _timeout_first_token(running: Running, engine: FakeEngine) -> Visitor:
    engine.script.next(Behaviour(prefill_s=100.0))
    return await visit(running, question(stream=True))


@leads_to(Outcome.TIMEOUT_IDLE)
async def _timeout_idle(running: Running, engine: FakeEngine) -> Visitor:
    engine.script.next(Behaviour(fault=Fault(Kind.STALL, 3)))
    return await visit(running, question(stream=True))


@leads_to(Outcome.TIMEOUT_TOTAL)
async def _timeout_total(running: Running, engine: FakeEngine) -> Visitor:
    engine.script.next(Behaviour(prefill_s=100.0))
    return await visit(running, question())


@leads_to(Outcome.CLIENT_STALLED)
async def _client_stalled(running: Running, engine: FakeEngine) -> Visitor:
    client = SimClient(stall_s=15.0)
    client.stalled = True
    return await visit(running, question(stream=True), client=client)


@leads_to(Outcome.INVALID)
async def _invalid(running: Running, engine: FakeEngine) -> Visitor:
    return await visit(running, b"this is not JSON")


@leads_to(Outcome.TOO_LARGE)
async def _too_large(running: Running, engine: FakeEngine) -> Visitor:
    visitor = Visitor(running, b"")
    visitor.request.body = NeverWholeBody(too_large(LimitConfig()))
    await visitor.run()
    return visitor


@leads_to(Outcome.INTERNAL_ERROR)
async def _internal_error(running: Running, engine: FakeEngine) -> Visitor:
    visitor = Visitor(running, b"")
    visitor.request.body = NeverWholeBody(ZeroDivisionError("a mistake of ours"))
    await visitor.run()
    assert running.log_lines("request")[-1]["detail"].startswith("ZeroDivisionError at ")
    return visitor


class LeavingClient(SimClient):
    """It has disconnected by the time that it is answered."""

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        raise ClientGone


class HangingClient(SimClient):
    """It takes no answer, until it is cancelled."""

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        await trio.sleep_forever()


@pytest.mark.parametrize("client", [LeavingClient, HangingClient])
async def test_bug_is_logged_after_a_disconnect(client: type[SimClient], autojump_clock: MockClock) -> None:
    """An internal error is logged even if its client has disconnected."""
    async with open_engine() as engine, simulate(engine) as running:
        visitor = Visitor(running, b"", client=client())
        visitor.request.body = NeverWholeBody(ZeroDivisionError("a mistake of ours"))
        with trio.move_on_after(1):
            await visitor.run()
        assert visitor.outcome == "internal_error"
        assert visitor.log["detail"].startswith("ZeroDivisionError at ")
        running.assert_at_rest()


async def test_bug_tells_the_client_where_to_look(autojump_clock: MockClock) -> None:
    """The client's message names the request ID, and the log has the details."""
    async with open_engine() as engine, simulate(engine) as running:
        visitor = Visitor(running, b"")
        visitor.request.body = NeverWholeBody(ZeroDivisionError("a mistake of ours"))
        await visitor.run()
        message = f"Internal error. See the gateway log for request ID {visitor.request.id}."
        assert visitor.json["error"]["message"] == message
        assert visitor.log["detail"].startswith("ZeroDivisionError at ")


SETTINGS: dict[str, Any] = {
    "max_active": 1,
    "queue_max": 1,
    "queue_timeout_s": 10.0,
    "request_s": 60.0,
    "first_token_s": 30.0,
    "idle_s": 20.0,
}

#: What the client is answered; None: it is not there any more, or an error event ends its stream.
STATUSES = {
    Outcome.SERVED: 200,
    Outcome.SHED_BUSY: 429,
    Outcome.SHED_QUEUE_FULL: 429,
    Outcome.SHED_QUEUE_TIMEOUT: 503,
    Outcome.SHED_DRAINING: 503,
    Outcome.ENGINE_UNAVAILABLE: 503,
    Outcome.ENGINE_ERROR: 502,
    Outcome.ENGINE_TRUNCATED: 200,
    Outcome.TIMEOUT_FIRST_TOKEN: 504,
    Outcome.TIMEOUT_IDLE: 200,
    Outcome.TIMEOUT_TOTAL: 504,
    Outcome.INVALID: 400,
    Outcome.TOO_LARGE: 413,
    Outcome.INTERNAL_ERROR: 500,
}


@pytest.mark.parametrize("outcome", Outcome)
async def test_each_outcome_counted_logged_and_answered_once(autojump_clock: MockClock, outcome: Outcome) -> None:
    way, settings = WAYS[outcome]
    async with open_engine() as engine, simulate(engine, **(SETTINGS | settings)) as running:
        visitor = await way(running, engine)
        assert visitor.outcome == outcome.value
        assert running.metric("api_outcomes_total", outcome=outcome.value) == 1
        status = STATUSES.get(outcome)
        if status is not None:
            assert (visitor.client.status, visitor.client.finished) == (status, True)
            assert running.metric("api_requests_total", endpoint=visitor.request.endpoint.path, status=str(status)) >= 1
        if status is not None and status >= 400:
            assert visitor.client.header(b"x-sluicegate-outcome") == outcome.value.encode()
            assert visitor.json["error"]["code"] == outcome.value
        ledger = running.gateway.ledger
        assert ledger.opened == ledger.settled == sum(running.outcomes().values())
        running.assert_at_rest()
        await engine.until(lambda: (engine.running, engine.waiting) == (0, 0))
