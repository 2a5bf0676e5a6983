"""What tests in several folders share: the real engine, started by the first test that asks for it."""

import contextlib
import os
import sys
from collections.abc import Iterator

import pytest

from sluicegate.shortage import raise_descriptors
from sluicegate_run.cache import default_cache
from sluicegate_run.prepare import EnginePaths, prepare
from sluicegate_run.progress import Progress
from tests.engine.real import RealEngine

raise_descriptors()  # as the daemon does: many tests have clients, gateway and engine in this one process


@pytest.fixture(scope="session")
def engine_paths(pytestconfig: pytest.Config) -> EnginePaths:
    """The prepared engine; on a fresh machine this takes minutes, which are shown."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        return prepare(default_cache(os.environ), Progress(sys.stderr), cpu=True)


@pytest.fixture(scope="session")
def shared_engine(engine_paths: EnginePaths, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngine]:
    """The one engine of the session, started by the first test that needs it."""
    engine = RealEngine(engine_paths, tmp_path_factory.mktemp("engine") / "engine.log")
    yield engine
    engine.stop()


@pytest.fixture
def real_engine(shared_engine: RealEngine) -> RealEngine:
    """vLLM on the CPU, ready: one process for the whole session. The first test waits for it, about a minute."""
    shared_engine.ensure_running()
    return shared_engine
