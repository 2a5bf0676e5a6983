"""The queue and its order. No other file knows the order: a fairer one replaces this class alone."""

from collections.abc import Iterator

from .claim import Claim, Ticket


class Queue:
    """Queued tickets, first come, first served. Every operation is O(1). Written by the Admission alone."""

    def __init__(self) -> None:
        self._tickets: dict[Ticket, None] = {}

    def push(self, ticket: Ticket) -> None:
        self._tickets[ticket] = None

    def discard(self, ticket: Ticket) -> None:
        """Take it out, if it is in the queue."""
        self._tickets.pop(ticket, None)

    def ahead(self, _claim: Claim) -> int:
        """How many tickets are served before this claim, if it joins now."""
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        """The tickets in the order in which they are served. The queue must not change meanwhile."""
        return iter(self._tickets)

    def __len__(self) -> int:
        return len(self._tickets)

    def __repr__(self) -> str:
        return f"<Queue of {len(self)}>"
