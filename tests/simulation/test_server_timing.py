"""Server-Timing: what each answer says of its time, as far as that is known when its head is sent."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.fakes.engine import open_engine
from tests.fakes.script import Behaviour
from tests.harness import CHAT, question, simulate
from tests.simulation.visiting import Visitor, arrive, visit

SLOW = Behaviour(prefill_s=2.0, token_interval_s=0.5, tokens=5)


@pytest.mark.parametrize(
    ("body", "path", "told"),
    [
        (question(stream=True), CHAT, "queue;dur=0.0, engine;dur=2000.0, total;dur=2000.0"),
        (question(), CHAT, "queue;dur=0.0, engine;dur=4000.0, total;dur=4000.0"),
        (question("/v1/messages", stream=True), "/v1/messages", "queue;dur=0.0, engine;dur=2000.0, total;dur=2000.0"),
        (b"?", CHAT, "total;dur=0.0"),
        ({"prompt": "x"}, "/tokenize", "queue;dur=0.0, engine;dur=2000.0, total;dur=2000.0"),
    ],
    ids=["stream", "whole", "messages", "invalid", "without a slot"],
)
async def test_answers(autojump_clock: MockClock, body: Any, path: str, told: str) -> None:
    """Of a stream the time to its first event, of a whole answer the time to its end."""
    async with open_engine() as engine, simulate(engine) as running:
        engine.script.default = SLOW
        assert (await visit(running, body, path)).client.server_timing == told


async def test_queued(autojump_clock: MockClock) -> None:
    async with open_engine() as engine, simulate(engine, max_active=1) as running:
        engine.script.default = SLOW
        async with trio.open_nursery() as nursery:
            first, second = Visitor(running, question()), Visitor(running, question(stream=True))
            await arrive(nursery, first, second)
        assert second.client.server_timing == "queue;dur=4000.0, engine;dur=2000.0, total;dur=6000.0"


async def test_refused(autojump_clock: MockClock) -> None:
    """The time in the queue that was in vain; at once where there was none; at the engine where that was too slow."""
    async with open_engine() as engine, simulate(engine, max_active=1, queue_max=1, queue_timeout_s=1.5) as running:
        engine.script.default = SLOW
        async with trio.open_nursery() as nursery:
            visitors = [Visitor(running, question()) for _ in range(3)]
            await arrive(nursery, *visitors)
        told = [visitor.client.server_timing for visitor in visitors]
        assert told[1:] == ["queue;dur=1500.0, total;dur=1500.0", "total;dur=0.0"]
    async with open_engine() as engine, simulate(engine, first_token_s=1.0) as running:
        engine.script.default = SLOW
        late = await visit(running, question(stream=True))
        assert late.client.server_timing == "queue;dur=0.0, engine;dur=1000.0, total;dur=1000.0"
