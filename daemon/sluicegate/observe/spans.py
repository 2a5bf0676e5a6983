"""Spans by OpenTelemetry's conventions out of settled records, and their way to a collector. Needs the extra `tracing`.

Conventions: https://opentelemetry.io/docs/specs/semconv/gen-ai/ (in development: names may change) and .../http/.
No span holds any part of a prompt or an answer, nor the words in which an engine failed.
"""

import logging
import socket
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from .. import __version__
from ..account.record import Record
from ..config.schema import Address, Config, TcpAddress
from ..outcome import Kind, Outcome

#: gen_ai.operation.name by endpoint. Another endpoint's span is called by its route.
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/chat/completions/batch": "chat",
    "/v1/completions": "text_completion",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/cohere/v2/chat": "chat",
    "/v1/embeddings": "embeddings",
    "/v2/embed": "embeddings",
}

_LOGGER = logging.getLogger(trace_exporter.__name__)

_SCOPE = InstrumentationScope("sluicegate", __version__)


class Exporter:
    """The way to the collector. Used by one thread; `close` may come from another."""

    def __init__(self, config: Config) -> None:
        """Headers, certificates, compression and time-out: the environment's OTEL_EXPORTER_OTLP_*."""
        endpoint = config.tracing.endpoint
        self.url = endpoint if endpoint.endswith("/v1/traces") else f"{endpoint}/v1/traces"
        self._engine = config.engine.base_url
        self._exporter = trace_exporter.OTLPSpanExporter(endpoint=self.url)
        self.resource = _resource()

    def send(self, settled: Sequence[tuple[Record, int]]) -> str:
        """Send the spans of these records, with tries for some 10 s; why the collector did not take them, or ""."""
        spans = [span_of(record, offset_ns, self._engine, self.resource) for record, offset_ns in settled]
        said = _Said()
        _LOGGER.addFilter(said)
        try:
            result = self._exporter.export(spans)
        finally:
            _LOGGER.removeFilter(said)
        return "" if result is SpanExportResult.SUCCESS else f"{self.url} takes no spans: {said.first}"

    def close(self) -> None:
        """Try no more: a `send` that waits for its next try fails at once, one that waits for an answer goes on."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


class _Said(logging.Filter):
    """Keeps the first of the exporter's messages, and all out of the log, where there would be one for each try."""

    first = ""

    def filter(self, record: logging.LogRecord) -> bool:
        self.first = self.first or record.getMessage()
        return False


def span_of(record: Record, offset_ns: int, engine: Address, resource: Resource) -> ReadableSpan:
    """The span of a settled record that is sampled. `offset_ns`: from the record's clock to the epoch."""
    trace, outcome = record.trace, record.outcome
    assert trace is not None
    assert outcome is not None

    def epoch(at: float | None) -> int | None:
        return None if at is None else int(at * 1e9) + offset_ns

    operation = _OPERATIONS.get(record.endpoint)
    model = record.model or record.model_used or None
    attributes: dict[str, str | int | float | bool | None] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "vllm" if operation else None,
        "gen_ai.request.model": model,
        "gen_ai.request.stream": record.stream or None,
        "gen_ai.response.time_to_first_chunk": record.ttft_s,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "server.address": engine.host if isinstance(engine, TcpAddress) else engine.path,
        "server.port": engine.port if isinstance(engine, TcpAddress) else None,
        "http.route": record.endpoint,
        "http.response.status_code": record.status,
        "error.type": None if outcome is Outcome.SERVED else outcome.value,
        "sluicegate.outcome": outcome.value,
        "sluicegate.request_id": record.request_id,
        "sluicegate.queue_s": record.queue_s,
        "sluicegate.queue_position": record.queue_position,
    }
    events = (
        ("sluicegate.queued", record.queued_at),
        ("sluicegate.granted", record.granted_at),
        ("sluicegate.first_token", record.first_at),
    )
    failed = outcome.kind is Kind.FAULT or (record.status or 0) >= 500
    return ReadableSpan(
        name=f"{operation} {model}" if operation and model else operation or record.endpoint,
        context=_context(trace.trace_id, trace.span_id, trace.flags),
        parent=_context(trace.trace_id, trace.parent_id, trace.flags, remote=True) if trace.parent_id else None,
        resource=resource,
        attributes={name: value for name, value in attributes.items() if value is not None},
        events=[Event(name, timestamp=epoch(at)) for name, at in events if at is not None],
        kind=SpanKind.SERVER,
        status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
        start_time=epoch(record.received_at),
        end_time=epoch(record.ended_at),
        instrumentation_scope=_SCOPE,
    )


def _context(trace_id: str, span_id: str, flags: int, *, remote: bool = False) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), remote, TraceFlags(flags))


def _resource() -> Resource:
    """Who sends: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come first."""
    ours = Resource({"service.name": "sluicegate", "service.version": __version__, "host.name": socket.gethostname()})
    return ours.merge(OTELResourceDetector().detect())
