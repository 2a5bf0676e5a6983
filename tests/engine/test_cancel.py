"""A client that leaves takes nothing with it: its slot and the engine's work on its request end at once.

Half a second is what is asserted: less than a person waits, and much more than the way takes (a hang-up's packet, the
gateway's cancellation, the engine's notice, and the engine's step under way, after which it drops the request):
measured on two cores beside other work, 0.03 to 0.10 s for the slot and 0.02 to 0.24 s for the engine (`pytest -rP`).
"""

import itertools
import math
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import trio

from tests.engine.real import SEQUENCES
from tests.engine.waits import POLL_S, entered, idle, until
from tests.engine_contract.raw import post
from tests.engine_contract.target import DIALECTS, PATIENCE_S, Numbers, Target
from tests.harness import Running, configuration, open_gateway
from tests.wire.visitors import WAYS, Http2Visitor, Visitor, come

pytestmark = pytest.mark.engine

#: From the client's leaving until its slot is free, and until the engine has nothing of it any more (seconds).
GONE_S = 0.5

#: More than any test here lets the model write, so that no answer is over before its client leaves.
ENDLESS = 1800

#: Other programs on the machine can delay the test for half a second now and then, though not each time.
ATTEMPTS = 3

#: Lets a client leave in one situation; how long each trace of it lasted.
Scenario = Callable[[Target, str], Awaitable[list["Latency"]]]

_seeds = itertools.count()


@dataclass(frozen=True)
class Latency:
    """Seconds from leaving: until the gateway was seen without it, and until the engine was."""

    gateway_s: float
    engine_s: float


async def leave(
    running: Running, engine: Target, leaver: Visitor, active: int = 0, engine_rests: Callable[[Numbers], bool] = idle
) -> Latency:
    """Let `leaver` go; how long its traces last. `active`, `engine_rests`: what is right without it."""
    admission = running.gateway.admission
    gateway_s = engine_s = None
    async with engine.client() as client:
        await engine.numbers(client)  # the connection is there before the clock runs
        left_at = trio.current_time()
        # As its kind cancels: HTTP/2 clients reset their stream and keep the connection.
        await leaver.leave("cancel" if isinstance(leaver, Http2Visitor) else "close")
        while gateway_s is None or engine_s is None:
            if gateway_s is None and (admission.active, admission.queued) == (active, 0):
                gateway_s = trio.current_time() - left_at
            if engine_s is None and engine_rests(await engine.numbers(client)):
                engine_s = trio.current_time() - left_at
            await trio.sleep(POLL_S / 5)
    print(f"MEASURED gateway {gateway_s:.3f} s, engine {engine_s:.3f} s")
    return Latency(gateway_s, engine_s)


async def assert_open(running: Running, engine: Target) -> None:
    """The only slot is free: a request is answered through it."""
    body = engine.question("chat", limit=1)
    answer = await Target(running.base_url, engine.model).ask(post(DIALECTS["chat"], body))
    assert answer.status == 200
    await running.settled()
    running.assert_at_rest()


def endless(engine: Target, *, stream: bool = True) -> dict[str, Any]:
    return engine.question("chat", limit=ENDLESS, ignore_eos=True, stream=stream)


def long_prompt(engine: Target) -> dict[str, Any]:
    """A prompt that the engine is busy with for seconds, new each time so that its prefix cache does not know it."""
    tokens = random.Random(next(_seeds)).choices(range(1000, 40000), k=1900)
    return {"model": engine.model, "prompt": tokens, "max_tokens": 4, "stream": True}


async def in_mid_stream(engine: Target, way: str) -> list[Latency]:
    async with open_gateway(configuration(engine.base_url, max_active=1)) as running:
        async with await come(way, running) as leaver:
            await leaver.send(DIALECTS["chat"], endless(engine))
            await leaver.until_events(6)
            latency = await leave(running, engine, leaver)
        assert running.outcomes() == {"client_gone_active": 1}
        await assert_open(running, engine)
    return [latency]


