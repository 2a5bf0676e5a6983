"""Fixtures of the fake engine's own tests."""

from collections.abc import AsyncIterator

import pytest
import trio

from tests.engine_contract.raw import RawClient
from tests.fakes.asking import Connect
from tests.fakes.engine import FakeEngine, open_engine


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with open_engine() as engine:
        yield engine


@pytest.fixture(params=["memory", "tcp"])
async def connect(engine: FakeEngine, request: pytest.FixtureRequest) -> Connect:
    """Opens a connection to the fake engine."""
    port = int((await engine.listen_tcp()).rpartition(":")[2])

    async def dial() -> RawClient:
        if request.param == "memory":
            return RawClient(engine.dial())
        return RawClient(await trio.open_tcp_stream("127.0.0.1", port))

    return dial
