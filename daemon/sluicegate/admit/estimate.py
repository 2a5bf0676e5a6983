"""How long a queued request waits, as far as is known; and what an arrival that gets no slot is told. Pure."""

import enum
import math
from dataclasses import dataclass

from ..config.schema import QueueMode

#: Longest Retry-After that the gateway claims to know (seconds). No client waits longer than an hour.
RETRY_AFTER_MAX_S = 3600

#: Weight of the newest slot time in the running mean: the last ~20 requests decide, so that a change of the traffic's
#: shape shows after tens of requests, and one outlier does not.
SLOT_TIME_WEIGHT = 0.1


class Verdict(enum.Enum):
    """What an arrival is told that gets no slot at once."""

    QUEUE = enum.auto()
    BUSY = enum.auto()
    QUEUE_FULL = enum.auto()
    HOPELESS = enum.auto()
    DRAINING = enum.auto()


@dataclass(frozen=True, slots=True)
class View:
    """All that a verdict depends on.

    `slots`: of all engines, free or not. `queued`: requests in the queue or on their way there. `ahead`: those of
    them that are served before the arrival. `slot_time_s`: running mean of the time that a request holds a slot, in
    seconds, or None before the first one ended.
    """

    slots: int
    queued: int
    ahead: int
    queue_max: int
    queue_timeout_s: float
    mode: QueueMode
    draining: bool
    slot_time_s: float | None


def decide(view: View) -> Verdict:
    """The verdict on a request that arrives now and that no engine has a slot for."""
    if view.draining:
        return Verdict.DRAINING
    if view.mode is QueueMode.REJECT:
        return Verdict.BUSY
    if view.queued >= view.queue_max:
        return Verdict.QUEUE_FULL
    if expected_wait_s(view) > view.queue_timeout_s:
        return Verdict.HOPELESS
    return Verdict.QUEUE


def expected_wait_s(view: View) -> float:
    """Seconds until a slot is free for the arrival: (requests ahead of it + 1) / completion rate.

    With all slots busy the engines complete slots / slot_time_s requests a second. Measuring the time that a slot
    is held, instead of completions by the wall clock, keeps the estimate true after a pause without traffic.
    0.0 while nothing has been measured: an unknown wait refuses nobody.
    """
    if view.slot_time_s is None:
        return 0.0
    return (view.ahead + 1) * view.slot_time_s / view.slots


def retry_after_s(view: View) -> int:
    """Whole seconds, 1 to RETRY_AFTER_MAX_S, after which a request that is refused now may get a slot."""
    return max(1, min(RETRY_AFTER_MAX_S, math.ceil(expected_wait_s(view))))


def mean_slot_time_s(mean_s: float | None, newest_s: float) -> float:
    """The running mean of slot times (seconds) with one more measurement in it."""
    return newest_s if mean_s is None else mean_s + SLOT_TIME_WEIGHT * (newest_s - mean_s)
