"""A ticket: one request's claim on a slot. It settles exactly once."""

import enum

import trio


class TicketState(enum.Enum):
    WAITING = enum.auto()
    ACTIVE = enum.auto()
    SHED = enum.auto()
    SETTLED = enum.auto()


class Ticket:
    """Identity under which a slot of the CapacityLimiter is borrowed.

    Only the Admission that issued it changes it. `arrived_at` and `granted_at` are on trio's clock, in seconds;
    `position` is how many waited before it when it arrived. `called` is set when the wait is over, either way.
    """

    __slots__ = ("arrived_at", "called", "granted_at", "position", "state")

    def __init__(self, arrived_at: float, position: int) -> None:
        self.arrived_at = arrived_at
        self.granted_at: float | None = None
        self.position = position
        self.state = TicketState.WAITING
        self.called: trio.Event | None = None

    @property
    def waiting(self) -> bool:
        return self.state is TicketState.WAITING

    @property
    def active(self) -> bool:
        return self.state is TicketState.ACTIVE

    def __repr__(self) -> str:
        return f"<Ticket {self.state.name.lower()} arrived={self.arrived_at:.3f} granted={self.granted_at}>"
