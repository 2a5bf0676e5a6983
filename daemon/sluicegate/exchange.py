"""What passes between the stages: a request, the client that waits for its answer, an endpoint and its dialect.

Types only. Every stage may import this module and none imports another stage.
"""

import enum
import socket
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Protocol

#: Header fields in wire order, names in lower case.
Headers = list[tuple[bytes, bytes]]


class Dialect(enum.StrEnum):
    """The protocol that a client speaks: decides how errors, usage and the end of a stream look."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    COHERE = "cohere"
    STORED = "stored"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row of the route table.

    `path` doubles as the value of the metric label `endpoint`, so that label is bounded by the table.
    `opaque`: the body is passed on unread (multipart), never parsed and never changed.
    `bodiless`: the engine reads no body, so it gets none.
    `target`: `path` with its parameters filled in, where it has any.
    """

    path: str
    dialect: Dialect
    needs_slot: bool = True
    opaque: bool = False
    method: str = "POST"
    bodiless: bool = False
    target: str = ""


class Room(Protocol):
    """Says whether a body may be read, and counts what is held of it. One that came with its head needs not ask."""

    def begin(self, length: int) -> None:
        """Before anything else of it is read. `length` as declared, in bytes; 0: unknown. May raise Refusal."""
        ...

    def take(self, length: int) -> None:
        """So many bytes more are held. May raise Refusal."""
        ...

    def release(self, length: int) -> None:
        """So many are held no more."""
        ...


class Body(Protocol):
    """The body of a request, read at most once, one way or the other.

    Both raise Refusal (the room's, TOO_LARGE, or INVALID if it does not arrive in time or is not HTTP) and ClientGone.
    `held`: bytes that it has taken of its room.
    """

    @property
    def held(self) -> int: ...

    async def whole(self, room: Room) -> bytes:
        """All of it."""
        ...

    def parts(self, room: Room) -> AsyncGenerator[bytes, None]:
        """Its pieces as they arrive, framing removed. A reader that stops before the last one must close it."""
        ...

    def release(self) -> None:
        """Give the room back what is held: nobody needs the bytes any more."""
        ...


@dataclass(slots=True)
class Request:
    """A request as accepted: its head is whole and within limits; its body may still be on its way.

    `received_at` is on trio's clock, in seconds. `query` is that of the target, with its question mark, or empty.
    `client`: the client's IP address, or empty.
    """

    id: str
    endpoint: Endpoint
    headers: Headers
    body: Body
    received_at: float
    query: bytes = b""
    client: str = ""

    def header(self, name: bytes) -> bytes | None:
        """The first field called `name` (lower case), or None."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class ClientGone(Exception):
    """The client's connection broke while something was being sent to it."""


class ClientStalled(Exception):
    """The client took no byte for `client_stall_s`."""


class Splice(Protocol):
    """A client whose socket takes chunk-framed bytes directly, past `send`: what the relay's pump needs of it."""

    @property
    def sock(self) -> socket.socket:
        """Non-blocking, and the client's: it may be duplicated and written to, not closed."""
        ...

    def owe(self, data: bytes) -> None:
        """Framed bytes that the socket did not take yet: they go out before whatever is sent next.

        If the end of the body is among them, nothing can be sent any more.
        """
        ...

    def ended(self) -> None:
        """The end of the body has been written: the answer is complete, as after `finish`."""
        ...


class Client(Protocol):
    """The client's end of one exchange. Owned by accept/, used by one pipeline run, then never again.

    Either `respond` once, or `start`, any number of `send`, `finish`. All of them may raise ClientGone or
    ClientStalled; after either, nothing more can be sent.

    `timing` gives the field Server-Timing, and is asked when the head is made; None: nothing is known.
    """

    timing: Callable[[], bytes] | None

    @property
    def started(self) -> bool:
        """True once any byte of an answer may have left: a refusal can no longer be an HTTP status."""
        ...

    @property
    def splice(self) -> Splice | None:
        """The way past `send`, valid once `send` has returned for the first time; None where there is no such way."""
        ...

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer. Sets content-length itself."""
        ...

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head of a streamed answer."""
        ...

    async def send(self, data: bytes) -> None:
        """Send a piece of the body; returns when the transport has taken it."""
        ...

    async def finish(self) -> None:
        """End the body properly."""
        ...
