"""The engine dies in the middle of a stream and comes back: the gateway tells the truth throughout, and stays up."""

import os
import signal
from collections import Counter

import msgspec
import pytest
import trio

from sluicegate.engines.engine import EngineState
from tests.engine.programs import family
from tests.engine.real import START_S, RealEngine
from tests.engine.waits import POLL_S, entered, until_status
from tests.engine_contract.raw import RawAnswer, get, post
from tests.engine_contract.target import DIALECTS, PATIENCE_S, Target
from tests.harness import Running, configuration, open_gateway

pytestmark = pytest.mark.engine

#: From the engine's own readiness until an answer has come through the gateway (seconds).
BACK_S = 2.0

CHAT = DIALECTS["chat"]

#: What a request is told that reaches an engine at the moment of its death.
LATE = [(502, "engine_error"), (502, "engine_unavailable"), (503, "engine_unavailable")]


async def test_killed_in_mid_stream_and_started_again(engine: Target, real_engine: RealEngine) -> None:
    # The time between probes is that of production: it decides how soon the engine's return is seen.
    config = configuration(engine.base_url, max_active=2, queue_max=2, probe_interval_s=1.0)
    short = post(CHAT, engine.question("chat", limit=1))
    async with open_gateway(config) as running:
        gate = Target(running.base_url, engine.model)
        with trio.fail_after(PATIENCE_S):
            await kill_under_load(running, engine, real_engine)
        for path, answer in [(path, await gate.ask(get(path))) for path in ("/health", "/ready", "/v1/models")]:
            assert answer.status == 503, path
        assert running.metric("api_engine_up") == 0
        refused = await gate.ask(short)
        assert refused.status == 503
        assert refused.header("x-sluicegate-outcome") == "engine_unavailable"
        assert int(refused.header("retry-after") or 0) >= 1
        with trio.fail_after(START_S):
            back_s = await start_and_ask(gate, short, engine, real_engine)
        print(f"MEASURED back {back_s:.3f} s after the engine")
        assert back_s < BACK_S
        assert (await gate.ask(get("/health"))).status == 200
        await running.settled()
        running.assert_at_rest()
        assert running.metric("api_engine_up") == 1
        states = [line["event"] for line in running.log_lines() if line["event"].startswith("engine_")]
        assert states == ["engine_up", "engine_down", "engine_up"]


async def test_its_core_killed_in_mid_stream(real_engine: RealEngine) -> None:
    """What an out-of-memory kill or a CUDA error does: vLLM's API server tells of it, and ends a bit later."""
    engine = real_engine.target
    endless = engine.question("chat", limit=1800, ignore_eos=True)
    async with open_gateway(configuration(engine.base_url)) as running:
        gate = Target(running.base_url, engine.model)
        with trio.fail_after(PATIENCE_S):
            async with await gate.connect() as streamed, await gate.connect() as whole:
                await streamed.stream.send_all(post(CHAT, endless | {"stream": True}))
                await whole.stream.send_all(post(CHAT, endless))
                await entered(running, active=2, waiting=0)
                await streamed.until_events(4)
                (core,) = [relative for relative in family(real_engine.pid) if "EngineCor" in relative.name]
                os.kill(core.pid, signal.SIGKILL)
                stream = await streamed.answer()
                broken = await whole.answer()
            await running.engine_state(EngineState.DOWN)
            refused = await gate.ask(post(CHAT, endless))
        await trio.to_thread.run_sync(real_engine.kill)  # or the next test would find it still there, and then not
        running.assert_at_rest()
        assert running.outcomes() == {"engine_error": 2, "engine_unavailable": 1}
    assert (broken.status, refused.status) == (502, 503)
    assert stream.complete
    assert b"[DONE]" not in stream.body
    assert b": sluicegate" not in stream.body
    assert b'"error"' in stream.data()[-1]


async def kill_under_load(running: Running, engine: Target, real_engine: RealEngine) -> None:
    """SIGKILL while one client reads a stream, one waits for a whole answer and one is queued: what each is told."""
    gate = Target(running.base_url, engine.model)
    endless = engine.question("chat", limit=1800, ignore_eos=True)
    async with await gate.connect() as streamed, await gate.connect() as whole, await gate.connect() as queued:
        await streamed.stream.send_all(post(CHAT, endless | {"stream": True}))
        await whole.stream.send_all(post(CHAT, endless))
        await entered(running, active=2, waiting=0)
        await queued.stream.send_all(post(CHAT, endless))
        await entered(running, active=2, waiting=1)
        await streamed.until_events(4)
        await trio.to_thread.run_sync(real_engine.kill)
        assert_ends_in_an_error(await streamed.answer())
        broken = await whole.answer()
        assert (broken.status, broken.header("x-sluicegate-outcome")) == (502, "engine_error")
        # It got its slot when the others lost theirs, from an engine that was dying still, or dead, or known to be.
        late = await queued.answer()
        outcome = late.header("x-sluicegate-outcome")
        assert (late.status, outcome) in LATE
    await running.settled()
    running.assert_at_rest()
    assert Counter(running.outcomes()) == Counter(["engine_truncated", "engine_error", outcome])
    await running.engine_state(EngineState.DOWN)


def assert_ends_in_an_error(answer: RawAnswer) -> None:
    """The stream has a proper end, which is an error, and nothing in it looks like success."""
    assert answer.status == 200
    assert answer.complete
    assert b"[DONE]" not in answer.body
    assert b": sluicegate" not in answer.body
    assert answer.body.endswith(b"\n\n")
    *tokens, last = [msgspec.json.decode(data) for data in answer.data()]
    assert last["error"]["code"] == "engine_truncated"
    assert len(tokens) >= 3
    assert all(token["choices"] and token["choices"][0]["finish_reason"] is None for token in tokens)


async def start_and_ask(gate: Target, request: bytes, engine: Target, real_engine: RealEngine) -> float:
    """Start the engine while a client asks the gateway over and over; seconds from ready to answered."""
    ready_at = None

    async def watch() -> None:
        nonlocal ready_at
        async with engine.client() as client:
            await until_status(client, "/health", 200)
            await until_status(client, "/v1/models", 200)
        ready_at = trio.current_time()

    async with trio.open_nursery() as nursery:
        await trio.to_thread.run_sync(real_engine.start)
        nursery.start_soon(watch)
        while (answer := await gate.ask(request)).status != 200:
            assert answer.status == 503, answer.raw
            await trio.sleep(POLL_S)
        answered_at = trio.current_time()
    assert ready_at is not None
    return answered_at - ready_at
