"""The decisions of admission: pure functions over plain data, so that any schedule can be replayed against them."""

import enum
import math
from dataclasses import dataclass

from ..config.schema import QueueMode

#: Longest Retry-After that we claim to know. A client told to wait longer than an hour will not.
RETRY_AFTER_MAX_S = 3600

#: Weight of the newest slot time in the running mean: the last ~20 requests decide, so that a change of the
#: traffic's shape is believed after tens of requests, and one outlier is not.
SLOT_TIME_WEIGHT = 0.1


class Verdict(enum.Enum):
    """What the door says to an arrival."""

    GO = enum.auto()
    WAIT = enum.auto()
    BUSY = enum.auto()
    QUEUE_FULL = enum.auto()
    HOPELESS = enum.auto()
    DRAINING = enum.auto()


@dataclass(frozen=True, slots=True)
class View:
    """All that a decision depends on.

    `active`: slots held. `waiting`: requests that wait, in whatever place. `slot_time_s`: running mean of the time
    that a request holds a slot, in seconds, or None before the first one ended.
    """

    active: int
    max_active: int
    waiting: int
    queue_max: int
    queue_timeout_s: float
    mode: QueueMode
    draining: bool
    slot_time_s: float | None


def decide(view: View) -> Verdict:
    """What to do with a request that arrives now. Nobody overtakes those who wait."""
    if view.draining:
        return Verdict.DRAINING
    if view.waiting == 0 and view.active < view.max_active:
        return Verdict.GO
    if view.mode is QueueMode.REJECT:
        return Verdict.BUSY
    if view.waiting >= view.queue_max:
        return Verdict.QUEUE_FULL
    if expected_wait_s(view) > view.queue_timeout_s:
        return Verdict.HOPELESS
    return Verdict.WAIT


def expected_wait_s(view: View) -> float:
    """Seconds until a slot is free for one who joins the line now: (position + 1) / completion rate.

    With all slots busy the engine completes max_active / slot_time_s requests a second. Measuring the time that a slot
    is held, instead of completions by the wall clock, keeps the estimate true after a pause without traffic.
    0.0 while nothing has been measured: an unknown wait turns nobody away.
    """
    if view.slot_time_s is None:
        return 0.0
    return (view.waiting + 1) * view.slot_time_s / view.max_active


def retry_after_s(view: View) -> int:
    """Whole seconds, 1 to RETRY_AFTER_MAX_S, after which one who is turned away now may find room."""
    return max(1, min(RETRY_AFTER_MAX_S, math.ceil(expected_wait_s(view))))


def mean_slot_time_s(mean_s: float | None, newest_s: float) -> float:
    """The running mean of slot times (seconds) with one more measurement in it."""
    return newest_s if mean_s is None else mean_s + SLOT_TIME_WEIGHT * (newest_s - mean_s)
