"""What is known of engines, and the choice of one."""

import pytest

from sluicegate.config.schema import TcpAddress
from sluicegate.engines.engine import Backend, Backends, EngineState
from sluicegate.outcome import Outcome, Refusal

ADDRESS = TcpAddress("127.0.0.1", 1)


def backend(name: str = "a", *models: str) -> Backend:
    """A backend that is up if it has models."""
    made = Backend(name, ADDRESS)
    if models:
        made.ready(models, f"models of {name}".encode())
    return made


def test_it_is_starting_until_it_was_ready_once() -> None:
    fresh = backend()
    assert (fresh.state, fresh.up) == (EngineState.STARTING, False)
    fresh.unreachable("nobody listens")
    assert (fresh.state, fresh.why) == (EngineState.STARTING, "nobody listens")
    fresh.ready(("m",), b"{}")
    assert (fresh.state, fresh.why, fresh.up) == (EngineState.UP, "", True)
    fresh.unreachable("nobody listens")
    assert fresh.state is EngineState.DOWN


def test_healthy_without_a_model_is_not_up() -> None:
    empty = backend()
    empty.ready((), b"{}")
    assert (empty.state, empty.why) == (EngineState.DEGRADED, "the engine has no model loaded")
    empty.unreachable("nobody listens")
    assert empty.state is EngineState.STARTING, "it was never ready"


def test_unwell_is_degraded_and_can_recover() -> None:
    engine = backend("a", "m")
    engine.unwell("/health answers 503")
    assert (engine.state, engine.why) == (EngineState.DEGRADED, "/health answers 503")
    engine.ready(("m",), b"{}")
    assert engine.up


def test_a_request_that_cannot_reach_it_takes_it_out_and_wakes_its_prober() -> None:
    engine = backend("a", "m")
    woken = []
    engine.wake_prober = lambda: woken.append(engine.state)
    engine.failed("refused")
    assert woken == [EngineState.DOWN]


def test_each_change_of_state_is_told_once() -> None:
    told = []
    engine = Backend("a", ADDRESS, lambda changed: told.append(changed.state))
    engine.unreachable("still starting")
    engine.ready(("m",), b"{}")
    engine.ready(("m", "n"), b"{}")
    engine.unreachable("gone")
    engine.unreachable("gone for another reason")
    assert told == [EngineState.UP, EngineState.DOWN]
    assert engine.why == "gone for another reason"


def test_it_shows_its_state() -> None:
    assert repr(backend("a", "m")) == "<Backend a ok models=['m'] >"


def test_the_first_that_is_up_and_untried_is_chosen() -> None:
    down, first, second = backend("down"), backend("first", "m"), backend("second", "m")
    backends = Backends([down, first, second])
    assert backends.choose() is first
    assert backends.choose({first}) is second
    with pytest.raises(Refusal):
        backends.choose({first, second})


def test_with_none_up_requests_are_refused_with_the_reason() -> None:
    only = backend()
    only.unwell("/health answers 503")
    with pytest.raises(Refusal) as caught:
        Backends([only]).choose()
    refusal = caught.value
    assert (refusal.outcome, refusal.status, refusal.retry_after_s) == (Outcome.ENGINE_UNAVAILABLE, 503, 5)
    assert "/health answers 503" in refusal.message


def test_one_that_is_up_is_enough() -> None:
    down, up, other = backend("down"), backend("up", "m", "n"), backend("other", "n", "o")
    backends = Backends([down, up, other])
    assert backends.state is EngineState.UP
    assert backends.why == "it has not answered a probe yet"
    assert backends.models == ("m", "n", "o")
    assert backends.models_body == b"models of up"


def test_with_none_up_there_are_no_models_and_the_first_ones_state_counts() -> None:
    first, second = backend("first", "m"), backend("second")
    first.unreachable("gone")
    backends = Backends([first, second])
    assert (backends.state, backends.why) == (EngineState.DOWN, "gone")
    assert (backends.models, backends.models_body) == ((), b"")


def test_with_all_up_there_is_no_why() -> None:
    assert Backends([backend("a", "m")]).why == ""
