"""Pings: what a stream that waits sends, so that no proxy between here and its client cuts a silent connection.

Only for requests that are to have them: no other has a task, a lock or a wrapper for it.
"""

import re
from collections.abc import Awaitable, Callable

import trio

from .delivery import Call
from .dialects.grammars import GRAMMARS
from .exchange import Client, ClientGone, ClientStalled, Headers, Request, Splice
from .outcome import Outcome
from .relay.message import UNBUFFERED

#: The shortest and the longest time between two pings that a request can ask for (seconds).
ASKED_MIN_S, ASKED_MAX_S = 1.0, 3600.0

_SECONDS = re.compile(rb"[ \t]*([0-9]{1,6}(?:\.[0-9]{1,6})?)[ \t]*")

_HEAD: Headers = [(b"content-type", b"text/event-stream; charset=utf-8"), *UNBUFFERED]


def ping_s(request: Request, default: float) -> float:
    """The seconds between two pings: what the request asks for, if that is a number, else `default`; 0: none."""
    asked = request.header(b"x-sluicegate-ping-s")
    if asked is None or not (match := _SECONDS.fullmatch(asked)):
        return default
    seconds = float(match[1])
    return min(max(seconds, ASKED_MIN_S), ASKED_MAX_S) if seconds else 0.0


async def pinged(call: Call, every_s: float, serve: Callable[[Call], Awaitable[Outcome]]) -> Outcome:
    """`serve` the call, and ping its client every `every_s` seconds until the engine's first output.

    From the first ping on the client's answer has begun, with status 200. Raises what `serve` raises; ClientGone or
    ClientStalled also from a ping.
    """
    client = call.client = Pinged(call, every_s)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.ping)
        with client.working:
            try:
                outcome = await serve(call)
            except Exception as error:  # outside of the nursery, which would put it into a group
                failure = error
        await client.end_pings()
        nursery.cancel_scope.cancel()
    if failure := client.broken or failure:
        raise failure
    return outcome


class Pinged:
    """A Client that is pinged while it waits.

    A ping that is being sent is never cancelled, and nothing else is sent meanwhile: `_turn`.
    """

    def __init__(self, call: Call, every_s: float) -> None:
        self._call = call
        self._client: Client = call.client
        self._every_s = every_s
        self._due = trio.current_time() + every_s
        self._turn = trio.Lock()
        self._over = False
        self.working = trio.CancelScope()
        self.broken: Exception | None = None

    @property
    def timing(self) -> Callable[[], bytes] | None:
        return self._client.timing

    @timing.setter
    def timing(self, timing: Callable[[], bytes] | None) -> None:
        self._client.timing = timing

    async def ping(self) -> None:
        """Ping until the pings are over. If the client disconnects or stalls, that is `broken` and `working` ends."""
        ping = GRAMMARS[self._call.request.endpoint.dialect].ping
        while not self._over:
            if (now := trio.current_time()) < self._due:
                await trio.sleep(self._due - now)
                continue
            self._due = now + self._every_s
            if self._turn.locked() or self._call.splitter.mid_event:
                continue
            # Without a turn of the scheduler in between: who has seen `started` false sends next.
            self._turn.acquire_nowait()
            try:
                if not self.started:
                    self._call.pings_only, self._call.record.status = True, 200
                    await self._client.start(200, _HEAD)
                await self._client.send(ping)
            except (ClientGone, ClientStalled) as error:
                self.broken = error
                self.working.cancel()
                return
            finally:
                self._turn.release()

    async def end_pings(self) -> None:
        """No ping after this, nor one that is still being sent."""
        self._over = True
        async with self._turn:
            pass

    @property
    def started(self) -> bool:
        return self._client.started

    @property
    def splice(self) -> Splice | None:
        """None while there may be pings: the pump knows of none."""
        return self._client.splice if self._over else None

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        await self.end_pings()
        await self._client.respond(status, headers, body)

    async def start(self, status: int, headers: Headers) -> None:
        async with self._turn:
            if not self.started:
                await self._client.start(status, headers)

    async def send(self, data: bytes) -> None:
        meter = self._call.meter
        self._over = self._over or meter is None or meter.begun
        async with self._turn:
            self._call.pings_only = False
            await self._client.send(data)
            self._due = trio.current_time() + self._every_s

    async def finish(self) -> None:
        await self.end_pings()
        await self._client.finish()
