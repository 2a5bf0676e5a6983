"""What is known of engines, alone and together."""

import pytest
import trio
from trio.testing import MockClock

from sluicegate.engines.engine import FIRST_PROBE_S, Engine, Engines, EngineState
from sluicegate.outcome import Outcome, Refusal
from tests.unit.engines.watched import make_engine


def test_starting_until_it_was_ready_once() -> None:
    engine = make_engine()
    assert (engine.state, engine.up) == (EngineState.STARTING, False)
    assert (engine.models, engine.models_body) == ((), b"")
    engine.unreachable("nothing listens")
    assert (engine.state, engine.why) == (EngineState.STARTING, "nothing listens")
    engine.ready(("m",), b"{}")
    assert (engine.state, engine.why, engine.up) == (EngineState.UP, "", True)
    engine.unreachable("nothing listens")
    assert engine.state is EngineState.DOWN


def test_healthy_without_a_model_is_not_up() -> None:
    engine = make_engine()
    engine.ready((), b"{}")
    assert (engine.state, engine.why) == (EngineState.DEGRADED, "the engine has no model loaded")
    engine.unreachable("nothing listens")
    assert engine.state is EngineState.STARTING, "it was never ready"


def test_unhealthy_is_degraded_and_recovers() -> None:
    engine = make_engine("a", "m")
    engine.unhealthy("/health answers 503")
    assert (engine.state, engine.why) == (EngineState.DEGRADED, "/health answers 503")
    engine.ready(("m",), b"{}")
    assert engine.up


def test_failed_takes_it_out_and_wakes_its_prober() -> None:
    engine = make_engine("a", "m")
    woken = []
    engine.wake_prober = lambda: woken.append(engine.state)
    engine.failed("refused")
    assert woken == [EngineState.DOWN]
    assert engine.why == "refused"


def test_changed_is_called_once_for_each_change_of_state() -> None:
    told = []
    engine = make_engine(changed=lambda changed: told.append(changed.state))
    engine.unreachable("still starting")
    engine.ready(("m",), b"{}")
    engine.ready(("m", "n"), b"{}")
    engine.unreachable("gone")
    engine.unreachable("gone for another reason")
    assert told == [EngineState.UP, EngineState.DOWN]
    assert engine.why == "gone for another reason"


@pytest.mark.parametrize("how", ["ready", "unhealthy", "unreachable"])
async def test_probed_after_a_first_probe_of_any_result(how: str) -> None:
    engine = make_engine()
    before = engine.probed
    if how == "ready":
        engine.ready(("m",), b"{}")
    else:
        getattr(engine, how)("why")
    assert (before, engine.probed) == (False, True)
    await engine.first_probe()


def test_repr() -> None:
    assert repr(make_engine("a", "m")) == "<Engine a ok models=['m'] >"


def test_other_engine() -> None:
    """other() is the first engine that is up, serves the model and was not tried."""
    down, first, second = make_engine("down"), make_engine("first", "m"), make_engine("second", "m", "n")
    engines = Engines([down, first, second])
    assert engines.first("m") is first
    assert engines.first("n") is second
    assert engines.first("unknown") is first
    assert engines.other("m", {first}) is second
    assert engines.other("m", {first, second}) is None


def test_first_is_the_default_while_none_is_up() -> None:
    default, other = make_engine("a"), make_engine("b")
    assert Engines([default, other]).first("m") is default


def test_check_refuses_with_the_reason_while_none_is_up() -> None:
    only = make_engine()
    only.unhealthy("/health answers 503", "127.0.0.1:1: /health answers 503")
    with pytest.raises(Refusal) as caught:
        Engines([only]).check()
    refusal = caught.value
    assert (refusal.outcome, refusal.status, refusal.retry_after_s) == (Outcome.ENGINE_UNAVAILABLE, 503, 5)
    assert refusal.message == "No engine can take requests now: /health answers 503. Retry in a few seconds."
    assert refusal.detail == "No engine can take requests now: 127.0.0.1:1: /health answers 503."


def test_one_that_is_up_is_enough() -> None:
    down, up, other = make_engine("down"), make_engine("up", "m", "n"), make_engine("other", "n", "o")
    engines = Engines([down, up, other])
    engines.check()
    assert engines.state is EngineState.UP
    assert engines.why == "it has not answered a probe yet"
    assert engines.models == ("m", "n", "o")
    assert engines.models_body == b"models of up"


def test_with_none_up_the_default_speaks_for_all() -> None:
    first, second = make_engine("first", "m"), make_engine("second")
    first.unreachable("gone")
    engines = Engines([first, second])
    assert (engines.state, engines.why, engines.detail) == (EngineState.DOWN, "gone", "gone")
    assert (engines.models, engines.models_body) == ((), b"")


def test_with_all_up_there_is_no_why() -> None:
    engines = Engines([make_engine("a", "m")])
    assert (engines.why, engines.detail) == ("", "")


async def wait_for(engines: Engines) -> float:
    """Seconds until `engines.probed()` returns."""
    began = trio.current_time()
    await engines.probed()
    return trio.current_time() - began


async def ready_after(engine: Engine, seconds: float) -> None:
    await trio.sleep(seconds)
    engine.ready(("m",), b"{}")


async def test_probed_waits_for_the_first_probe(autojump_clock: MockClock) -> None:
    """probed() waits for the first probe and never again."""
    engine = make_engine()
    engines = Engines([engine])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ready_after, engine, 1.0)
        assert await wait_for(engines) == pytest.approx(1.0)
    engine.unreachable("gone")
    assert await wait_for(engines) == 0.0


async def test_probed_is_bounded_where_no_probe_ends(autojump_clock: MockClock) -> None:
    assert await wait_for(Engines([make_engine()])) == pytest.approx(FIRST_PROBE_S)


async def test_probed_returns_as_soon_as_one_engine_is_up(autojump_clock: MockClock) -> None:
    assert await wait_for(Engines([make_engine("a", "m"), make_engine("b")])) == 0.0
