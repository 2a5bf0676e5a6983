"""What becomes of a request in the plain cases, on virtual time."""

import gc
import json
import weakref
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sluicegate.engines.engine import EngineState
from sluicegate.outcome import Outcome
from tests.fakes.engine import open_engine
from tests.fakes.script import BEFORE_HEAD, Behaviour, Fault, Kind
from tests.harness import question, simulate
from tests.shed import SHED, ShedCase
from tests.simulation.visiting import Visitor, answer_with, arrive, visit


async def test_slot_free_goes_at_once(autojump_clock: MockClock) -> None:
    async with open_engine() as engine, simulate(engine, max_active=1) as running:
        visitor = await visit(running, question())
        assert (visitor.outcome, visitor.client.status, visitor.took_s) == ("served", 200, 0.0)
        assert visitor.json["object"] == "chat.completion"
        assert visitor.log["queue_s"] is None or visitor.log["queue_s"] == 0.0
        running.assert_at_rest()


@pytest.mark.parametrize("case", SHED.values(), ids=SHED)
async def test_shed(autojump_clock: MockClock, case: ShedCase) -> None:
    """Each case of the table: the one that is shed never reaches the engine, and no one else notices."""
    async with (
        open_engine() as engine,
        simulate(engine, **{"max_active": 1, "queue_max": 2, **case.settings}) as running,
    ):
        engine.script.default = Behaviour(prefill_s=10.0)
        async with trio.open_nursery() as nursery:
            before = [Visitor(running, question()) for _ in range(case.before)]
            late = Visitor(running, question())
            await arrive(nursery, *before, late)
        assert late.refused(case.outcome, case.status)
        assert (late.json["error"]["message"], late.retry_after) == (case.message, b"1")
        assert late.took_s == pytest.approx(case.after_s)
        assert late.log.get("queue_s", 0.0) == pytest.approx(case.after_s)
        assert [visitor.took_s for visitor in before] == pytest.approx([10.0, 20.0][: case.before])
        assert running.outcomes() == {"served": case.before, case.outcome.value: 1}
        assert len(engine.posts()) == case.before
        running.assert_at_rest()


async def test_slots_are_given_in_the_order_of_arrival(autojump_clock: MockClock) -> None:
    async with open_engine() as engine, simulate(engine, max_active=1, queue_max=2) as running:
        engine.script.default = Behaviour(prefill_s=10.0)
        async with trio.open_nursery() as nursery:
            visitors = [Visitor(running, question()) for _ in range(3)]
            await arrive(nursery, *visitors)
        assert [visitor.took_s for visitor in visitors] == pytest.approx([10.0, 20.0, 30.0])
        running.assert_at_rest()


async def test_engine_unreachable_503(autojump_clock: MockClock) -> None:
    """The request gets a 503 before it takes a slot."""
    async with open_engine() as engine:
        engine.refusing = True
        async with simulate(engine, max_active=1) as running:
            visitor = await visit(running, question())
            assert visitor.refused(Outcome.ENGINE_UNAVAILABLE, 503)
            assert visitor.retry_after == b"5"
            assert visitor.log.get("queue_s") is None
            assert running.gateway.admission.view().slot_time_s is None, "a slot was taken"


async def test_engine_without_a_loaded_model_503_at_the_door(autojump_clock: MockClock) -> None:
    async with open_engine(model="") as engine, simulate(engine) as running:
        await running.engine_state(EngineState.DEGRADED)
        visitor = await visit(running, question())
        assert visitor.refused(Outcome.ENGINE_UNAVAILABLE, 503)
        assert "no model loaded" in visitor.json["error"]["message"]
        assert engine.posts() == []


@pytest.mark.parametrize("kind", [Kind.CLOSE, Kind.RESET, Kind.GARBAGE, Kind.HUGE_HEAD])
@pytest.mark.parametrize("stream", [False, True])
async def test_engine_breaks_before_its_head_502(autojump_clock: MockClock, kind: Kind, stream: bool) -> None:
    async with open_engine() as engine, simulate(engine) as running:
        engine.script.next(Behaviour(fault=Fault(kind, BEFORE_HEAD)))
        visitor = await visit(running, question(stream=stream))
        assert visitor.refused(Outcome.ENGINE_ERROR, 502)
        assert (await visit(running, question())).outcome == "served"
        running.assert_at_rest()


