"""What accept/ hands requests to: the pipeline, as seen from here."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import trio

from ..exchange import Client, Request
from ..outcome import Refusal


class Handler(Protocol):
    """Takes a request to its one outcome. Cancelled when the client disconnects."""

    async def handle(self, request: Request, client: Client) -> None: ...


class Peer:
    """The client's connection, for tasks that work for a request on it and do not own it."""

    def __init__(self, abort: Callable[[], None], address: str = "") -> None:
        """`abort` cuts the connection at once. `address`: its IP address, or that of the client that it proxies."""
        self.abort = abort
        self.address = address
        #: Set if what it sends of a body turns out not to be HTTP.
        self.refusal: Refusal | None = None
        #: Tells a client that waits for it (Expect: 100-continue) to send its body.
        self.go_on: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self._gone = False
        self._listeners: set[Callable[[], None]] = set()

    def hung_up(self) -> None:
        """It disconnected, maybe with bytes not yet read, as of an upload that waits for its slot."""
        self._gone = True
        for tell in tuple(self._listeners):
            tell()

    @contextmanager
    def watched(self, tell: Callable[[], None]) -> Iterator[None]:
        """`tell` is called if it disconnects while the block runs, or has done so already."""
        self._listeners.add(tell)
        try:
            if self._gone:
                tell()
            yield
        finally:
            self._listeners.discard(tell)


#: The client that the present task works for.
present_peer: ContextVar[Peer] = ContextVar("present_peer")


class Unmatched(Protocol):
    """Told of each request that matched no route or was no request, and of connections that cannot be served.

    `refusal`: what it got. `method` and `target`: as far as they are known.
    """

    def __call__(self, request_id: str, refusal: Refusal, method: str = "", target: str = "") -> None: ...
