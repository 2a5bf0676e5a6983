"""THE request: understand, admit, route, relay, settle. Read this first; the stages know nothing of each other."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from . import refusals
from .account.ledger import Ledger, Record
from .account.meter import StreamMeter, read_usage
from .admit.admission import Admission
from .config.live import Live
from .config.schema import TimeoutConfig
from .dialects.facts import Facts, for_engine, understand
from .dialects.sse import EventSplitter
from .engines.engine import Backend, Backends
from .exchange import Client, ClientGone, ClientStalled, Request
from .observe.foreign import describe
from .outcome import Outcome, Refusal
from .relay.connection import EngineBroken
from .relay.forward import EngineUnreachable, Exchange, Patience, begin, stream
from .relay.pool import Pool
from .relay.pump import EngineIdle, Pump

T = TypeVar("T")


@dataclass(slots=True)
class Call:
    """One request on its way, with all that was made for it."""

    request: Request
    client: Client
    record: Record
    timeouts: TimeoutConfig  # those in force when it came: a reload does not move the deadlines of what runs
    backend: Backend | None = None
    answered: bool = False  # the dialect's own end of the stream has been passed on
    started_at: float | None = None  # at the engine's disposal from then on; what deadlines and latencies count from
    splitter: EventSplitter = field(default_factory=EventSplitter)


class Pipeline:
    """Takes every request from its head to its one outcome."""

    def __init__(
        self,
        config: Live,
        admission: Admission,
        backends: Backends,
        pools: Mapping[Backend, Pool],
        pump: Pump | None,
        ledger: Ledger,
    ) -> None:
        """Without a `pump` every stream takes the ordinary way (simulations have no sockets)."""
        self.config = config
        self.admission = admission
        self.backends = backends
        self.pools = pools
        self.pump = pump
        self.ledger = ledger
        self._running: set[Patience] = set()
        self._cut = False
        self._idle: trio.Event | None = None

    async def handle(self, request: Request, client: Client) -> None:
        """Serve `request`, or refuse it in its dialect. Cancel it when the client leaves; it raises nothing else.

        A mistake of ours ends one request, with 500 and its place in the log, and not the daemon.
        """
        record = self.ledger.open(request.id, request.endpoint.path, received_at=request.received_at)
        call = Call(request, client, record, self.config.current.timeouts)
        outcome: Outcome | None = None
        try:
            try:
                outcome = await self._serve(call)
            except Refusal as refusal:
                outcome = refusal.outcome
                await self._refuse(call, refusal)
            except (ClientGone, ClientStalled):
                raise
            except Exception as error:
                outcome = Outcome.INTERNAL_ERROR
                await self._refuse(
                    call, Refusal(outcome, 500, "The gateway failed at this request; its log says where.")
                )
                record.detail = describe(error)
        except ClientGone:
            pass
        except ClientStalled:
            outcome = outcome or Outcome.CLIENT_STALLED
        finally:
            if outcome is None and call.answered:
                outcome = Outcome.SERVED  # SDKs close at [DONE], before the end of the body
            if outcome is None:  # cancelled, or found gone while it was sent to
                active = call.started_at is not None
                outcome = Outcome.CLIENT_GONE_ACTIVE if active else Outcome.CLIENT_GONE_QUEUED
            self.ledger.settle(record, outcome)
            if self._idle is not None and self.ledger.open_count == 0:
                self._idle.set()

    async def _serve(self, call: Call) -> Outcome:
        request, record = call.request, call.record
        facts: Facts | None = None
        body: bytes | AsyncGenerator[bytes, None]
        raw = None if request.endpoint.opaque else await request.body.whole()
        models = self.backends.models
        default_model = self.config.current.engine.model_name or next(iter(models), "")
        if raw is None:
            body = request.body.parts()
            wanted = default_model
        else:
            facts = understand(request.endpoint, raw)
            body = for_engine(request.endpoint, raw, facts, default_model)
            record.stream = facts.stream
            record.model = facts.model if facts.model in models else ""
            wanted = facts.model or default_model
        record.model_used = wanted if wanted in models else ""
        self.backends.choose()  # no engine: refused at the door, before it takes a slot or a place in the line
        if not request.endpoint.needs_slot:
            call.started_at = request.received_at
            return await self._relay(call, facts, body)
        ticket = self.admission.enter()
        try:
            if ticket.waiting:
                record.queued_at, record.queue_position = ticket.arrived_at, ticket.position
                await self.admission.wait(ticket)
            call.started_at = record.granted_at = ticket.granted_at
            return await self._relay(call, facts, body)
        finally:
            self.admission.settle(ticket)

    async def _relay(self, call: Call, facts: Facts | None, body: bytes | AsyncGenerator[bytes, None]) -> Outcome:
        timeouts = call.timeouts
        patience = Patience(_known(call.started_at) + timeouts.request_s)
        if facts is not None and facts.stream:
            patience.extend(timeouts.first_token_s)
        self._running.add(patience)
        try:
            with patience.scope, await self._begin(call, body) as exchange:
                if exchange.is_stream:
                    return await self._stream(call, facts, exchange, patience)
                return await self._answer(call, exchange)
        except EngineBroken as error:
            self._suspect(_known(call.backend), error)
            if not call.client.started:
                raise Refusal(Outcome.ENGINE_ERROR, 502, "The engine broke off before it answered. Retry.") from None
            message = "The engine broke off in the middle of its answer. Retry."
            raise Refusal(Outcome.ENGINE_TRUNCATED, 502, message) from None
        except EngineIdle:
            pass
        finally:
            self._running.discard(patience)
        raise self._out_of_time(call, patience)

    async def _begin(self, call: Call, body: bytes | AsyncGenerator[bytes, None]) -> Exchange:
        """Begin at one engine; if that fails before a head, at each other one, unless the body is already spent."""
        tried: set[Backend] = set()
        while True:
            call.backend = backend = self.backends.choose(tried)
            tried.add(backend)
            try:
                return await begin(self.pools[backend], call.request, body)
            except (EngineUnreachable, EngineBroken) as error:
                others = any(other.up and other not in tried for other in self.backends.all)
                if others and isinstance(body, bytes):
                    self._suspect(backend, error)
                    continue
                if isinstance(error, EngineBroken):
                    raise
                self._suspect(backend, error)
                message = "The engine could not be reached. Retry in a few seconds."
                raise Refusal(Outcome.ENGINE_UNAVAILABLE, 502, message, retry_after_s=5) from None

    async def _stream(self, call: Call, facts: Facts | None, exchange: Exchange, patience: Patience) -> Outcome:
        record = call.record
        usage_asked = facts is not None and facts.usage_asked
        clock = self.pump.clock if self.pump else trio.current_time
        meter = StreamMeter(call.request.endpoint.dialect, usage_asked, clock, _known(call.started_at))
        try:
            await stream(exchange, call.client, meter, call.splitter, patience, call.timeouts.idle_s, self.pump)
        finally:
            if call.client.started:
                record.status = exchange.head.status
                call.answered = meter.ended and not meter.failed
            record.first_at = meter.first_at
            if meter.usage is not None:
                record.prompt_tokens, record.completion_tokens = meter.usage.prompt, meter.usage.completion
        return Outcome.ENGINE_ERROR if meter.failed else Outcome.SERVED

    async def _answer(self, call: Call, exchange: Exchange) -> Outcome:
        body = await exchange.whole_body(self.config.current.limits.answer_max_bytes)
        status = exchange.head.status
        if status >= 500:
            raise _engine_failed(status)
        record = call.record
        if (usage := read_usage(call.request.endpoint.dialect, body)) is not None:
            record.prompt_tokens, record.completion_tokens = usage.prompt, usage.completion
        record.status = status
        await call.client.respond(status, exchange.headers, body)
        return Outcome.SERVED if status < 400 else Outcome.INVALID

    async def _refuse(self, call: Call, refusal: Refusal) -> None:
        """Tell the client in its dialect: by a status while that is possible, by a last event of its stream after."""
        client, dialect = call.client, call.request.endpoint.dialect
        call.record.detail = refusal.message
        if client.started:
            event = refusals.last_event(dialect, refusal, 0)
            await client.send((b"\n\n" if call.splitter.mid_event else b"") + event)
            await client.finish()
            return
        call.record.status = refusal.status
        made = refusals.answer(dialect, refusal)
        await client.respond(made.status, made.headers, made.body)

    async def idle(self) -> None:
        """Return once no request is open. Any number of tasks may wait for it."""
        while self.ledger.open_count:
            if self._idle is None or self._idle.is_set():
                self._idle = trio.Event()
            await self._idle.wait()

    def cut(self) -> None:
        """End all that runs now, each with an error in its dialect; for the end of the drain."""
        self._cut = True
        for patience in self._running:
            patience.scope.cancel()

    def _out_of_time(self, call: Call, patience: Patience) -> Refusal:
        timeouts = call.timeouts
        if self._cut:
            message = "The gateway shut down before the answer was complete. Retry."
            return Refusal(Outcome.SHED_DRAINING, 503, message, retry_after_s=1)
        if patience.limit_reached:
            message = f"The answer was not complete within {timeouts.request_s:g} s."
            return Refusal(Outcome.TIMEOUT_TOTAL, 504, message)
        if call.client.started:
            return Refusal(Outcome.TIMEOUT_IDLE, 504, f"The engine sent nothing for {timeouts.idle_s:g} s.")
        message = f"The engine did not begin to answer within {timeouts.first_token_s:g} s."
        return Refusal(Outcome.TIMEOUT_FIRST_TOKEN, 504, message)

    def _suspect(self, backend: Backend, error: EngineUnreachable | EngineBroken) -> None:
        """A request failed at `backend`: have it probed at once, and unless it listens, use it no more till then."""
        if isinstance(error, EngineUnreachable):
            backend.failed(f"the engine at {backend.address} cannot be reached ({error.why})")
            self.pools[backend].close_idle()
        else:
            backend.wake_prober()


def _engine_failed(status: int) -> Refusal:
    """An engine's own 5xx. Overload (503) stays what it is; anything else is the gateway's bad gateway."""
    message = f"The engine failed with status {status}. Retry."
    if status == 503:
        return Refusal(Outcome.ENGINE_ERROR, 503, message, retry_after_s=5)
    return Refusal(Outcome.ENGINE_ERROR, 502, message)


def _known(value: T | None) -> T:
    assert value is not None
    return value
