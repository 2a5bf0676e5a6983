"""What a span says of a request; tests/wire/test_tracing.py shows how it gets there."""

import dataclasses
from contextlib import closing

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanKind, StatusCode

from sluicegate import __version__
from sluicegate.account.record import Record
from sluicegate.account.trace import Trace
from sluicegate.config.schema import Config, TcpAddress, TracingConfig, UnixAddress
from sluicegate.dialects.routes import PATHS
from sluicegate.observe.spans import Exporter, span_of
from sluicegate.outcome import Kind, Outcome

RESOURCE = Resource({})
S = 1_000_000_000
TRACE = Trace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7", 1)


def record(endpoint: str = "/v1/completions", outcome: Outcome = Outcome.SERVED, **known: object) -> Record:
    fields = {"received_at": 10.0, "ended_at": 14.0, "trace": TRACE, "outcome": outcome, **known}
    return dataclasses.replace(Record("id", endpoint, 0.0), **fields)  # type: ignore[arg-type]


def test_times_are_counted_from_the_epoch() -> None:
    queued = record(queued_at=10.5, queue_position=3, granted_at=12.0, first_at=13.0, stream=True)
    span = span_of(queued, 1000 * S, TcpAddress("::1", 80), RESOURCE)
    assert (span.start_time, span.end_time) == (1010 * S, 1014 * S)
    assert [(event.name, event.timestamp) for event in span.events] == [
        ("sluicegate.queued", 1010 * S + S // 2),
        ("sluicegate.granted", 1012 * S),
        ("sluicegate.first_token", 1013 * S),
    ]
    assert span.attributes is not None
    assert span.attributes["sluicegate.queue_s"] == 1.5
    assert span.attributes["gen_ai.response.time_to_first_chunk"] == 3.0
    assert (span.attributes["server.address"], span.attributes["server.port"]) == ("::1", 80)


def test_an_engine_on_a_unix_socket_has_no_port() -> None:
    span = span_of(record(), 0, UnixAddress("/run/vllm.sock"), RESOURCE)
    assert span.attributes is not None
    assert span.attributes["server.address"] == "/run/vllm.sock"
    assert "server.port" not in span.attributes


@pytest.mark.parametrize(
    ("endpoint", "model", "name"),
    [
        ("/v1/completions", "m", "text_completion m"),
        ("/v1/completions", "", "text_completion"),
        ("/v1/messages", "m", "chat m"),
        ("/v1/embeddings", "m", "embeddings m"),
        ("/v1/rerank", "m", "/v1/rerank"),
        ("/v1/responses/{response_id}", None, "/v1/responses/{response_id}"),
    ],
)
def test_its_name_is_one_of_a_few(endpoint: str, model: str | None, name: str) -> None:
    """The operation and a model that the engine knows, or the route: a client cannot make a new one."""
    assert endpoint in PATHS
    span = span_of(record(endpoint, model_used=model), 0, TcpAddress("e", 1), RESOURCE)
    assert (span.name, span.kind) == (name, SpanKind.SERVER)


@pytest.mark.parametrize("outcome", Outcome)
def test_what_counts_as_an_error(outcome: Outcome) -> None:
    """A fault, or a status from 500 on; what a client did is none of the server's errors."""
    for status in (None, 200, 429, 503):
        span = span_of(record(outcome=outcome, status=status), 0, TcpAddress("e", 1), RESOURCE)
        failed = outcome.kind is Kind.FAULT or status == 503
        assert (span.status.status_code is StatusCode.ERROR) is failed
        assert span.attributes is not None
        assert span.attributes.get("error.type") == (None if outcome is Outcome.SERVED else outcome.value)


@pytest.mark.parametrize("environ", [{}, {"OTEL_SERVICE_NAME": "gate", "OTEL_RESOURCE_ATTRIBUTES": "team=ml"}])
def test_the_environment_says_who_sends(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with closing(Exporter(Config())) as exporter:
        said = exporter.resource.attributes
    assert said["service.name"] == environ.get("OTEL_SERVICE_NAME", "sluicegate")
    assert said["service.version"] == __version__
    assert said.get("team") == ("ml" if environ else None)


@pytest.mark.parametrize("endpoint", ["https://otel/api", "https://otel/api/v1/traces"])
def test_the_path_is_added_once(endpoint: str) -> None:
    with closing(Exporter(Config(tracing=TracingConfig(endpoint)))) as exporter:
        assert exporter.url == "https://otel/api/v1/traces"
