"""One connection of the fake engine: requests in, answers out, and an eye on the client all the while."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import h11
import msgspec
import trio

from tests.fakes.script import Behaviour
from tests.fakes.transport import Transport, reset
from tests.fakes.wire import Answer, HangUpError

_BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 30\r\n"
    b"connection: close\r\n\r\nInvalid HTTP request received."
)


@dataclass(frozen=True)
class Seen:
    """A request as it reached the engine; header names are in lower case. `connection` counts from 1."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    connection: int

    def header(self, name: str) -> str | None:
        """The first field called `name` (lower case), or None."""
        return next((value for key, value in self.headers if key == name), None)

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    def json(self) -> object:
        """The decoded body. Raises msgspec.DecodeError."""
        return msgspec.json.decode(self.body)


#: Answers one request; tasks of the exchange go into the nursery, which ends with it.
Handler = Callable[[Seen, Answer, trio.Nursery], Awaitable[None]]


class Connection:
    """Serves requests on `stream`, which it owns, until either side ends it."""

    def __init__(
        self, stream: Transport, number: int, take: Callable[[Seen], Behaviour], handle: Handler, keep_alive_s: float
    ) -> None:
        self._stream = stream
        self._number = number
        self._take = take
        self._handle = handle
        self._keep_alive_s = keep_alive_s
        self._data = b""
        self._scope = trio.CancelScope()
        self._idle_scope = trio.CancelScope()
        self.client_left = False
        self.busy = False

    def __repr__(self) -> str:
        state = "busy" if self.busy else "idle"
        return f"Connection({self._number}, {state}, client_left={self.client_left})"

    def kill(self) -> None:
        """Reset the connection now, whatever it is doing."""
        reset(self._stream)
        self._scope.cancel()

    def close_if_idle(self) -> None:
        """Close it unless a request is being read or answered."""
        self._idle_scope.cancel()

    async def serve(self, left_early: Callable[[], None]) -> None:
        """Serve until the end. `left_early` is called for each answer that the client did not wait for."""
        try:
            with self._scope:
                while (request := await self._next_request()) is not None:
                    answer = Answer(self._stream, self._take(request), keep_alive=_keeps_alive(request))
                    self.busy = True
                    await self._exchange(request, answer)
                    self.busy = False
                    if self.client_left and not answer.complete:
                        left_early()
                    if not (answer.complete and answer.keep_alive):
                        break
        finally:
            await trio.aclose_forcefully(self._stream)

    async def _exchange(self, request: Seen, answer: Answer) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)
            try:
                await self._handle(request, answer, nursery)
            except HangUpError:
                answer.keep_alive = False
            except trio.BrokenResourceError:
                self.client_left = True
            nursery.cancel_scope.cancel()

    async def _watch(self, exchange: trio.CancelScope) -> None:
        """End the exchange when the client leaves; keep what it sends ahead. uvicorn takes a half-close for leaving."""
        while data := await self._receive():
            self._data += data
        self.client_left = True
        exchange.cancel()

    async def _receive(self) -> bytes:
        try:
            return await self._stream.receive_some()
        except trio.BrokenResourceError:
            return b""

    async def _next_request(self) -> Seen | None:
        if self.client_left:
            return None
        with trio.CancelScope(deadline=trio.current_time() + self._keep_alive_s) as self._idle_scope:
            self._data = self._data or await self._receive()
        self._idle_scope = trio.CancelScope()
        if not self._data:
            return None
        try:
            return await self._read_request()
        except h11.RemoteProtocolError:
            await self._stream.send_all(_BAD_REQUEST)
            return None
        except trio.BrokenResourceError:
            return None

    async def _read_request(self) -> Seen | None:
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1024 * 1024)
        parser.receive_data(self._data)
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = parser.next_event()
            if isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            elif event is h11.NEED_DATA:
                if parser.they_are_waiting_for_100_continue:
                    await self._stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                    parser.send(h11.InformationalResponse(status_code=100, headers=[]))
                if not (data := await self._receive()):
                    return None
                parser.receive_data(data)
            else:
                return None
        assert head is not None
        self._data = parser.trailing_data[0]
        fields = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers)
        return Seen(head.method.decode(), head.target.decode("latin-1"), fields, bytes(body), self._number)


def _keeps_alive(request: Seen) -> bool:
    return "close" not in (request.header("connection") or "").lower()


#: An idle connection stays open: a deadline on virtual time would come true in every simulation.
NEVER = math.inf
