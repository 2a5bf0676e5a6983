"""Requests that get no slot: the one table of their cases.

`unit/admit` runs it against the admission alone, `simulation/` against the gateway on virtual time, and `wire/` over
sockets, on every way in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sluicegate.config.schema import QueueMode
from sluicegate.outcome import Outcome


@dataclass(frozen=True)
class ShedCase:
    """A gateway with one slot and these settings, to which `before` requests have come: the next one is shed.

    It is told so after `after_s` seconds. Nothing has been measured yet, so that Retry-After is its least, 1 s.
    """

    settings: Mapping[str, Any]
    before: int
    outcome: Outcome
    status: int
    message: str
    after_s: float = 0.0

    @property
    def answer(self) -> tuple[Outcome, int, str]:
        return self.outcome, self.status, self.message


SHED = {
    "reject mode": ShedCase(
        {"queue_mode": QueueMode.REJECT}, 1, Outcome.SHED_BUSY, 429, "The only slot is busy. Retry after 1 s."
    ),
    "queue full": ShedCase(
        {"queue_max": 1},
        2,
        Outcome.SHED_QUEUE_FULL,
        429,
        "The only slot is busy and the queue is full (1 request). Retry after 1 s.",
    ),
    "no queue": ShedCase(
        {"queue_max": 0},
        1,
        Outcome.SHED_QUEUE_FULL,
        429,
        "The only slot is busy and there is no queue. Retry after 1 s.",
    ),
    "queue timeout": ShedCase(
        {"queue_timeout_s": 0.25},
        1,
        Outcome.SHED_QUEUE_TIMEOUT,
        503,
        "No slot became free within 0.25 s. Retry after 1 s.",
        after_s=0.25,
    ),
}
