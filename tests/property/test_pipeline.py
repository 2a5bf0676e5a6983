"""The pipeline under any traffic before any engine: the counts add up, no client is told two things, nothing leaks."""

from dataclasses import dataclass
from typing import Any

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from sluicegate.config.schema import QueueMode
from sluicegate.outcome import Outcome
from tests.fakes.engine import FakeEngine, open_engine
from tests.fakes.script import AT_END, BEFORE_HEAD, Behaviour, Fault, Framing, Kind, Wire
from tests.harness import CHAT, QUESTIONS, Running, SimClient, question, simulate
from tests.simulation.visiting import Visitor

_SECONDS = st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.0, 3.5, 6.0])
_FAULTS = st.builds(
    Fault,
    st.sampled_from([kind for kind in Kind if kind is not Kind.HUGE_EVENT]),
    at=st.sampled_from([BEFORE_HEAD, 0, 1, 3, 7, AT_END]),
    at_byte=st.none() | st.none() | st.integers(0, 3000),
    status=st.sampled_from([400, 404, 500, 503]),
    size=st.just(100_000),
)
_BEHAVIOURS = st.builds(
    Behaviour,
    prefill_s=_SECONDS,
    token_interval_s=st.sampled_from([0.0, 0.1, 0.7, 5.0]),
    tokens=st.integers(1, 9),
    fault=st.none() | _FAULTS,
    wire=st.builds(Wire, framing=st.sampled_from(Framing), chunk_bytes=st.none() | st.integers(20, 400)),
    done=st.sampled_from([True, True, True, False]),
    close=st.sampled_from([False, False, True]),
)


@dataclass(frozen=True)
class Plan:
    """One request: when it comes, what it asks, how its client behaves, and how the engine takes it."""

    after_s: float
    path: str
    stream: bool
    usage: bool
    nonsense: bool
    leaves_after_s: float | None
    stalls: bool
    behaviour: Behaviour

    def body(self, name: str) -> dict[str, Any] | bytes:
        """What is sent; the engine knows it by `name`."""
        if self.nonsense:
            return b"nonsense"
        usage = {"stream_options": {"include_usage": True}} if self.usage and self.stream else {}
        return question(self.path, stream=self.stream, user=name, **usage)


_PLANS = st.builds(
    Plan,
    after_s=_SECONDS,
    path=st.sampled_from(list(QUESTIONS)),
    stream=st.booleans(),
    usage=st.booleans(),
    nonsense=st.sampled_from([False] * 9 + [True]),
    leaves_after_s=st.none() | st.none() | st.sampled_from([0.0, 0.3, 1.0, 2.2, 4.0]),
    stalls=st.sampled_from([False] * 5 + [True]),
    behaviour=_BEHAVIOURS,
)

#: Things that happen to the engine or the gateway, each after so many seconds.
_EVENTS = st.lists(st.tuples(_SECONDS, st.sampled_from(["kill", "revive", "unwell", "well", "close idle"])), max_size=4)


class World:
    """A gateway, its engine, and all its clients."""

    def __init__(self, engine: FakeEngine, running: Running) -> None:
        self.engine = engine
        self.running = running
        self.visits: list[tuple[Plan, Visitor]] = []

    async def visit(self, plan: Plan) -> None:
        client = SimClient(stall_s=3.0)
        client.stalled = plan.stalls
        name = f"visitor-{len(self.visits)}"
        visitor = Visitor(self.running, plan.body(name), plan.path, client)
        self.visits.append((plan, visitor))
        self.engine.script.when[name.encode()] = plan.behaviour
        async with trio.open_nursery() as nursery:
            if plan.leaves_after_s is not None:
                nursery.start_soon(self.leave, visitor, plan.leaves_after_s)
            await visitor.run()
            nursery.cancel_scope.cancel()

    async def leave(self, visitor: Visitor, after_s: float) -> None:
        await trio.sleep(after_s)
        visitor.leave()

    def happen(self, event: str) -> None:
        engine = self.engine
        match event:
            case "kill":
                engine.kill()
            case "revive":
                engine.revive()
            case "close idle":
                engine.close_idle()
            case _:
                engine.healthy = event == "well"

    def check(self) -> None:
        running, visits = self.running, self.visits
        running.assert_at_rest()
        ledger, outcomes = running.gateway.ledger, running.outcomes()
        assert ledger.opened == ledger.settled == sum(outcomes.values()) == len(visits)
        lines = running.log_lines("request")
        assert sorted(line["request_id"] for line in lines) == sorted(v.request.id for _, v in visits)
        logged = {line["request_id"]: line for line in lines}
        for plan, visitor in visits:
            check_visit(plan, visitor, logged[visitor.request.id])
        for kind in ("prompt", "completion"):
            counted = running.metric("api_tokens_total", kind=kind)
            assert counted == sum(line.get(f"{kind}_tokens", 0) for line in lines)


