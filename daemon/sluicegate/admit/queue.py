"""The line of those who wait. First come, first served; a fairer order has only to replace this class."""

from .ticket import Ticket


class Line:
    """An ordered set of tickets; every operation is O(1). Written by the Admission alone."""

    def __init__(self) -> None:
        self._tickets: dict[Ticket, None] = {}

    def push(self, ticket: Ticket) -> None:
        self._tickets[ticket] = None

    def pop(self) -> Ticket:
        """Take out whose turn it is. IndexError if nobody waits."""
        for ticket in self._tickets:
            del self._tickets[ticket]
            return ticket
        raise IndexError("the line is empty")

    def discard(self, ticket: Ticket) -> None:
        self._tickets.pop(ticket, None)

    def __len__(self) -> int:
        return len(self._tickets)

    def __repr__(self) -> str:
        return f"<Line of {len(self)}>"
