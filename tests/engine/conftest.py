"""Every test here starts with an engine that has nothing to do, and has to leave it so."""

from collections.abc import AsyncIterator

import pytest
import trio

from tests.contract.target import PATIENCE_S, Target
from tests.engine.real import RealEngine, idle, until


@pytest.fixture
async def engine(real_engine: RealEngine) -> AsyncIterator[Target]:
    """The real engine, idle."""
    with trio.fail_after(PATIENCE_S):
        await until(real_engine.target, idle)
    yield real_engine.target
    with trio.fail_after(PATIENCE_S):
        await until(real_engine.target, idle)
