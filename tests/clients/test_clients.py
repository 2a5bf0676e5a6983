"""The table of docs/clients.md: what a client finds through the gateway is what it finds at vLLM itself."""

import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from sluicegate.config.schema import QueueMode
from tests.clients.install import node_clients, python_clients
from tests.engine_contract.raw import post
from tests.engine_contract.target import DIALECTS, Target
from tests.fakes.engine import open_engine
from tests.fakes.script import Behaviour
from tests.harness import configuration, open_gateway, question

HERE = Path(__file__).parent

#: Clients may take seconds to import what they need, on a machine with other work (seconds).
CLIENT_S = 240.0


@dataclass(frozen=True)
class Client:
    """A program of this folder, and its own errors for an unknown model and for 429."""

    program: str
    unknown: str = "NotFoundError"
    busy: str = "RateLimitError"

    async def report(self, python: Path | None, *arguments: str) -> dict[str, Any]:
        """What it printed. Without a `python` the client is the pinned one."""
        environ = {"PATH": os.environ["PATH"], "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        if self.program.endswith(".cjs"):
            command, environ["NODE_PATH"] = "node", str(node_clients())
        else:
            command = str(python or python_clients())
        with trio.fail_after(CLIENT_S):
            done = await trio.run_process([command, HERE / self.program, *arguments], env=environ, capture_stdout=True)
        return dict(json.loads(done.stdout))


CLIENTS = [
    Client("python/use_curl.py", unknown="CurlError", busy="CurlError"),
    Client("python/use_openai.py"),
    Client("python/use_anthropic.py"),
    Client("python/use_litellm.py"),
    Client("python/use_langchain_openai.py", unknown="OpenAIModelNotFoundError", busy="OpenAIRateLimitError"),
    Client("python/use_pydantic_ai.py", unknown="ModelNotFoundError", busy="ModelRateLimitError"),
    Client("python/use_openai_agents.py"),
    Client("node/use_openai.cjs"),
    Client("node/use_anthropic.cjs"),
    Client("node/use_ai.cjs", unknown="APICallError", busy="APICallError"),
]

#: These need nothing but what all tests need.
CORE = {"python/use_curl.py", "python/use_openai.py", "python/use_anthropic.py"}

pytestmark = pytest.mark.engine


@asynccontextmanager
async def full_gateway(model: str) -> AsyncIterator[tuple[str, str]]:
    """The address of a gateway whose only slot is busy, and what it says to every request."""
    async with open_engine(model=model) as fake:
        fake.script.default = Behaviour(hold=trio.Event())
        config = configuration(await fake.listen_tcp(), max_active=1, queue_mode=QueueMode.REJECT)
        async with open_gateway(config) as running, await Target(running.base_url, model).connect() as holder:
            asked = post(DIALECTS["chat"], question(model=model))
            await holder.stream.send_all(asked)
            while not running.gateway.admission.active:
                await trio.lowlevel.checkpoint()
            refused = await Target(running.base_url, model).ask(asked)
            assert refused.status == 429
            yield running.base_url, json.loads(refused.body)["error"]["message"]


def table() -> Iterator[Any]:
    """All of them pinned, and the core in the versions that the tests have anyway."""
    for client in CLIENTS:
        yield pytest.param(client, None, id=f"pinned-{client.program}", marks=pytest.mark.clients)
        if client.program in CORE:
            yield pytest.param(client, Path(sys.executable), id=client.program)


@pytest.mark.parametrize(("client", "python"), list(table()))
async def test_a_client(engine: Target, client: Client, python: Path | None) -> None:
    config = configuration(engine.base_url, max_active=1)
    async with open_gateway(config) as running, full_gateway(engine.model) as (full_url, message):
        direct = await client.report(python, engine.base_url, engine.model)
        through = await client.report(python, running.base_url, engine.model, full_url)
        await running.settled()
        assert running.outcomes() == {"served": 3, "invalid": 2, "client_gone_active": 1}
        running.assert_at_rest()
    for step in ("full", "full_stream"):
        refusal = through.pop(step)
        assert refusal["error"] == client.busy
        assert message in refusal["message"]
    print(json.dumps(through))
    assert through["refused"]["error"] == through["refused_stream"]["error"] == client.unknown
    assert through["stopped"] == 3
    assert "Paris" in through["whole"]["text"]
    assert through["streamed"] == through["whole"]
    if through != direct:
        # The same question can have two answers even at temperature 0: sums in bfloat16 depend on what shares a batch.
        assert through == await client.report(python, engine.base_url, engine.model)
