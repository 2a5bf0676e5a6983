"""The gateway under test: ours in this process, or whichever `GATEWAY_URL` names.

| variable | meaning |
| --- | --- |
| `GATEWAY_URL` | `http://host:port` or `unix:/path` of a running gateway; unset: our own |
| `GATEWAY_ENGINE` | where that gateway expects its engine, so that the suite's can listen there; `http://host:port` or `unix:/path` |
| `GATEWAY_MODEL` | the model that it passes on; `fake-model` |
| `GATEWAY_IDLE_S` | its deadline for an engine that falls silent; unset: those tests are skipped |
| `GATEWAY_FIRST_TOKEN_S` | its deadline for an engine that does not begin; unset: those tests are skipped |
| `GATEWAY_FINAL_FRAME` | `1` if its last word on a stream is Sluicegate's |
"""  # noqa: E501

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
import trio

from sluicegate.config.schema import FinalFrame
from tests import harness
from tests.conformance.subject import PATIENCE_S, FakeSubject, Subject
from tests.engine.real import START_S, RealEngine
from tests.engine_contract.target import Target
from tests.fakes.engine import MODEL, FakeEngine, open_engine
from tests.fakes.script import Behaviour
from tests.harness import configuration, open_gateway

#: Our own gateway's deadlines (seconds): short, and long enough for a machine that has other work.
IDLE_S, FIRST_TOKEN_S = 0.5, 1.0

#: Slow enough for events to come one by one.
ONE_BY_ONE = Behaviour(token_interval_s=0.003)


FOREIGN = "GATEWAY_URL" in os.environ
#: Ours on each kind of address, with the final frame and without it.
KINDS = ["plain", "plain without the final frame", "tls"]


@pytest.fixture(params=["foreign"] if FOREIGN else KINDS)
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[FakeSubject]:
    """The gateway before the suite's own engine."""
    async with open_engine(model=os.environ.get("GATEWAY_MODEL", MODEL)) as fake:
        fake.script.default = ONE_BY_ONE
        async with _foreign(fake) if FOREIGN else _ours(fake, request.param) as found:
            yield found


@pytest.fixture
async def real(real_engine: RealEngine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Subject]:
    """Our gateway before the real vLLM."""
    monkeypatch.setattr(harness, "PATIENCE_S", START_S)
    async with open_gateway(configuration(real_engine.base_url)) as running:
        gateway = Target(running.base_url, real_engine.model)
        yield Subject(gateway, real_engine.target, None, None, final_frame=True)


@asynccontextmanager
async def _ours(fake: FakeEngine, kind: str) -> AsyncIterator[FakeSubject]:
    frame = FinalFrame.OFF if kind.endswith("frame") else FinalFrame.COMMENT
    engine = Target(await fake.listen_tcp(), fake.model)
    deadlines = {"idle_s": IDLE_S, "first_token_s": FIRST_TOKEN_S}
    config = configuration(engine.base_url, max_active=16, final_frame=frame, **deadlines)
    async with open_gateway(config) as running:
        gateway = Target(running.tls_url if kind == "tls" else running.base_url, fake.model)
        has_one = frame is FinalFrame.COMMENT
        yield FakeSubject(gateway, engine, IDLE_S, FIRST_TOKEN_S, final_frame=has_one, fake=fake)
        with trio.fail_after(PATIENCE_S):
            await running.settled()
        running.assert_at_rest()


@asynccontextmanager
async def _foreign(fake: FakeEngine) -> AsyncIterator[FakeSubject]:
    engine = Target(os.environ["GATEWAY_ENGINE"], fake.model)
    if engine.socket_path is not None:
        await fake.listen_unix(engine.socket_path)
    else:
        url = urlsplit(engine.base_url)
        await fake.listen_tcp(url.hostname or "127.0.0.1", url.port or 80)
    gateway = Target(os.environ["GATEWAY_URL"], fake.model)
    found = FakeSubject(
        gateway,
        engine,
        _seconds("GATEWAY_IDLE_S"),
        _seconds("GATEWAY_FIRST_TOKEN_S"),
        final_frame=os.environ.get("GATEWAY_FINAL_FRAME") == "1",
        fake=fake,
    )
    await _ready(found)
    yield found


async def _ready(subject: FakeSubject) -> None:
    """Wait until the gateway has found the engine, which has just begun to listen: ask after each of its probes."""
    with trio.fail_after(PATIENCE_S):
        while not await _found(subject):
            await _probed(subject, 1)


async def _found(subject: FakeSubject) -> bool:
    """Twice, with probes between: one that the last engine took with it when it went may yet count against this one."""
    if (await subject.stream("chat")).status != 200:
        return False
    await _probed(subject, 2)
    return (await subject.stream("chat")).status == 200


async def _probed(subject: FakeSubject, count: int) -> None:
    """Wait for so many probes, if the gateway has any."""
    enough = len(subject.fake.seen) + count
    with trio.move_on_after(0.5):
        await subject.fake.until(lambda: len(subject.fake.seen) >= enough)


def _seconds(name: str) -> float | None:
    return float(os.environ[name]) if name in os.environ else None