@dataclass(frozen=True)
class Failure:
    """An engine's own 5xx, and what its client gets: status, message, and the fields that tell of a retry."""

    status: int
    body: bytes
    answered: int
    message: str
    told: dict[str, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    log: str = ""


def vllm(message: str, kind: str = "InternalServerError") -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": 500}}).encode()


NEVER = {"x-should-retry": "false"}
FAILURES = {
    "a bug": Failure(500, vllm("list index out of range"), 502, "status 500: list index out of range."),
    "nothing said": Failure(500, b"", 502, "status 500. Retry."),
    "plain text": Failure(502, b"Bad Gateway\n", 502, "status 502: Bad Gateway. Retry."),
    "a page": Failure(504, b"<html>", 502, "status 504. Retry."),
    "overload": Failure(503, vllm("Too busy."), 503, "status 503: Too busy. Retry.", {"retry-after": "5"}),
    "overload for 33 s": Failure(
        503, vllm("Too busy."), 503, "status 503: Too busy. Retry.", {"retry-after": "33"}, {"Retry-After": "33"}
    ),
    "overload for long": Failure(
        503, b"", 503, "status 503. Retry.", {"retry-after": "90", **NEVER}, {"Retry-After": "90"}
    ),
    "in milliseconds": Failure(
        503, b"", 503, "status 503. Retry.", {"retry-after-ms": "250"}, {"Retry-After-Ms": "250"}
    ),
    "at a date": Failure(
        500,
        b"",
        502,
        "status 500. Retry.",
        {"retry-after": "Tue, 14 Nov 2023 22:13:20 GMT"},
        {"Retry-After": "Tue, 14 Nov 2023 22:13:20 GMT"},
    ),
    "at no time": Failure(503, b"", 503, "status 503. Retry.", {"retry-after": "5"}, {"Retry-After": "soon"}),
    "not implemented": Failure(501, vllm("No beams."), 501, "status 501: No beams.", NEVER),
    "not implemented, unsaid": Failure(505, b"", 505, "status 505.", NEVER),
    "a client's mistake": Failure(500, vllm("Bad n.", "BadRequestError"), 500, "status 500: Bad n.", NEVER),
    "not again": Failure(503, vllm("Gone."), 503, "status 503: Gone.", NEVER, {"X-Should-Retry": "False"}),
    "again": Failure(
        501, vllm("Soon."), 502, "status 501: Soon. Retry.", {"x-should-retry": "true"}, {"X-Should-Retry": "true"}
    ),
    "an address": Failure(
        500,
        vllm("Cannot reach 10.0.0.7:5555"),
        502,
        "status 500: Cannot reach (hidden).",
        log="status 500: Cannot reach 10.0.0.7:5555.",
    ),
    "too much said": Failure(502, vllm("x" * 70_000), 502, "status 502. Retry."),
    "much said": Failure(502, vllm("x" * 10_000), 502, f"status 502: {'x' * 299}…. Retry."),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
async def test_engine_fails_with_a_status_of_its_own(autojump_clock: MockClock, failure: Failure, stream: bool) -> None:
    """Its reason reaches client and log, and its word about a retry the client. What is permanent says no retry."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in failure.fields.items())
    head = f"HTTP/1.1 {failure.status} No\r\n{fields}content-length: {len(failure.body)}\r\n\r\n"
    async with open_engine() as engine, simulate(engine) as running:
        answer_with(running, head.encode() + failure.body)
        visitor = await visit(running, question(stream=stream))
        assert visitor.refused(Outcome.ENGINE_ERROR, failure.answered)
        assert visitor.json["error"]["message"] == f"The engine failed with {failure.message}"
        assert visitor.log["detail"] == f"The engine failed with {failure.log or failure.message}"
        about_retries = ("retry-after", "retry-after-ms", "x-should-retry")
        told = {name: value for name in about_retries if (value := visitor.client.header(name.encode()))}
        assert {name: value.decode().lower() for name, value in told.items()} == {
            name: value.lower() for name, value in failure.told.items()
        }
        running.assert_at_rest()


async def test_an_error_answer_that_breaks_off_is_its_status(autojump_clock: MockClock) -> None:
    async with open_engine() as engine, simulate(engine) as running:
        answer_with(running, b"HTTP/1.1 503 No\r\ncontent-length: 99\r\n\r\n{")
        visitor = await visit(running, question())
        assert visitor.refused(Outcome.ENGINE_ERROR, 503)
        assert visitor.log["detail"] == "The engine failed with status 503. Retry."


@pytest.mark.parametrize(
    ("body", "status"),
    [({"model": "no-such-model"}, 404), ({"messages": "not a list"}, 400), ({"stream_options": {"x": 1}}, 400)],
)
async def test_the_engines_own_4xx_pass_through_unchanged(
    autojump_clock: MockClock, body: dict[str, object], status: int
) -> None:
    async with open_engine() as engine, simulate(engine) as running:
        visitor = await visit(running, question() | body)
        assert (visitor.outcome, visitor.client.status) == ("invalid", status)
        assert visitor.client.header(b"x-sluicegate-outcome") is None
        assert visitor.json["error"]["code"] == status, "vLLM's own body"
        running.assert_at_rest()


async def test_request_timeout_over_before_the_head_504(autojump_clock: MockClock) -> None:
    async with open_engine() as engine, simulate(engine, request_s=30.0) as running:
        engine.script.next(Behaviour(prefill_s=100.0))
        visitor = await visit(running, question())
        assert visitor.refused(Outcome.TIMEOUT_TOTAL, 504)
        assert visitor.took_s == pytest.approx(30.0)
        await engine.until(lambda: (engine.running, engine.aborted) == (0, 1))
        running.assert_at_rest()


async def test_request_timeout_after_the_head(autojump_clock: MockClock) -> None:
    """After the head, a request that times out ends with a terminal error event."""
    async with open_engine() as engine, simulate(engine, request_s=30.0) as running:
        engine.script.next(Behaviour(token_interval_s=1.0, tokens=100))
        visitor = await visit(running, question(stream=True))
        assert (visitor.outcome, visitor.client.status) == ("timeout_total", 200)
        assert visitor.took_s == pytest.approx(30.0)
        assert visitor.data()[-1]["error"]["code"] == "timeout_total"
        assert "[DONE]" not in visitor.data()
        assert visitor.client.finished
        await engine.until(lambda: (engine.running, engine.aborted) == (0, 1))
        running.assert_at_rest()


async def test_client_gone_while_queued(autojump_clock: MockClock) -> None:
    """The request leaves the queue at once, and its place is free."""
    async with open_engine() as engine, simulate(engine, max_active=1, queue_max=1) as running:
        engine.script.default = Behaviour(prefill_s=10.0)
        async with trio.open_nursery() as nursery:
            holder, waiter, next_one = [Visitor(running, question()) for _ in range(3)]
            await arrive(nursery, holder, waiter)
            assert running.gateway.admission.queued == 1
            waiter.leave()
            await wait_all_tasks_blocked()
            assert running.gateway.admission.queued == 0
            await arrive(nursery, next_one)
            assert waiter.outcome == "client_gone_queued"
            assert running.gateway.admission.queued == 1, "the place was free for the next one"
        assert next_one.outcome == "served"
        assert len(engine.posts()) == 2
        running.assert_at_rest()


@pytest.mark.parametrize("stream", [False, True])
async def test_client_gone_while_active(autojump_clock: MockClock, stream: bool) -> None:
    """The request at the engine is aborted, and the slot is free."""
    async with open_engine() as engine, simulate(engine, max_active=1) as running:
        engine.script.next(Behaviour(token_interval_s=1.0, tokens=1000))
        async with trio.open_nursery() as nursery:
            leaver, next_one = Visitor(running, question(stream=stream)), Visitor(running, question())
            await arrive(nursery, leaver, next_one)
            await engine.until(lambda: engine.generation_tokens == 5)
            leaver.leave()
        assert leaver.outcome == "client_gone_active"
        assert next_one.outcome == "served"
        assert next_one.took_s == pytest.approx(4.0), "in the very moment in which the other one left"
        await engine.until(lambda: (engine.running, engine.aborted) == (0, 1))
        running.assert_at_rest()


@pytest.mark.parametrize("body", [question(), question(stream=True), b"{"], ids=["whole", "stream", "refused"])
async def test_a_request_leaves_no_cycle(autojump_clock: MockClock, body: dict[str, object] | bytes) -> None:
    """All of it is freed when it ends: a cycle per request would be the garbage collector's work, in pauses."""
    async with open_engine() as engine, simulate(engine) as running:
        gc.disable()
        try:
            visitor = await visit(running, body)
            client = weakref.ref(visitor.client)
            del visitor
            assert client() is None
        finally:
            gc.enable()
