"""The engines under contract: the fake one always, the real one where it is at hand (`pytest -m engine`).

`CONTRACT_BASE_URL` and `CONTRACT_MODEL` point the real one's share at a vLLM that already runs.
"""

import os
from collections.abc import AsyncIterator

import pytest

from tests.engine_contract.target import Target
from tests.fakes.engine import MODEL, open_engine
from tests.fakes.script import Behaviour


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.engine)])
def target(request: pytest.FixtureRequest) -> Target | None:
    """The engine that runs already; None: a fake one is to be opened."""
    if request.param == "fake":
        return None
    if "CONTRACT_BASE_URL" in os.environ:
        return Target(os.environ["CONTRACT_BASE_URL"], os.environ["CONTRACT_MODEL"])
    real = request.getfixturevalue("real_engine")
    return Target(real.base_url, real.model)


@pytest.fixture
async def engine(target: Target | None) -> AsyncIterator[Target]:
    """The engine under contract."""
    if target is not None:
        yield target
        return
    async with open_engine() as fake:
        # As slow as a small model, so that a client can leave in mid-stream.
        fake.script.default = Behaviour(token_interval_s=0.005)
        yield Target(await fake.listen_tcp(), MODEL)
