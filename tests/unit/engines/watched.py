"""An engine under watch, whose probe is scripted and whose time passes when the test says so."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sluicegate.config.schema import TcpAddress
from sluicegate.engines.engine import Engine
from sluicegate.engines.probe import watch
from sluicegate.relay.pool import Pool
from sluicegate.relay.wire import Wire

INTERVAL_S = 10.0
READY = (("m",), b"models")


async def nobody_listens() -> Wire:
    raise ConnectionRefusedError


def make_engine(
    name: str = "engine", *models: str, slots: int = 1, changed: Callable[[Engine], None] = lambda _: None
) -> Engine:
    """An engine to which no connection can be made; up if it has models."""
    address = TcpAddress("127.0.0.1", 1)
    engine = Engine(name, address, Pool(nobody_listens), trio.CapacityLimiter(slots), changed)
    if models:
        engine.ready(models, f"models of {name}".encode())
    return engine


class ScriptedProbe:
    """Raises what `fails_with` makes, or says that the engine is ready; whatever it is, it comes when `hold` is set."""

    def __init__(self) -> None:
        self.fails_with: Callable[[], Exception] | None = None
        self.hold = trio.Event()
        self.hold.set()
        self.asked = 0

    async def __call__(self) -> tuple[tuple[str, ...], bytes]:
        self.asked += 1
        failure = self.fails_with
        await self.hold.wait()
        if failure is not None:
            raise failure()
        return READY


class Watched:
    """What a test of the watch looks at."""

    def __init__(self, clock: MockClock) -> None:
        self.clock = clock
        self.engine = make_engine("engine")
        self.probe = ScriptedProbe()

    async def asked_after(self, seconds: float) -> int:
        """Let time pass; how many probes there have been by then."""
        self.clock.jump(seconds)
        await wait_all_tasks_blocked()
        return self.probe.asked


@asynccontextmanager
async def open_watch(clock: MockClock, fails_with: Callable[[], Exception] | None = None) -> AsyncIterator[Watched]:
    """An engine whose first probe has ended."""
    watched = Watched(clock)
    watched.probe.fails_with = fails_with
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, watched.engine, watched.probe, lambda: INTERVAL_S)
        await wait_all_tasks_blocked()
        yield watched
        nursery.cancel_scope.cancel()
