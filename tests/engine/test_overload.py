"""More clients than slots and places in the queue, with the real engine behind."""

from collections import Counter
from contextlib import AsyncExitStack

import pytest
import trio

from sluicegate.config.schema import QueueMode
from tests.engine.waits import POLL_S
from tests.engine_contract.raw import RawAnswer, RawClient, post
from tests.engine_contract.target import DIALECTS, PATIENCE_S, Target
from tests.harness import Running, configuration, open_gateway

pytestmark = pytest.mark.engine

CLIENTS = 8
CHAT = DIALECTS["chat"]


async def crowd(engine: Target, running: Running) -> tuple[list[RawAnswer], float]:
    """All clients ask at once; their answers, and the most that the engine was seen to have at one time."""
    # Long enough that none is served before the last has asked.
    request = post(CHAT, engine.question("chat", limit=40, ignore_eos=True))
    answers: list[RawAnswer] = []
    most = 0.0

    async def ask(client: RawClient) -> None:
        answers.append(await client.ask(request))

    async def watch() -> None:
        nonlocal most
        async with engine.client() as client:
            while True:
                numbers = await engine.numbers(client)
                most = max(most, numbers.running + numbers.waiting)
                await trio.sleep(POLL_S)

    async with AsyncExitStack() as stack:
        gate = Target(running.base_url, engine.model)
        clients = [await stack.enter_async_context(await gate.connect()) for _ in range(CLIENTS)]
        async with trio.open_nursery() as watching:
            watching.start_soon(watch)
            async with trio.open_nursery() as asking:
                for client in clients:
                    asking.start_soon(ask, client)
            watching.cancel_scope.cancel()
    return answers, most


@pytest.mark.parametrize(
    ("mode", "served", "outcome"),
    [(QueueMode.QUEUE, 4, "shed_queue_full"), (QueueMode.REJECT, 2, "shed_busy")],
    ids=["queue", "reject"],
)
async def test_everybody_is_answered(engine: Target, mode: QueueMode, served: int, outcome: str) -> None:
    config = configuration(engine.base_url, max_active=2, queue_max=2, queue_mode=mode)
    async with open_gateway(config) as running, engine.client() as client:
        with trio.fail_after(PATIENCE_S):
            before = await engine.numbers(client)
            answers, most = await crowd(engine, running)
            await running.settled()
            after = await engine.numbers(client)
            page = await Target(running.base_url, engine.model).ask(b"GET /metrics HTTP/1.1\r\nhost: gate\r\n\r\n")
        running.assert_at_rest()
    shed = CLIENTS - served
    assert Counter(answer.status for answer in answers) == {200: served, 429: shed}
    for answer in answers:
        if answer.status == 429:
            assert int(answer.header("retry-after") or 0) >= 1
            assert answer.header("x-sluicegate-outcome") == outcome
    # Two at a time, and no more: the engine itself never had one too many.
    assert most == 2
    assert after.finished - before.finished == served
    assert running.outcomes() == {"served": served, outcome: shed}
    lines = page.body.decode().splitlines()
    assert f'api_requests_total{{endpoint="{CHAT}",status="200"}} {served}.0' in lines
    assert f'api_requests_total{{endpoint="{CHAT}",status="429"}} {shed}.0' in lines
    assert f'api_tokens_total{{kind="completion"}} {40.0 * served}' in lines
    assert "api_active_requests 0.0" in lines
    assert "api_queue_depth 0.0" in lines
