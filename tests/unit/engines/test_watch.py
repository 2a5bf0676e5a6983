"""The watch over an engine, on virtual time: its intervals, its timeouts, and how it is woken."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sluicegate.engines.engine import EngineState
from sluicegate.engines.probe import (
    NOT_READY_INTERVAL_S,
    PROBE_TIMEOUTS_MAX,
    ProbeImpossible,
    ProbeRefused,
    ProbeTimeout,
    ProbeUnhealthy,
    watch,
)
from tests.unit.engines.watched import INTERVAL_S, ScriptedProbe, make_engine, open_watch


async def test_a_ready_engine_is_probed_at_the_set_pace(mock_clock: MockClock) -> None:
    async with open_watch(mock_clock) as watched:
        assert watched.engine.up
        assert (watched.engine.models, watched.engine.models_body) == (("m",), b"models")
        assert await watched.asked_after(INTERVAL_S - 0.1) == 1
        assert await watched.asked_after(0.1) == 2


async def test_one_that_is_not_ready_is_probed_faster(mock_clock: MockClock) -> None:
    async with open_watch(mock_clock, ProbeRefused) as watched:
        assert await watched.asked_after(NOT_READY_INTERVAL_S) == 2
        assert await watched.asked_after(NOT_READY_INTERVAL_S) == 3
        watched.probe.fails_with = None
        assert await watched.asked_after(NOT_READY_INTERVAL_S) == 4
        assert watched.engine.up
        assert await watched.asked_after(NOT_READY_INTERVAL_S) == 4


async def test_a_pace_that_is_faster_still_holds_for_both(mock_clock: MockClock) -> None:
    probe = ScriptedProbe()
    probe.fails_with = ProbeTimeout
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, make_engine(), probe, lambda: 0.1)
        await wait_all_tasks_blocked()
        mock_clock.jump(0.1)
        await wait_all_tasks_blocked()
        assert probe.asked == 2
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("failure", "state", "why"),
    [
        (ProbeRefused("nobody listens"), EngineState.DOWN, "cannot be reached (nobody listens)"),
        (ProbeUnhealthy("/health answers 503"), EngineState.DEGRADED, "is unhealthy: /health answers 503"),
    ],
    ids=["refused", "unhealthy"],
)
async def test_all_but_silence_counts_at_once(
    mock_clock: MockClock, failure: Exception, state: EngineState, why: str
) -> None:
    async with open_watch(mock_clock) as watched:
        watched.probe.fails_with = lambda: failure
        await watched.asked_after(INTERVAL_S)
        assert watched.engine.state is state
        assert watched.engine.why == f"the engine {why.partition(' (')[0]}"
        assert watched.engine.detail == f"the engine at 127.0.0.1:1 {why}"


async def test_our_own_shortage_says_nothing(mock_clock: MockClock) -> None:
    async with open_watch(mock_clock) as watched:
        watched.probe.fails_with = lambda: ProbeImpossible("the gateway has no file descriptors left")
        for rank in range(2 * PROBE_TIMEOUTS_MAX):
            assert await watched.asked_after(INTERVAL_S) == rank + 2
            assert watched.engine.up


async def test_our_own_shortage_at_the_start(mock_clock: MockClock) -> None:
    """It cannot be called up, and requests are told why; nothing waits for the first probe any longer."""
    made = lambda: ProbeImpossible("the gateway has no memory left")  # noqa: E731
    async with open_watch(mock_clock, made) as watched:
        assert watched.engine.probed
        assert watched.engine.state is EngineState.STARTING
        assert watched.engine.why == "the engine cannot be asked (the gateway has no memory left)"


async def test_a_ready_engine_may_be_silent_for_a_while(mock_clock: MockClock) -> None:
    async with open_watch(mock_clock) as watched:
        watched.probe.fails_with = ProbeTimeout
        for _ in range(PROBE_TIMEOUTS_MAX - 1):
            await watched.asked_after(INTERVAL_S)
            assert watched.engine.up
        await watched.asked_after(INTERVAL_S)
        assert watched.engine.state is EngineState.DOWN
        assert watched.engine.why == "the engine does not answer"
        assert watched.engine.detail == "the engine at 127.0.0.1:1 does not answer"


async def test_only_timeouts_in_a_row_count(mock_clock: MockClock) -> None:
    async with open_watch(mock_clock) as watched:
        for _ in range(PROBE_TIMEOUTS_MAX):
            watched.probe.fails_with = ProbeTimeout
            await watched.asked_after(INTERVAL_S)
            assert watched.engine.up
            watched.probe.fails_with = None
            await watched.asked_after(INTERVAL_S)


@pytest.mark.parametrize("before", [ProbeRefused, lambda: ProbeUnhealthy("/health answers 503")])
async def test_silence_counts_at_once_if_not_ready(mock_clock: MockClock, before: type[Exception]) -> None:
    """One timeout is enough for an engine that was not ready."""
    async with open_watch(mock_clock, before) as watched:
        watched.probe.fails_with = ProbeTimeout
        await watched.asked_after(NOT_READY_INTERVAL_S)
        assert watched.engine.state is EngineState.STARTING
        assert watched.engine.why == "the engine does not answer"
        assert watched.engine.detail == "the engine at 127.0.0.1:1 does not answer"


async def test_a_failed_request_has_it_probed_at_once(mock_clock: MockClock) -> None:
    async with open_watch(mock_clock) as watched:
        watched.engine.failed("refused")
        assert watched.engine.state is EngineState.DOWN
        assert await watched.asked_after(0) == 2
        assert watched.engine.up


async def test_wake_prober_keeps_the_engine_up(mock_clock: MockClock) -> None:
    """A caller may have the engine probed without taking it down."""
    async with open_watch(mock_clock) as watched:
        watched.engine.wake_prober()
        assert watched.engine.up
        assert await watched.asked_after(0) == 2
        assert await watched.asked_after(INTERVAL_S - 0.1) == 2
        assert await watched.asked_after(0.1) == 3


async def test_failure_during_a_probe_holds(mock_clock: MockClock) -> None:
    """A failure during a probe is not overruled by the probe's answer."""
    async with open_watch(mock_clock) as watched:
        watched.probe.hold = trio.Event()
        assert await watched.asked_after(INTERVAL_S) == 2
        watched.probe.fails_with = ProbeRefused  # but the engine had answered the probe under way before it went
        watched.engine.failed("refused")
        watched.probe.hold.set()
        assert await watched.asked_after(0) == 3
        assert watched.engine.state is EngineState.DOWN