async def during_prefill(engine: Target, way: str) -> list[Latency]:
    async with open_gateway(configuration(engine.base_url, max_active=1)) as running, engine.client() as client:
        before = await engine.numbers(client)
        async with await come(way, running) as leaver:
            await leaver.send(DIALECTS["completions"], long_prompt(engine))
            await until(engine, lambda numbers: numbers.running == 1)
            latency = await leave(running, engine, leaver)
        # A token means that the prefill came to its end, for all that the client had left.
        after = await engine.numbers(client)
        if after.generation_tokens != before.generation_tokens:
            latency = Latency(math.inf, math.inf)
        assert running.outcomes() == {"client_gone_active": 1}
        await assert_open(running, engine)
    return [latency]


async def during_a_request_without_stream(engine: Target, way: str) -> list[Latency]:
    async with open_gateway(configuration(engine.base_url, max_active=1)) as running, engine.client() as client:
        before = await engine.numbers(client)
        async with await come(way, running) as leaver:
            await leaver.send(DIALECTS["chat"], endless(engine, stream=False))
            await until(engine, lambda numbers: numbers.generation_tokens > before.generation_tokens)
            latency = await leave(running, engine, leaver)
        assert running.outcomes() == {"client_gone_active": 1}
        await assert_open(running, engine)
    return [latency]


async def in_the_queue(engine: Target, way: str) -> list[Latency]:
    async with open_gateway(configuration(engine.base_url, max_active=1)) as running:
        async with await come("fast", running) as holder, await come(way, running) as leaver:
            await holder.send(DIALECTS["chat"], endless(engine))
            await holder.until_events(2)
            await leaver.send(DIALECTS["chat"], endless(engine))
            await entered(running, active=1, waiting=1)
            first = await leave(running, engine, leaver, 1, lambda numbers: numbers.running == 1)
            assert running.outcomes() == {"client_gone_queued": 1}
            # The other client is served on and has kept its slot.
            await holder.until_events(20)
            second = await leave(running, engine, holder)
        assert running.outcomes() == {"client_gone_queued": 1, "client_gone_active": 1}
        await assert_open(running, engine)
    return [first, second]


async def in_the_engines_queue(engine: Target, way: str) -> list[Latency]:
    """More slots than the engine's batch has places: the last one waits in the engine's own queue."""
    slots = SEQUENCES + 1
    async with open_gateway(configuration(engine.base_url, max_active=slots)) as running, AsyncExitStack() as stack:
        holders = [await stack.enter_async_context(await come("fast", running)) for _ in range(SEQUENCES)]
        leaver = await stack.enter_async_context(await come(way, running))
        for holder in holders:
            await holder.send(DIALECTS["chat"], endless(engine))
        await until(engine, lambda numbers: numbers.running == SEQUENCES)
        await leaver.send(DIALECTS["chat"], endless(engine))
        await until(engine, lambda numbers: numbers.waiting == 1)
        rest = (SEQUENCES, 0)
        latency = await leave(
            running, engine, leaver, SEQUENCES, lambda numbers: (numbers.running, numbers.waiting) == rest
        )
        for holder in holders:
            await holder.leave("close")
        await until(engine, idle)
        await running.settled()
        assert running.outcomes() == {"client_gone_active": slots}
        running.assert_at_rest()
    return [latency]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "scenario",
    [in_mid_stream, during_prefill, during_a_request_without_stream, in_the_queue, in_the_engines_queue],
)
async def test_a_client_that_leaves_is_gone(engine: Target, scenario: Scenario, way: str) -> None:
    worst = math.inf
    for _ in range(ATTEMPTS):
        with trio.fail_after(PATIENCE_S):
            latencies = await scenario(engine, way)
            await until(engine, idle)
        worst = max(max(latency.gateway_s, latency.engine_s) for latency in latencies)
        if worst < GONE_S:
            break
    assert worst < GONE_S
