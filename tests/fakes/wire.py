"""One answer of the fake engine, written as raw bytes, so that anything can go wrong at any of them."""

import math
from collections.abc import Iterable, Sequence
from http import HTTPStatus

import trio

from tests.fakes.dialects import Dialect, Event, error_events, huge_event
from tests.fakes.load import Generation
from tests.fakes.script import BEFORE_FIRST_EVENT, BEFORE_HEAD, Behaviour, Fault, Framing, Kind, Writes
from tests.fakes.transport import Transport, reset

_COMMENT = b": keep-alive\n\n"
_GARBAGE_HEAD = b"\x00\xffthis is not HTTP\r\n\r\n"
_GARBAGE_SIZE = b"zz\r\n"
#: uvicorn writes the day's time; a constant keeps answers comparable.
_DATE = b"date: Tue, 14 Nov 2023 22:13:20 GMT\r\nserver: uvicorn\r\n"
_VARY = "vary: Origin"


class HangUpError(Exception):
    """The script ends the connection here."""


class Answer:
    """Writes one answer to `stream` as `behaviour` says. Raises HangUpError where the connection must be closed now."""

    def __init__(self, stream: Transport, behaviour: Behaviour, *, keep_alive: bool) -> None:
        self._stream = stream
        self._wire = behaviour.wire
        self._fault = behaviour.fault
        self.behaviour = behaviour
        self.keep_alive = keep_alive
        self.sent = 0
        self.complete = False
        self._events: list[bytes] = []
        self._outbox = bytearray()

    def __repr__(self) -> str:
        return f"Answer({self.sent} bytes sent, complete={self.complete}, {self._fault})"

    async def whole(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        """An answer in one piece. Faults at events strike in the middle of its body."""
        await self._strike_at(BEFORE_HEAD)
        kind = [f"content-type: {content_type}"] if body else []
        await self._put(self._head(status, [f"content-length: {len(body)}", *kind, _VARY]))
        fault = self._fault
        if fault is not None and fault.at >= BEFORE_FIRST_EVENT and fault.kind in _MIDDLE and fault.at_byte is None:
            await self._put(body[: len(body) // 2])
            await self._strike(Fault(Kind.CLOSE) if fault.kind is Kind.TRUNCATE else fault)
        await self._put(body)
        await self._end()

    async def stream(self, dialect: Dialect, events: Iterable[Event], generation: Generation) -> None:
        """An SSE answer: the head at once, each event when its tokens exist."""
        plan = planned(dialect, list(events), self._fault)
        await self._strike_at(BEFORE_HEAD)
        await self._put(self._head(200, self._framing_fields(plan)))
        if self._wire.writes is Writes.BURST:
            await self._flush()
        rank = 0
        for rank, event in enumerate(plan):
            await self._strike_at(rank, event.data)
            if not generation.has(event.after):
                await self._gather(math.inf)
                await generation.reached(event.after)
            await self._event(event.data)
        await self._gather(math.inf)
        if self._fault is not None and self._fault.kind is Kind.ERROR_EVENT and dialect is Dialect.RESPONSES:
            await self._strike(Fault(Kind.CLOSE))
        if self._fault is not None and self._fault.at > rank:
            await self._strike_at(self._fault.at)
        if self._wire.framing is Framing.CHUNKED:
            trailers = "".join(f"{name}: {value}\r\n" for name, value in self._wire.trailers)
            await self._put(f"0\r\n{trailers}\r\n".encode())
        if self._wire.framing is Framing.UNTIL_CLOSE:
            self.keep_alive = False
        await self._end()

    async def _end(self) -> None:
        await self._flush()
        self.complete = True
        if self.behaviour.close:
            raise HangUpError

    def _framing_fields(self, plan: Sequence[Event]) -> list[str]:
        fields = ["content-type: text/event-stream; charset=utf-8", _VARY]
        if self._wire.framing is Framing.CHUNKED:
            fields.append("transfer-encoding: chunked")
        elif self._wire.framing is Framing.LENGTH:
            comments = len(_COMMENT) * len(plan) * self._wire.comments
            fields.append(f"content-length: {comments + sum(len(event.data) for event in plan)}")
        else:
            self.keep_alive = False
        return fields

    def _head(self, status: int, fields: list[str]) -> bytes:
        if self._fault is not None and self._fault.kind is Kind.HUGE_HEAD:
            fields = [*fields, "x-padding: " + "x" * self._fault.size]
        if not self.keep_alive:
            fields = [*fields, "connection: close"]
        lines = "".join(f"{field}\r\n" for field in fields).encode()
        return b"HTTP/1.1 %d %b\r\n%b%b\r\n" % (status, HTTPStatus(status).phrase.encode(), _DATE, lines)

    async def _event(self, data: bytes) -> None:
        if self._wire.comments:
            self._events.append(_COMMENT)
            await self._gather(self._wire.events_per_chunk)
        self._events.append(data)
        await self._gather(self._wire.events_per_chunk)

    async def _gather(self, at_least: float) -> None:
        """Turn gathered events into chunks, if there are `at_least` as many (infinite: whatever there is)."""
        cut = self._wire.chunk_bytes
        if not self._events or (math.isfinite(at_least) and cut is None and len(self._events) < at_least):
            return
        body = b"".join(self._events)
        self._events.clear()
        if cut is None:
            await self._put(self._chunk(body))
            return
        while len(body) >= cut or (body and math.isinf(at_least)):
            await self._put(self._chunk(body[:cut]))
            body = body[cut:]
        if body:
            self._events.append(body)

    def _chunk(self, body: bytes) -> bytes:
        if self._wire.framing is not Framing.CHUNKED:
            return body
        return b"%x%b\r\n%b\r\n" % (len(body), self._wire.chunk_extension.encode(), body)

    async def _put(self, data: bytes) -> None:
        fault = self._fault
        if fault is not None and fault.at_byte is not None:
            left = fault.at_byte - self.sent - len(self._outbox)
            if left <= len(data):
                self._outbox += data[:left]
                await self._strike(fault)
        self._outbox += data
        if self._wire.writes not in (Writes.ALL, Writes.BURST):
            await self._flush()

    async def _flush(self) -> None:
        """Write what is held back."""
        data = bytes(self._outbox)
        self._outbox.clear()
        if self._wire.writes is Writes.BYTES:
            for byte in data:
                await self._stream.send_all(bytes([byte]))
                await trio.lowlevel.checkpoint()
                self.sent += 1
        elif data:
            await self._stream.send_all(data)
            self.sent += len(data)

    async def _strike_at(self, place: int, following: bytes = b"") -> None:
        fault = self._fault
        if fault is None or fault.at != place or fault.at_byte is not None or fault.kind in _PLANNED:
            return
        await self._gather(math.inf)
        if fault.kind is Kind.TRUNCATE:
            chunk = self._chunk(following or b"data: cut off\n\n")
            await self._put(chunk[: len(chunk) // 2])
            fault = Fault(Kind.CLOSE)
        await self._strike(fault)

    async def _strike(self, fault: Fault) -> None:
        """Let `fault` happen here. Never returns."""
        if fault.kind is Kind.GARBAGE:
            self._outbox += _GARBAGE_SIZE if self.sent or self._outbox else _GARBAGE_HEAD
        await self._flush()
        if fault.kind is Kind.RESET:
            reset(self._stream)
        elif fault.kind is Kind.HALF_CLOSE:
            await self._stream.send_eof()
        if fault.kind in (Kind.STALL, Kind.GARBAGE, Kind.HALF_CLOSE):
            await trio.sleep_forever()
        raise HangUpError


#: Faults that change what is sent, not how: they are planned, or concern the head.
_PLANNED = frozenset({Kind.ERROR_EVENT, Kind.HUGE_EVENT, Kind.HUGE_HEAD, Kind.STATUS})
#: Faults that strike within the body of an answer in one piece.
_MIDDLE = frozenset({Kind.CLOSE, Kind.RESET, Kind.HALF_CLOSE, Kind.STALL, Kind.TRUNCATE})


def planned(dialect: Dialect, events: list[Event], fault: Fault | None) -> list[Event]:
    """`events` with the faults in it that are events themselves. Pure."""
    if fault is None or fault.kind not in (Kind.ERROR_EVENT, Kind.HUGE_EVENT):
        return events
    at = min(max(fault.at, 0), len(events) - 1)
    after = events[at].after
    if fault.kind is Kind.HUGE_EVENT:
        return [*events[:at], Event(huge_event(dialect, fault.size), after), *events[at:]]
    return [*events[:at], *(Event(data, after) for data in error_events(dialect))]
