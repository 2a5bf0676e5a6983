"""Delivery: attempts at engines, and the deadlines of the answer, whole or a stream."""

import re
from collections.abc import AsyncGenerator, Callable, Collection
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from .account.meter import StreamMeter, read_usage
from .account.record import Record
from .config.live import Live
from .config.schema import FinalFrame, TimeoutConfig
from .dialects.failure import BODY_MAX, blames_the_request, reason_in, without_addresses
from .dialects.sse import EventSplitter
from .engines.engine import RETRY_AFTER_S, Engine, Engines
from .exchange import Client, Request
from .outcome import Outcome, Refusal
from .relay.connection import AnswerTooLarge, EngineBroken, HeadTooLarge
from .relay.forward import Deadline, EngineUnreachable, Exchange, begin, stream
from .relay.pump import EngineIdle, Pump
from .shortage import exhausted
from .timing import server_timing

T = TypeVar("T")

#: An engine's header fields that tell a client whether and when to try again, and what they look like.
_ABOUT_RETRIES = {
    b"retry-after": re.compile(rb"\d{1,6}(\.\d{1,6})?|[A-Z][a-z]{2},[ \w:]{12,30}GMT").fullmatch,
    b"retry-after-ms": re.compile(rb"\d{1,9}(\.\d{1,6})?").fullmatch,
    b"x-should-retry": re.compile(rb"(?i)true|false").fullmatch,
}

#: What SDKs obey: whoever asks again gets the same again.
_NO_RETRY = [(b"x-should-retry", b"false")]

#: An engine's statuses that the same request meets again: what it asks for is not there, or not allowed.
_PERMANENT = frozenset({501, 505, 506, 508, 510, 511})

#: Another engine for a call whose attempts at these have failed, with a slot there if it needs one; None: no other.
Elsewhere = Callable[[Collection[Engine]], Engine | None]


@dataclass(slots=True)
class Call:
    """One request on its way, with all that was made for it."""

    request: Request
    client: Client
    record: Record
    timeouts: TimeoutConfig  # those in force when it came: a reload does not move the deadlines of what runs
    body: bytes | AsyncGenerator[bytes, None] = b""  # for the engine
    stream: bool = False
    usage_asked: bool = False  # the usage chunk of its stream belongs to the client
    started_at: float | None = None  # at an engine's disposal from then on; deadlines and latencies count from it
    answered: bool = False  # the dialect's own end of the stream has been sent
    pings_only: bool = False  # the client's answer has begun, and all that it has got are pings
    meter: StreamMeter | None = None
    splitter: EventSplitter = field(default_factory=EventSplitter)

    @property
    def begun(self) -> bool:
        """The client has something of the engine's answer."""
        return self.client.started and not self.pings_only

    def timing(self) -> bytes:
        """The field Server-Timing of an answer whose head is made now."""
        return server_timing(self.request.received_at, self.record.queued_at, self.started_at)

    def let_go_of_the_body(self) -> None:
        """The engine has it, or nobody will: it is in memory no longer."""
        self.body = b""
        if self.request.body.held:
            self.request.body.release()


