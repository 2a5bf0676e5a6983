"""Verdicts on arrivals that get no slot, and the arithmetic of Retry-After."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluicegate.admit.estimate import (
    RETRY_AFTER_MAX_S,
    Verdict,
    View,
    decide,
    expected_wait_s,
    mean_slot_time_s,
    retry_after_s,
)
from sluicegate.config.schema import QueueMode

#: Two slots, both busy; room for three in the queue.
BUSY = View(
    slots=2,
    queued=0,
    ahead=0,
    queue_max=3,
    queue_timeout_s=60.0,
    mode=QueueMode.QUEUE,
    draining=False,
    slot_time_s=None,
)


def but(**changes: object) -> View:
    return dataclasses.replace(BUSY, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("view", "verdict"),
    [
        (but(), Verdict.QUEUE),
        (but(queued=2, ahead=2), Verdict.QUEUE),
        (but(queued=3), Verdict.QUEUE_FULL),
        (but(queue_max=0), Verdict.QUEUE_FULL),
        (but(mode=QueueMode.REJECT), Verdict.BUSY),
        (but(mode=QueueMode.REJECT, queued=3), Verdict.BUSY),
        (but(draining=True), Verdict.DRAINING),
        (but(draining=True, mode=QueueMode.REJECT), Verdict.DRAINING),
    ],
)
def test_the_table_of_verdicts(view: View, verdict: Verdict) -> None:
    assert decide(view) is verdict


def test_a_wait_beyond_the_timeout_is_hopeless() -> None:
    # The third in the queue waits for three completions at 2 per 40 s.
    assert expected_wait_s(but(ahead=2, slot_time_s=40.0)) == 60.0
    assert decide(but(ahead=2, slot_time_s=40.0)) is Verdict.QUEUE
    assert decide(but(ahead=2, slot_time_s=40.1)) is Verdict.HOPELESS


def test_wait_depends_on_the_requests_ahead() -> None:
    """The expected wait counts the requests ahead, not all that are queued."""
    assert expected_wait_s(but(queued=99, ahead=1, slot_time_s=10.0)) == 10.0


def test_full_queue_comes_before_a_long_wait() -> None:
    """A full queue is reported as full even if the wait would be too long as well."""
    assert decide(but(queued=3, ahead=3, slot_time_s=1e6)) is Verdict.QUEUE_FULL


def test_no_refusal_without_a_measurement() -> None:
    """As long as nothing was measured, no request is refused for its expected wait."""
    assert expected_wait_s(but(ahead=2)) == 0.0
    assert retry_after_s(but(ahead=2)) == 1


@pytest.mark.parametrize(
    ("ahead", "slot_time_s", "seconds"),
    [(0, 0.001, 1), (0, 2.0, 1), (0, 2.1, 2), (3, 5.0, 10), (99, 1e9, RETRY_AFTER_MAX_S)],
)
def test_retry_after_is_position_over_rate(ahead: int, slot_time_s: float, seconds: int) -> None:
    """Retry-After is the position in the queue over the rate of completions."""
    assert retry_after_s(but(ahead=ahead, slot_time_s=slot_time_s)) == seconds


@given(
    slots=st.integers(1, 5),
    queued=st.integers(0, 5),
    ahead=st.integers(0, 5),
    queue_max=st.integers(0, 5),
    queue_timeout_s=st.floats(0.01, 86400),
    mode=st.sampled_from(QueueMode),
    draining=st.booleans(),
    slot_time_s=st.none() | st.floats(0, 1e9),
)
def test_bounds_hold_after_any_verdict(**values: object) -> None:
    """Whatever the view, the verdict and Retry-After keep within their bounds."""
    view = View(**values)  # type: ignore[arg-type]
    verdict = decide(view)
    assert (verdict is Verdict.DRAINING) is view.draining
    if verdict is Verdict.QUEUE:
        assert view.queued < view.queue_max
        assert view.mode is QueueMode.QUEUE
        assert expected_wait_s(view) <= view.queue_timeout_s
    if verdict is Verdict.BUSY:
        assert view.mode is QueueMode.REJECT
    assert 1 <= retry_after_s(view) <= RETRY_AFTER_MAX_S


def test_mean_slot_time() -> None:
    """The first measurement is the mean; each later one moves it a tenth of the way."""
    assert mean_slot_time_s(None, 7.0) == 7.0
    assert mean_slot_time_s(10.0, 20.0) == pytest.approx(11.0)
    assert mean_slot_time_s(10.0, 0.0) == pytest.approx(9.0)


def test_mean_follows_new_traffic_slowly() -> None:
    """After a change of the traffic, the mean follows within tens of requests."""
    mean: float | None = 1.0
    for _ in range(22):
        mean = mean_slot_time_s(mean, 10.0)
    assert mean == pytest.approx(10.0, rel=0.1)
