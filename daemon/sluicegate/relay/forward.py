"""One exchange with the engine: begin it, then bring its answer to the client, whole or as a stream."""

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing

import trio

from ..exchange import Client, Headers, Request
from ..shortage import shortage
from .connection import AnswerHead, AnswerTooLarge, EngineBroken, EngineConnection
from .message import answer_headers, request_head, stream_headers
from .pool import Pool
from .pump import EngineIdle, Pump
from .splice import Meter, Splicer, Splitter

#: Bodies above this are sent apart from their head instead of being copied behind it (bytes).
COPY_MAX = 65536

#: How long the end of the body may take to follow the end of the stream in it (seconds). They come together; an engine
#: that is stuck between them must not keep a client waiting that has everything.
TAIL_S = 1.0


class EngineUnreachable(Exception):
    """No connection to the engine could be made. `why` is for the log. `short_of`: we have no more of that, or ""."""

    def __init__(self, why: str, short_of: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.short_of = short_of


class Deadline:
    """The deadline of one request at the engine: never past `limit` (trio's clock), nearer while it waits for bytes."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.scope = trio.CancelScope(deadline=limit)

    def extend(self, seconds: float) -> None:
        """From now on, wait `seconds` (inf: up to the limit)."""
        self.scope.deadline = min(self.limit, trio.current_time() + seconds)

    @property
    def limit_reached(self) -> bool:
        """Once the scope has expired: whether it was the limit, and not a nearer deadline."""
        return trio.current_time() >= self.limit


class Exchange:
    """A connection, lent from the pool for one request and its answer. A context manager: the pool gets it back."""

    def __init__(self, pool: Pool, connection: EngineConnection, head: AnswerHead) -> None:
        self._pool = pool
        self._connection = connection
        self.head = head

    def __enter__(self) -> "Exchange":
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.release(self._connection)

    @property
    def connection(self) -> EngineConnection:
        return self._connection

    @property
    def is_stream(self) -> bool:
        media_type = self.head.header(b"content-type").partition(b";")[0]
        return self.head.status == 200 and media_type.strip().lower() == b"text/event-stream"

    @property
    def headers(self) -> Headers:
        """What the client gets of the engine's headers."""
        return answer_headers(self.head.headers)

    async def whole_body(self, limit: int) -> bytes:
        """The whole body. EngineBroken if it breaks off, AnswerTooLarge if it exceeds `limit` bytes."""
        parts, size = [], 0
        while (part := await self._connection.body_part()) is not None:
            size += len(part)
            if size > limit:
                raise AnswerTooLarge(f"the answer is larger than {limit} bytes (limits.answer_max_bytes)")
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


async def begin(
    pool: Pool, request: Request, body: bytes | AsyncGenerator[bytes, None], authorization: bytes = b""
) -> Exchange:
    """Send the request and wait for the head of the answer. EngineUnreachable or EngineBroken if there is none.

    `authorization`, if any, takes the place of the client's own.

    A kept connection may die just as it is used: if it did so before any byte of an answer, the request is sent once
    more, on a fresh one. A body that arrives in pieces cannot be sent twice and so never goes over a kept connection.
    """
    fresh = not isinstance(body, bytes)
    while True:
        try:
            connection = await pool.acquire(fresh=fresh)
        except OSError as error:
            raise EngineUnreachable(str(error), shortage(error)) from None
        try:
            await _send(connection, request, body, pool.passed, authorization)
            return Exchange(pool, connection, await connection.head())
        except EngineBroken:
            again = connection.reused and not connection.answer_begun
            pool.release(connection)
            if not again:
                raise
            fresh = True
        except BaseException:
            pool.release(connection)
            raise


async def _send(
    connection: EngineConnection,
    request: Request,
    body: bytes | AsyncGenerator[bytes, None],
    passed: frozenset[bytes],
    authorization: bytes,
) -> None:
    if isinstance(body, bytes):
        head = request_head(request, len(body), passed, authorization)
        if len(body) <= COPY_MAX:
            await connection.send(head + body)
        else:
            await connection.send(head)
            await connection.send(body)
        return
    length = request.header(b"content-length")
    await connection.send(request_head(request, None if length is None else int(length), passed, authorization))
    async with aclosing(body):
        async for part in body:
            if part:
                await connection.send(part if length is not None else b"%x\r\n%s\r\n" % (len(part), part))
    if length is None:
        await connection.send(b"0\r\n\r\n")


async def stream(
    exchange: Exchange,
    client: Client,
    meter: Meter,
    splitter: Splitter,
    deadline: Deadline,
    idle_s: float,
    pump: Pump | None,
) -> None:
    """Bring a stream of events to the client, each as it comes.

    `deadline` is what this runs in: the caller's until the first event, then `idle_s` from one part of the
    body to the next. The time that the client takes is not the engine's (the client has a deadline of its own).
    The head is held back until the first event: an engine that breaks during prefill is then answered with a status
    instead of an empty stream.

    After the first event `pump`, if there is one, carries the rest from socket to socket, where both sides allow it.

    Raises EngineBroken if the stream ended without the dialect's end or the engine's own error, EngineIdle if the pump
    found the engine silent; nothing but whole events was sent then. What breaks behind the end is no harm to the
    client: it has everything, only the connection is not used again.
    """
    try:
        if await _carry(exchange, client, meter, splitter, deadline, idle_s, pump):
            return
    except (EngineBroken, EngineIdle):
        if not (meter.ended or meter.failed) or splitter.mid_event:
            raise
    if not (meter.ended or meter.failed):
        raise EngineBroken("the engine ended its stream before the end of the answer")
    deadline.extend(math.inf)
    final = meter.final_frame()
    if final:
        await client.send(final)
    await client.finish()


async def _carry(
    exchange: Exchange,
    client: Client,
    meter: Meter,
    splitter: Splitter,
    deadline: Deadline,
    idle_s: float,
    pump: Pump | None,
) -> bool:
    """Bring the events to the client; whether the end of the body has gone out as well (it has, from the pump)."""
    connection = exchange.connection
    while (part := await _next_part(connection, meter)) is not None:
        events = meter.pass_on(splitter.feed(part))
        if events:
            deadline.extend(math.inf)
            if not client.started:
                await client.start(exchange.head.status, stream_headers(exchange.head.headers))
            await client.send(events)
            answer, splice = connection.answer, client.splice
            if pump and splice and connection.sock and answer.chunked and not answer.complete:
                try:
                    await pump.carry(connection, Splicer(answer, splitter, meter), splice)
                except OSError:  # no descriptors left for the pump's own: this stream does without it
                    pump = None
                else:
                    return True
        deadline.extend(math.inf if meter.ended else idle_s)
    return False


async def _next_part(connection: EngineConnection, meter: Meter) -> bytes | None:
    if not meter.ended:
        return await connection.body_part()
    with trio.move_on_after(TAIL_S):
        return await connection.body_part()
    raise EngineBroken("the engine ended its stream, but not its answer")