class Delivery:
    """Brings each call's answer from an engine to its client."""

    def __init__(self, config: Live, engines: Engines, pump: Pump | None) -> None:
        """Without a `pump` every stream takes the ordinary way (simulations have no sockets)."""
        self._config = config
        self._engines = engines
        self._pump = pump
        self._running: set[Deadline] = set()
        self._cut = False

    async def deliver(self, call: Call, engine: Engine, elsewhere: Elsewhere) -> Outcome:
        """Send the call to `engine`, or if it gives no answer to another one, and its answer to the client.

        Refusal if there is none; ClientGone or ClientStalled from the client.
        """
        timeouts = call.timeouts
        deadline = Deadline(_known(call.started_at) + timeouts.request_s)
        if call.stream:
            deadline.extend(timeouts.first_token_s)
        self._running.add(deadline)
        try:
            with deadline.scope:
                engine, exchange = await self._begin(call, engine, elsewhere)
                try:
                    with exchange:
                        if exchange.head.status == 401 and engine.authorization:
                            raise _denied(engine)
                        if exchange.is_stream:
                            return await self._stream(call, exchange, deadline)
                        return await self._whole(call, exchange)
                except EngineBroken as error:
                    raise _broken_off(call, engine, error) from None
        except EngineIdle:
            pass
        finally:
            self._running.discard(deadline)
        raise self._too_late(call, deadline)

    def cut(self) -> None:
        """End all that runs now, each with an error in its dialect; for the end of the drain."""
        self._cut = True
        for deadline in self._running:
            deadline.scope.cancel()

    async def _begin(self, call: Call, engine: Engine, elsewhere: Elsewhere) -> tuple[Engine, Exchange]:
        """Begin at `engine`; if that fails before a head, at each other one, unless the body is already spent."""
        tried: set[Engine] = set()
        while True:
            tried.add(engine)
            failure: Refusal | None = None
            if not engine.up:
                failure = self._engines.unavailable()
            else:
                try:
                    exchange = await begin(engine.connections, call.request, call.body, engine.authorization)
                    call.let_go_of_the_body()
                    return engine, exchange
                except EngineUnreachable as error:
                    failure = _unreachable(engine, error)
                except EngineBroken as error:
                    failure = _broken_off(call, engine, error)
            other = elsewhere(tried) if isinstance(call.body, bytes) else None
            if other is None:
                raise failure
            engine = other

    async def _stream(self, call: Call, exchange: Exchange, deadline: Deadline) -> Outcome:
        record = call.record
        clock = self._pump.clock if self._pump else trio.current_time
        dialect = call.request.endpoint.dialect
        final_frame = _final_frame(call.request, self._config.current.streams.final_frame)
        meter = StreamMeter(dialect, call.usage_asked, clock, _known(call.started_at), final_frame=final_frame)
        call.meter = meter
        try:
            await stream(exchange, call.client, meter, call.splitter, deadline, call.timeouts.idle_s, self._pump)
        finally:
            if call.client.started:
                record.status = exchange.head.status
                call.answered = meter.ended and not meter.failed
            record.first_at = meter.first_at
            if meter.usage is not None:
                record.prompt_tokens, record.completion_tokens = meter.usage.prompt, meter.usage.completion
        if not meter.failed:
            return Outcome.SERVED
        record.detail = f"The engine reported an error in its stream: {meter.reason or 'without a reason'}"
        return Outcome.ENGINE_ERROR

    async def _whole(self, call: Call, exchange: Exchange) -> Outcome:
        status = exchange.head.status
        if status >= 500:
            raise await _engine_failed(exchange)
        body = await exchange.whole_body(self._config.current.limits.answer_max_bytes)
        record = call.record
        if (usage := read_usage(call.request.endpoint.dialect, body)) is not None:
            record.prompt_tokens, record.completion_tokens = usage.prompt, usage.completion
        if call.client.started:  # by a ping: it is too late for a status
            raise _not_a_stream(status, body)
        record.status = status
        await call.client.respond(status, exchange.headers, body)
        return Outcome.SERVED if status < 400 else Outcome.INVALID

    def _too_late(self, call: Call, deadline: Deadline) -> Refusal:
        """The refusal of a call whose deadline has passed, or that was cut."""
        timeouts = call.timeouts
        if self._cut:
            message = "The gateway shut down before the answer was complete. Retry."
            return Refusal(Outcome.SHED_DRAINING, 503, message, retry_after_s=1)
        if deadline.limit_reached:
            message = f"The answer was not complete within {timeouts.request_s:g} s."
            return Refusal(Outcome.TIMEOUT_TOTAL, 504, message)
        if call.begun:
            return Refusal(Outcome.TIMEOUT_IDLE, 504, f"The engine sent nothing for {timeouts.idle_s:g} s.")
        message = f"The engine did not begin to answer within {timeouts.first_token_s:g} s."
        return Refusal(Outcome.TIMEOUT_FIRST_TOKEN, 504, message)


def _final_frame(request: Request, default: FinalFrame) -> bool:
    """Whether a stream is to have the final frame: as the request says, if it says one of the words, else `default`."""
    asked = request.header(b"x-sluicegate-final-frame")
    word = default if asked is None else asked.strip().lower().decode("latin-1")
    return (word if word in ("comment", "off") else default) == "comment"


