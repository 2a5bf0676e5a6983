"""What accept/ hands requests to: the pipeline, as seen from here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from ..exchange import Client, Request


class Handler(Protocol):
    """Takes a request to its one outcome. Cancelled when the client leaves."""

    async def handle(self, request: Request, client: Client) -> None: ...


class Peer:
    """The client's connection, for tasks that work for a request on it and do not own it."""

    def __init__(self, abort: Callable[[], None]) -> None:
        """`abort` cuts the connection at once."""
        self.abort = abort
        self._gone = False
        self._listeners: set[Callable[[], None]] = set()

    def hung_up(self) -> None:
        """It disconnected, perhaps with bytes that have not been read yet, as an upload does that is queued."""
        self._gone = True
        for tell in tuple(self._listeners):
            tell()

    @contextmanager
    def watched(self, tell: Callable[[], None]) -> Iterator[None]:
        """`tell` is called if it leaves while the block runs, or has left already."""
        self._listeners.add(tell)
        try:
            if self._gone:
                tell()
            yield
        finally:
            self._listeners.discard(tell)


#: The client that the present task works for.
present_peer: ContextVar[Peer] = ContextVar("present_peer")

#: Told of each request that matched no route or was no request: its id and the status that it got.
Unmatched = Callable[[str, int], None]