def check_visit(plan: Plan, visitor: Visitor, line: dict[str, Any]) -> None:
    """What the client saw is what was counted."""
    outcome, client = Outcome(line["outcome"]), visitor.client
    if outcome in (Outcome.CLIENT_GONE_QUEUED, Outcome.CLIENT_GONE_ACTIVE):
        assert plan.leaves_after_s is not None
        return
    if outcome is Outcome.CLIENT_STALLED or (plan.stalls and not client.finished):
        assert plan.stalls
        return
    if not client.finished:
        assert plan.leaves_after_s is not None, "left while it was told its refusal"
        return
    assert client.status == line["status"]
    assert visitor.took_s <= 25.0, "every wait is bounded"
    stream = client.header(b"content-type") == b"text/event-stream; charset=utf-8"
    if not stream:
        ours = plan.nonsense or (outcome is not Outcome.SERVED and client.status not in (400, 404))
        assert client.header(b"x-sluicegate-outcome") == (outcome.value.encode() if ours else None)
        assert (client.status == 200) == (outcome is Outcome.SERVED)
        return
    assert client.status == 200
    sealed, stamped = b": sluicegate {" in client.body, b'"sluicegate":{' in client.body
    failed = b'"error":{' in client.body or b'"type":"error"' in client.body
    assert failed == (outcome is not Outcome.SERVED)
    assert sealed or stamped or failed
    assert not (sealed and (stamped or failed)), "the seal of completeness"
    if outcome is Outcome.SERVED and plan.path in (CHAT, "/v1/completions"):
        assert client.body.count(b"data: [DONE]\n\n") == 1
        assert line["completion_tokens"] == plan.behaviour.tokens
    if outcome not in (Outcome.SERVED, Outcome.ENGINE_ERROR):
        if b"[DONE]" in client.body:  # the gateway's own deadline came between it and the end of the answer
            assert outcome in (Outcome.TIMEOUT_TOTAL, Outcome.SHED_DRAINING)
        assert f'"{outcome.value}"'.encode() in client.body or plan.path == "/v1/messages"


@settings(max_examples=150, deadline=None)
@given(
    plans=st.lists(_PLANS, min_size=1, max_size=8),
    events=_EVENTS,
    max_active=st.integers(1, 3),
    queue_max=st.integers(0, 3),
    queue_mode=st.sampled_from([QueueMode.QUEUE] * 3 + [QueueMode.REJECT]),
    drain_after_s=st.none() | st.none() | _SECONDS,
)
def test_any_traffic(
    plans: list[Plan], events: list[tuple[float, str]], drain_after_s: float | None, **bounds: Any
) -> None:
    deadlines = {"queue_timeout_s": 4.0, "first_token_s": 5.0, "idle_s": 2.0, "request_s": 8.0, "drain_s": 3.0}

    async def world() -> None:
        async with open_engine() as engine, simulate(engine, **deadlines, **bounds) as running:
            world = World(engine, running)

            async def traffic(nursery: trio.Nursery) -> None:
                for plan in plans:
                    await trio.sleep(plan.after_s)
                    nursery.start_soon(world.visit, plan)

            async def trouble() -> None:
                for after_s, event in events:
                    await trio.sleep(after_s)
                    world.happen(event)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(traffic, nursery)
                nursery.start_soon(trouble)
                if drain_after_s is not None:
                    await trio.sleep(drain_after_s)
                    running.gateway.stop()
                    await running.gateway.drain()
            await engine.until(lambda: (engine.running, engine.waiting) == (0, 0))
            world.check()

    trio.run(world, clock=MockClock(autojump_threshold=0), strict_exception_groups=True)
