"""The watchdog on virtual time: it is fed while everything goes round, and starves when one part does not."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sluicegate.admit.admission import Admission
from sluicegate.config.schema import AdmissionConfig
from sluicegate.engines.engine import Engines
from sluicegate.service.watchdog import feed
from tests.unit.engines.watched import make_engine
from tests.unit.observe.captured import Captured
from tests.unit.relay.flows import PATIENCE_S, beat, freeze, open_pump, until

WITHIN_S = 10.0


class Watched:
    """A fed watchdog. `signs` are the times at which it was fed."""

    def __init__(self) -> None:
        self.signs: list[float] = []
        self.log = Captured("json")

    def alive(self) -> None:
        self.signs.append(trio.current_time())

    @property
    def wedged(self) -> list[object]:
        """What the log says of it since the last look."""
        return [line["detail"] for line in self.log.objects() if line["event"] == "wedged"]


@asynccontextmanager
async def watched(**parts: Callable[[], Awaitable[None]]) -> AsyncIterator[Watched]:
    made = Watched()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed, made.alive, WITHIN_S, parts, made.log.log)
        await wait_all_tasks_blocked()
        yield made
        nursery.cancel_scope.cancel()
    made.log.close()


class Part:
    """One that proves itself while it is not `frozen`."""

    def __init__(self) -> None:
        self.thawed = trio.Event()
        self.thawed.set()
        self.asked = 0

    def freeze(self) -> None:
        self.thawed = trio.Event()

    async def prove(self) -> None:
        self.asked += 1
        await self.thawed.wait()


async def test_fed_at_once_and_twice_per_interval(autojump_clock: MockClock) -> None:
    """The watchdog is fed at once, and then at least twice in the time allowed."""
    async with watched(pump=Part().prove) as it:
        assert len(it.signs) == 1
        await trio.sleep(100 * WITHIN_S)
        assert all(late - early <= WITHIN_S / 2 for early, late in zip(it.signs, it.signs[1:], strict=False))
        assert 200 <= len(it.signs) <= 300, "neither too few nor busy work"
        assert it.wedged == []


async def test_each_part_must_prove_itself_each_time(autojump_clock: MockClock) -> None:
    parts = [Part(), Part()]
    async with watched(pump=parts[0].prove, controller=parts[1].prove) as it:
        await trio.sleep(10 * WITHIN_S)
        assert len(it.signs) >= 20
        assert [part.asked for part in parts] == [len(it.signs)] * 2


async def test_a_frozen_part_starves_it_and_is_named_once(autojump_clock: MockClock) -> None:
    pump, controller = Part(), Part()
    async with watched(pump=pump.prove, controller=controller.prove) as it:
        controller.freeze()
        await trio.sleep(WITHIN_S)
        fed = len(it.signs)
        await trio.sleep(100 * WITHIN_S)
        assert len(it.signs) == fed
        assert it.wedged == ["controller: no progress, so systemd gets no sign until there is some"]
        assert controller.asked == fed + 1, "it is not asked again while it owes an answer"
        controller.thawed.set()
        await trio.sleep(WITHIN_S)
        assert len(it.signs) > fed
        pump.freeze()
        controller.freeze()
        await trio.sleep(2 * WITHIN_S)
        assert it.wedged == ["pump and controller: no progress, so systemd gets no sign until there is some"]


async def test_named_before_systemds_timeout(autojump_clock: MockClock) -> None:
    part = Part()
    async with watched(pump=part.prove) as it:
        part.freeze()
        await trio.sleep_until(it.signs[-1] + 0.9 * WITHIN_S)
        assert len(it.wedged) == 1


async def test_a_controller_that_does_not_run_starves_it(autojump_clock: MockClock) -> None:
    admission = Admission(AdmissionConfig(), Engines([make_engine()]))
    async with watched(controller=admission.prove) as it, trio.open_nursery() as nursery:
        await trio.sleep(10 * WITHIN_S)
        assert it.signs == []
        nursery.start_soon(admission.run)
        await trio.sleep(WITHIN_S)
        assert it.signs
        nursery.cancel_scope.cancel()


async def test_event_loop_that_stood_still_is_reported(mock_clock: MockClock) -> None:
    """An event loop that stood still is reported when it goes on."""
    async with watched() as it:
        mock_clock.jump(WITHIN_S * 3)
        await wait_all_tasks_blocked()
        assert it.wedged == ["the event loop stood still"]
        mock_clock.jump(WITHIN_S / 2)
        await wait_all_tasks_blocked()
        assert it.wedged == []


async def test_a_pump_whose_thread_stands_still_starves_it() -> None:
    """In real time, which the thread's is."""
    async with open_pump() as flows:
        signs = 0
        news = trio.lowlevel.ParkingLot()

        def alive() -> None:
            nonlocal signs
            signs += 1
            news.unpark_all()

        async with trio.open_nursery() as nursery:
            log = Captured("json")
            nursery.start_soon(feed, alive, 0.1, {"the pump": flows.pump.prove}, log.log)
            with trio.fail_after(PATIENCE_S):
                while signs < 3:
                    await news.park()
                thaw = freeze(flows.pump)
                await until(lambda: bool(flows.pump._orders))
            before = signs
            await beat(0.3)
            assert signs == before
            thaw.set()
            with trio.fail_after(PATIENCE_S):
                while signs < before + 2:
                    await news.park()
            nursery.cancel_scope.cancel()
        (line,) = log.objects()
        assert line["detail"] == "the pump: no progress, so systemd gets no sign until there is some"
        log.close()
