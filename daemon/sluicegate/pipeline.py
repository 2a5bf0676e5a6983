"""THE request: understand, admit, deliver, settle. Read this first; the stages know nothing of each other."""

from . import refusals
from .account.ledger import Ledger
from .admit.admission import Admission
from .admit.claim import Claim
from .bodies import Bodies, Room
from .config.live import Live
from .delivery import Call, Delivery
from .dialects.facts import for_engine, understand
from .engines.engine import Engines
from .exchange import Client, ClientGone, ClientStalled, Request
from .observe.foreign import describe
from .observe.tracing import Tracing
from .outcome import Outcome, Refusal
from .pings import ping_s, pinged


class Pipeline:
    """Takes every request from its head to its one outcome."""

    def __init__(
        self,
        config: Live,
        admission: Admission,
        engines: Engines,
        delivery: Delivery,
        ledger: Ledger,
        tracing: Tracing | None = None,
    ) -> None:
        self.config = config
        self.admission = admission
        self.engines = engines
        self.delivery = delivery
        self.ledger = ledger
        self.tracing = tracing
        self.bodies = Bodies(config)
        self._without_slot = Room(self.bodies, engines.check)
        self._with_slot = Room(self.bodies, engines.check, admission.check)

    async def handle(self, request: Request, client: Client) -> None:
        """Serve `request`, or refuse it in its dialect. Cancel it when the client disconnects; it raises nothing else.

        A mistake of ours ends one request, with 500 and its place in the log, and not the daemon.
        """
        record = self.ledger.open(request.id, request.endpoint.path, received_at=request.received_at)
        record.client = request.client or None
        if self.tracing is not None:
            self.tracing.begin(request, record)
        call = Call(request, client, record, self.config.current.timeouts)
        client.timing = call.timing
        outcome: Outcome | None = None
        try:
            try:
                outcome = await self._serve(call)
            except Refusal as refusal:
                outcome, record.detail = refusal.outcome, refusal.detail
                await self._refuse(call, refusal)
            except (ClientGone, ClientStalled):
                raise
            except Exception as error:
                # First of all the record: the client may have disconnected, and the refusal not get any further.
                outcome, record.detail = Outcome.INTERNAL_ERROR, describe(error)
                message = f"Internal error. See the gateway log for request ID {request.id}."
                await self._refuse(call, Refusal(outcome, 500, message))
        except ClientGone:
            pass
        except ClientStalled:
            outcome = outcome or Outcome.CLIENT_STALLED
        finally:
            call.let_go_of_the_body()
            client.timing = None  # or call and client would be a cycle, for the garbage collector to find
            self.ledger.settle(record, outcome or _ended_by_client(call))

    async def _serve(self, call: Call) -> Outcome:
        await self.engines.probed()  # before that the default model is not known either
        await self._understand(call)
        self.engines.check()  # no engine is up: refused before it takes a slot or a place in the queue
        if call.stream and (every_s := ping_s(call.request, self.config.current.streams.ping_s)):
            return await pinged(call, every_s, self._admit)
        return await self._admit(call)

    async def _admit(self, call: Call) -> Outcome:
        request, record = call.request, call.record
        model = record.model_used or ""
        if not request.endpoint.needs_slot:
            call.started_at = request.received_at
            return await self.delivery.deliver(
                call, self.engines.first(model), lambda tried: self.engines.other(model, tried)
            )
        ticket = self.admission.enter(Claim(model=model))
        try:
            if ticket.queued:
                record.queued_at, record.queue_position = ticket.arrived_at, ticket.position
                await self.admission.wait(ticket)
            call.started_at = record.granted_at = ticket.granted_at
            assert ticket.engine is not None
            return await self.delivery.deliver(call, ticket.engine, lambda tried: self.admission.move(ticket, tried))
        finally:
            self.admission.settle(ticket)

    async def _understand(self, call: Call) -> None:
        """Read what matters of the request's body, and make the one that the engine gets.

        A body that has not come with its head is read only if it is not sure already that the request is refused.
        """
        request, record = call.request, call.record
        if request.endpoint.bodiless:
            # It may send one all the same. Which model it is about, nobody knows.
            await request.body.whole(self._without_slot)
            return
        models = self.engines.models
        default = self.config.current.engine.model_name or next(iter(models), "")
        if request.endpoint.opaque:
            call.body = request.body.parts(self._without_slot)
            model = default
        else:
            raw = await request.body.whole(self._with_slot if request.endpoint.needs_slot else self._without_slot)
            facts = understand(request.endpoint, raw)
            call.body = for_engine(request.endpoint, raw, facts, default)
            call.stream, call.usage_asked = facts.stream, facts.usage_asked
            record.stream = facts.stream
            record.model = facts.model if facts.model in models else None
            model = facts.model or default
        record.model_used = model if model in models else ""

    async def _refuse(self, call: Call, refusal: Refusal) -> None:
        """Tell the client in its dialect: by a status while that is possible, by a last event of its stream after."""
        client, dialect = call.client, call.request.endpoint.dialect
        if client.started:
            event = refusals.last_event(dialect, refusal, call.meter.next_sequence_number if call.meter else 0)
            await client.send((b"\n\n" if call.splitter.mid_event else b"") + event)
            await client.finish()
            return
        call.record.status = refusal.status
        answer = refusals.answer(dialect, refusal)
        await client.respond(answer.status, answer.headers, answer.body)


def _ended_by_client(call: Call) -> Outcome:
    """The outcome of a call that was cancelled, or whose client was found disconnected while it was sent to."""
    if call.answered:
        return Outcome.SERVED  # SDKs close at [DONE], before the end of the body
    return Outcome.CLIENT_GONE_QUEUED if call.started_at is None else Outcome.CLIENT_GONE_ACTIVE
