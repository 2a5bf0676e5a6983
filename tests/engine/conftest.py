"""Every test here starts with an engine that has nothing to do, and has to leave it so."""

from collections.abc import AsyncIterator

import pytest
import trio

from tests import harness
from tests.engine.real import START_S, RealEngine
from tests.engine.waits import idle, until
from tests.engine_contract.target import PATIENCE_S, Target


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway may live as long as an engine takes to start: the tests here bound what they do themselves."""
    monkeypatch.setattr(harness, "PATIENCE_S", START_S)


@pytest.fixture
async def engine(real_engine: RealEngine) -> AsyncIterator[Target]:
    """The real engine, idle."""
    with trio.fail_after(PATIENCE_S):
        await until(real_engine.target, idle)
    yield real_engine.target
    if real_engine.runs:
        with trio.fail_after(PATIENCE_S):
            await until(real_engine.target, idle)
