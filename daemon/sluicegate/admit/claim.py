"""What admission is asked for, and the ticket that it gives out. A ticket settles exactly once."""

import enum
from typing import NamedTuple

import trio

from ..engines.engine import Engine


class Claim(NamedTuple):
    """What a request asks of admission, and all that its place in the queue may depend on.

    `identity`: who asks. `priority`: the name of its class. `model`: as the engine knows it, "" for another one.
    `prompt_tokens`: an estimate, 0 for unknown. `deadline`: on trio's clock, when it stops waiting; inf: after the
    queue timeout. `prefix_key`: requests that share it share a prompt's beginning; empty: none.

    All but the model are constant until the feature comes that fills them in.
    """

    identity: str = "anonymous"
    priority: str = "standard"
    model: str = ""
    prompt_tokens: int = 0
    deadline: float = float("inf")
    prefix_key: bytes = b""


#: A claim of which nothing is known.
ANYONE = Claim()


class TicketState(enum.Enum):
    QUEUED = enum.auto()
    ACTIVE = enum.auto()
    SHED = enum.auto()
    SETTLED = enum.auto()


class Ticket:
    """One claim on its way. A slot of its engine's CapacityLimiter is borrowed on behalf of it.

    Only the Admission that issued it changes it. `arrived_at` and `granted_at` are on trio's clock, in seconds;
    `position` is how many were before it in the queue when it arrived; `engine` is the one whose slot it holds.
    `decided` is set when the wait is over, either way; None if it never waited.
    """

    __slots__ = ("arrived_at", "claim", "decided", "engine", "granted_at", "position", "state")

    def __init__(self, claim: Claim, arrived_at: float, position: int) -> None:
        self.claim = claim
        self.arrived_at = arrived_at
        self.position = position
        self.engine: Engine | None = None
        self.granted_at: float | None = None
        self.state = TicketState.QUEUED
        self.decided: trio.Event | None = None

    @property
    def queued(self) -> bool:
        return self.state is TicketState.QUEUED

    @property
    def active(self) -> bool:
        return self.state is TicketState.ACTIVE

    def __repr__(self) -> str:
        return f"<Ticket {self.state.name.lower()} arrived={self.arrived_at:.3f} granted={self.granted_at}>"