def _unreachable(engine: Engine, error: EngineUnreachable) -> Refusal:
    """No connection could be made: the engine's fault, of which it is told, or for want of something of ours."""
    if error.short_of:
        return exhausted(error.short_of)
    why = f"the engine at {engine.address} cannot be reached ({error.why})"
    engine.failed("the engine cannot be reached", why)
    message, detail = "The engine cannot be reached. Retry in a few seconds.", f"T{why[1:]}."
    return Refusal(Outcome.ENGINE_UNAVAILABLE, 503, message, retry_after_s=RETRY_AFTER_S, detail=detail)


def _denied(engine: Engine) -> Refusal:
    """It took our key when it was probed, and does not now. A 401 would tell the client that its own is wrong."""
    engine.wake_prober()
    message = "The engine refuses the gateway's key ([engine] api_key)."
    return Refusal(Outcome.ENGINE_ERROR, 502, message, headers=_NO_RETRY)


def _broken_off(call: Call, engine: Engine, error: EngineBroken) -> Refusal:
    """The engine closed, reset or garbled the exchange, or its answer exceeds a limit of ours."""
    why = f"{error.why[0].upper()}{error.why[1:]}."
    if isinstance(error, AnswerTooLarge):  # the engine is well
        message = f"{why} Ask for less at a time."
        return Refusal(Outcome.TOO_LARGE, 502, message, code="answer_too_large", headers=_NO_RETRY)
    if isinstance(error, HeadTooLarge):
        return Refusal(Outcome.ENGINE_ERROR, 502, why, headers=_NO_RETRY)
    engine.wake_prober()
    where, outcome = "before it answered", Outcome.ENGINE_ERROR
    if call.begun:
        where, outcome = "in the middle of its answer", Outcome.ENGINE_TRUNCATED
    said = f"The engine broke off {where}"
    return Refusal(outcome, 502, f"{said}. Retry.", detail=f"{said}: {error.why}.")


def _not_a_stream(status: int, body: bytes) -> Refusal:
    """The refusal for an answer in one piece to a client that already reads a stream."""
    if status < 400:
        return Refusal(Outcome.ENGINE_ERROR, 502, "The engine did not answer with a stream.")
    message = reason_in(body) or f"The engine refused the request with status {status}."
    return Refusal(Outcome.INVALID, status, message)


async def _engine_failed(exchange: Exchange) -> Refusal:
    """The refusal for an engine's own 5xx: its reason, and its word about a retry.

    What the same request meets again keeps its status, and no SDK is to retry it. Overload (503) stays what it is;
    anything else is a bad gateway to the client.
    """
    head = exchange.head
    try:
        body = await exchange.whole_body(BODY_MAX)
    except EngineBroken:
        body = b""  # its status says enough
    status, reason = head.status, reason_in(body)
    headers = [field for field in head.headers if field[0] in _ABOUT_RETRIES and _ABOUT_RETRIES[field[0]](field[1])]
    told = dict(headers)
    should_retry = told.get(b"x-should-retry", b"").lower()
    permanent = status in _PERMANENT or blames_the_request(body)
    if should_retry == b"false" or (permanent and should_retry != b"true"):
        if not should_retry:
            headers += _NO_RETRY
        answered, again, retry_after_s = min(status, 599), "", None
    else:
        seconds = told.get(b"retry-after", b"")
        answered = 503 if status == 503 else 502
        again = "" if status == 500 and reason else " Retry."  # whether a bug strikes again nobody knows
        retry_after_s = int(seconds) if seconds.isdigit() else RETRY_AFTER_S if status == 503 else None
    said = f"The engine failed with status {status}"
    message, detail = (
        f"{said}: {why.rstrip('.')}.{again}" if why else f"{said}.{again}"
        for why in (without_addresses(reason), reason)
    )
    return Refusal(Outcome.ENGINE_ERROR, answered, message, retry_after_s=retry_after_s, detail=detail, headers=headers)


def _known(value: T | None) -> T:
    assert value is not None
    return value
