"""Every metric of the project, in one place and on a registry of its own. docs/observability.md explains each."""

import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
)

from sluicegate.account.record import Record
from sluicegate.observe import buckets
from sluicegate.observe.exposition import expose
from sluicegate.observe.gpu_gauges import GpuGauges, GpuReading
from sluicegate.outcome import Outcome

#: Value of the label `endpoint` for a path that is not in the route table.
OTHER = "other"
#: Value of the label `status` when no HTTP status was sent: the client disconnected before it.
NO_STATUS = "none"
#: Values of the label `model` besides "other". An engine has its model and perhaps some adapters; a series for each of
#: hundreds would cost more than it tells.
MODELS_MAX = 32


@dataclass(frozen=True, slots=True)
class _ModelCounters:
    """The children of one model."""

    requests: Counter
    prompt_tokens: Counter
    completion_tokens: Counter


class Metrics:
    """The daemon's metrics. Make one per daemon; nothing here is global.

    Labels are bounded whatever clients send: `endpoint` is one of `endpoints` or "other", `status` is an HTTP status
    (100 to 599) or "none", `model` one of the first MODELS_MAX that the engine served or "other", the rest are
    enumerations of ours. Safe to call from any thread.
    """

    def __init__(self, endpoints: Iterable[str], version: str) -> None:
        """`endpoints`: the paths of the route table. `version`: of the daemon, for api_build_info."""
        registry = self.registry = CollectorRegistry()
        self._endpoints = {path: path for path in endpoints}

        self._requests = Counter(
            "api_requests_total",
            "Requests that ended, by route and by the HTTP status sent (none: the client disconnected before it).",
            ["endpoint", "status"],
            registry=registry,
        )
        self._latency = Histogram(
            "api_request_latency_seconds",
            "Seconds from a request's head to the end of its answer, for the requests that reached the engine.",
            ["endpoint"],
            buckets=buckets.LATENCY_S,
            registry=registry,
        )
        outcomes = Counter(
            "api_outcomes_total", "Requests that ended, by their one outcome.", ["outcome"], registry=registry
        )
        self._queue_wait = Histogram(
            "api_queue_wait_seconds",
            "Seconds that a request was queued: until its slot, its timeout or its client's disconnect.",
            buckets=buckets.QUEUE_WAIT_S,
            registry=registry,
        )
        self._first_token = Histogram(
            "api_time_to_first_token_seconds",
            "Seconds from a streamed request's head to the first byte of its answer, its time in the queue included.",
            buckets=buckets.FIRST_TOKEN_S,
            registry=registry,
        )
        self._inter_token = Histogram(
            "api_inter_token_seconds",
            "Seconds between two tokens of a stream: the mean of each stream of two tokens or more.",
            buckets=buckets.INTER_TOKEN_S,
            registry=registry,
        )
        tokens = Counter(
            "api_tokens_total", "Tokens that the engine reported in its usage.", ["kind"], registry=registry
        )
        self._model_requests = Counter(
            "api_model_requests_total",
            "Requests that ended, by the model that they were for.",
            ["model"],
            registry=registry,
        )
        self._model_tokens = Counter(
            "api_model_tokens_total",
            "Tokens that the engine reported in its usage, by model.",
            ["model", "kind"],
            registry=registry,
        )
        # Not a gauge: a gauge could only show the request that happened to end last, would stand still when the
        # traffic stops, and cannot be added up over hosts. The throughput of the whole is rate(api_tokens_total).
        self._tokens_per_s = Histogram(
            "api_tokens_per_second",
            "Completion tokens per second that one request got from the engine, from its slot to its last byte.",
            buckets=buckets.TOKENS_PER_S,
            registry=registry,
        )

        self._active = Gauge("api_active_requests", "Requests that hold a slot.", registry=registry)
        self._queued = Gauge("api_queue_depth", "Requests that are queued.", registry=registry)
        self._max_active = Gauge(
            "api_max_active", "Slots: requests that engines may have at one time.", registry=registry
        )
        self._queue_limit = Gauge("api_queue_limit", "Requests that may be queued at one time.", registry=registry)
        self._queue_timeout = Gauge(
            "api_queue_timeout_seconds", "Longest that a request may be queued, in seconds.", registry=registry
        )
        self._client_connections = Gauge("api_client_connections", "Open client connections.", registry=registry)
        self._connections_limit = Gauge(
            "api_client_connections_limit", "Client connections that may be open at one time.", registry=registry
        )
        self._connections_refused = Counter(
            "api_client_connections_refused_total",
            "Client connections that got a 503 because as many as may be were open. Their requests are not counted.",
            registry=registry,
        )
        handshakes_failed = Counter(
            "api_tls_handshakes_failed_total",
            "TLS handshakes that failed, by reason: timeout, crowded (the oldest of too many), closed by the client, "
            "or error.",
            ["reason"],
            registry=registry,
        )
        self._certificate_expiry = Gauge(
            "api_tls_certificate_expiry_timestamp_seconds",
            "When the certificate that clients get expires, or one of its chain, in seconds since 1970.",
            ["certificate"],
            registry=registry,
        )
        engine_connections = Gauge(
            "api_engine_connections", "Open connections to the engine, by state.", ["state"], registry=registry
        )
        self._engine_up = Gauge(
            "api_engine_up", "1 if the engine answers and has a model loaded, else 0.", registry=registry
        )
        self._lines_dropped = Counter(
            "api_log_lines_dropped_total", "Log lines that journald or standard error did not take.", registry=registry
        )
        self._spans_dropped = Counter(
            "api_spans_dropped_total", "Spans of requests that the collector of traces did not get.", registry=registry
        )
        reloads = Counter(
            "api_config_reloads_total",
            "Reloads of the configuration, by result: applied, or refused.",
            ["result"],
            registry=registry,
        )
        self._last_reload = Gauge(
            "api_config_last_reload_successful",
            "0 if the last reload was refused, so that the file and the running configuration differ; else 1.",
            registry=registry,
        )
        build = Info("api_build", "Version of the daemon and of its Python.", registry=registry)

        self._gpus = GpuGauges(registry)

        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        # labels() costs more than the increment itself, so a child is looked up once. The label sets that are known
        # beforehand exist from the start: a series that is born at 1 has no rate for its first event.
        self._outcome_children = {outcome: outcomes.labels(outcome.value) for outcome in Outcome}
        self._prompt_tokens = tokens.labels("prompt")
        self._completion_tokens = tokens.labels("completion")
        self._idle_connections = engine_connections.labels("idle")
        self._busy_connections = engine_connections.labels("busy")
        self._handshakes_failed = {
            reason: handshakes_failed.labels(reason) for reason in ("timeout", "crowded", "closed", "error")
        }
        self._reloads_applied = reloads.labels("applied")
        self._reloads_refused = reloads.labels("refused")
        self._last_reload.set(1)  # it has started with the file as it was
        self._request_children: dict[tuple[str, int | None], Counter] = {}
        self._latency_children: dict[str, Histogram] = {}
        self._other_model = self._model_children(OTHER)
        self._models: dict[str, _ModelCounters] = {}
        build.info({"version": version, "python": platform.python_version()})

    def settled(self, record: Record) -> None:
        """Count one request that ended. A sink of the ledger. Never raises.

        8 to 11 µs for a streamed request that has every value, 1.4 to 2 µs for a refusal.
        """
        endpoint, status = record.endpoint, record.status
        counter = self._request_children.get((endpoint, status))
        if counter is None:
            counter = self._request_child(endpoint, status)
        counter.inc()
        assert record.outcome is not None
        self._outcome_children[record.outcome].inc()
        if (seconds := record.latency_s) is not None:
            histogram = self._latency_children.get(endpoint)
            if histogram is None:
                histogram = self._latency_child(endpoint)
            histogram.observe(seconds)
        if (seconds := record.queue_s) is not None:
            self._queue_wait.observe(seconds)
        if (seconds := record.ttft_s) is not None:
            self._first_token.observe(seconds)
        if (seconds := record.inter_token_s) is not None:
            self._inter_token.observe(seconds)
        if (rate := record.tokens_per_s) is not None:
            self._tokens_per_s.observe(rate)
        by_model = None
        if (model := record.model_used) is not None:
            by_model = self._models.get(model) or self._counters_of(model)
            by_model.requests.inc()
        # A counter refuses to go down, and an engine that reports nonsense must not break a request.
        if (tokens := record.prompt_tokens) is not None and tokens > 0:
            self._prompt_tokens.inc(tokens)
            if by_model is not None:
                by_model.prompt_tokens.inc(tokens)
        if (tokens := record.completion_tokens) is not None and tokens > 0:
            self._completion_tokens.inc(tokens)
            if by_model is not None:
                by_model.completion_tokens.inc(tokens)

    def serves(self, models: Iterable[str]) -> None:
        """The engine serves these: their counters exist from now on, at 0."""
        for model in models:
            self._counters_of(model)

    def bind_gate(
        self,
        active: Callable[[], float],
        queued: Callable[[], float],
        max_active: Callable[[], float],
        queue_limit: Callable[[], float],
        queue_timeout_s: Callable[[], float],
    ) -> None:
        """Read the gate's state at each scrape instead of following it: it costs nothing and is never stale."""
        self._active.set_function(active)
        self._queued.set_function(queued)
        self._max_active.set_function(max_active)
        self._queue_limit.set_function(queue_limit)
        self._queue_timeout.set_function(queue_timeout_s)

    def bind_client_connections(self, count: Callable[[], float], limit: Callable[[], float]) -> None:
        """Read the number of open client connections, and how many there may be, at each scrape."""
        self._client_connections.set_function(count)
        self._connections_limit.set_function(limit)

    def bind_engine_connections(self, idle: Callable[[], float], busy: Callable[[], float]) -> None:
        """Read the number of connections to the engine at each scrape."""
        self._idle_connections.set_function(idle)
        self._busy_connections.set_function(busy)

    def engine_up(self, up: bool) -> None:
        """Say whether the engine can serve."""
        self._engine_up.set(up)

    def connection_refused(self) -> None:
        """Count a client connection above the limit."""
        self._connections_refused.inc()

    def handshake_failed(self, reason: str) -> None:
        """Count a TLS handshake that failed."""
        self._handshakes_failed[reason].inc()

    def certificate(self, name: str, expires_at: float) -> None:
        """Show when the certificate in force expires; without a name there is none."""
        self._certificate_expiry.clear()
        if name:
            self._certificate_expiry.labels(name).set(expires_at)

    def log_line_dropped(self) -> None:
        """Count a log line that was lost."""
        self._lines_dropped.inc()

    def spans_dropped(self, count: int) -> None:
        """Count spans that were lost."""
        self._spans_dropped.inc(count)

    def config_reloaded(self, *, applied: bool) -> None:
        """Count a reload of the configuration."""
        (self._reloads_applied if applied else self._reloads_refused).inc()
        self._last_reload.set(applied)

    def set_gpus(self, readings: Mapping[int, GpuReading]) -> None:
        """Show these readings, by NVML index, and no others."""
        self._gpus.show(readings)

    def expose(self, accept: str | None = None) -> tuple[bytes, str]:
        """Body and content type of GET /metrics, in the format that this Accept header asks for."""
        return expose(self.registry, accept)

    def _request_child(self, endpoint: str, status: int | None) -> Counter:
        label = self._endpoints.get(endpoint, OTHER)
        known = status if status is not None and 100 <= status <= 599 else None
        child = self._requests.labels(label, NO_STATUS if known is None else str(known))
        # Only under the bounded values: the cache must not grow with what clients send either.
        if label is not OTHER and known == status:
            self._request_children[endpoint, status] = child
        return child

    def _counters_of(self, model: str) -> "_ModelCounters":
        if model in self._models:
            return self._models[model]
        if not model or model == OTHER or len(self._models) >= MODELS_MAX:
            return self._other_model
        counters = self._models[model] = self._model_children(model)
        return counters

    def _model_children(self, model: str) -> "_ModelCounters":
        tokens = self._model_tokens
        return _ModelCounters(
            self._model_requests.labels(model), tokens.labels(model, "prompt"), tokens.labels(model, "completion")
        )

    def _latency_child(self, endpoint: str) -> Histogram:
        label = self._endpoints.get(endpoint, OTHER)
        child = self._latency.labels(label)
        if label is not OTHER:
            self._latency_children[endpoint] = child
        return child
