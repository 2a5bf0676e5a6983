"""What accept/ hands requests to: the pipeline, as seen from here."""

from collections.abc import Callable
from typing import Protocol

from ..exchange import Client, Request


class Handler(Protocol):
    """Takes a request to its one outcome. Cancelled when the client leaves."""

    async def handle(self, request: Request, client: Client) -> None: ...


#: Told of each request that matched no route or was no request: its id and the status that it got.
Unmatched = Callable[[str, int], None]
