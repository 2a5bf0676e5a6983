import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluicegate_run.prepare import prepare
from sluicegate_run.progress import Progress
from tests.unit.sluicegate_run.world import World


@pytest.fixture(scope="session")
def prepared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a preparation leaves, made once for the tests that are not about it."""
    world = World(tmp_path_factory.mktemp("prepared"))
    prepare(world.cache, Progress(io.StringIO()), outside=world.outside)
    world.close()
    return world.cache


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A machine with nothing on it, and no process left when the test is over."""
    world = World(tmp_path)
    yield world
    world.wait_until_all_are_gone()
    world.close()
