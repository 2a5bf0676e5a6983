"""The names that users rely on, written out: a change of one of them is a change for every dashboard, alert and script.

The list was taken from a release. A new name is added here with its entry in CHANGELOG.md; none is changed or removed.
"""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sluicegate.accept.app import make_app
from sluicegate.account.record import LOGGED, Record
from sluicegate.config.settings import SETTINGS
from sluicegate.dialects.routes import ENDPOINTS, LOOKUPS, PATHS
from sluicegate.engines.engine import EngineState
from sluicegate.observe.gpu_gauges import GpuReading
from sluicegate.observe.logs import Fields
from sluicegate.observe.metrics import Metrics
from sluicegate.outcome import Outcome

#: Metric → its type, and its labels but for a histogram's `le`.
METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "api_requests_total": ("counter", ("endpoint", "status")),
    "api_request_latency_seconds": ("histogram", ("endpoint",)),
    "api_outcomes_total": ("counter", ("outcome",)),
    "api_queue_wait_seconds": ("histogram", ()),
    "api_time_to_first_token_seconds": ("histogram", ()),
    "api_inter_token_seconds": ("histogram", ()),
    "api_tokens_total": ("counter", ("kind",)),
    "api_model_requests_total": ("counter", ("model",)),
    "api_model_tokens_total": ("counter", ("kind", "model")),
    "api_tokens_per_second": ("histogram", ()),
    "api_active_requests": ("gauge", ()),
    "api_queue_depth": ("gauge", ()),
    "api_max_active": ("gauge", ()),
    "api_queue_limit": ("gauge", ()),
    "api_queue_timeout_seconds": ("gauge", ()),
    "api_client_connections": ("gauge", ()),
    "api_client_connections_limit": ("gauge", ()),
    "api_client_connections_refused_total": ("counter", ()),
    "api_tls_handshakes_failed_total": ("counter", ("reason",)),
    "api_tls_certificate_expiry_timestamp_seconds": ("gauge", ("certificate",)),
    "api_engine_connections": ("gauge", ("state",)),
    "api_engine_up": ("gauge", ()),
    "api_log_lines_dropped_total": ("counter", ()),
    "api_spans_dropped_total": ("counter", ()),
    "api_config_reloads_total": ("counter", ("result",)),
    "api_config_last_reload_successful": ("gauge", ()),
    "api_build_info": ("gauge", ("python", "version")),
    "api_gpu_available": ("gauge", ()),
    "api_gpu_utilization_ratio": ("gauge", ("gpu",)),
    "api_gpu_memory_used_bytes": ("gauge", ("gpu",)),
    "api_gpu_memory_total_bytes": ("gauge", ("gpu",)),
    "api_gpu_temperature_celsius": ("gauge", ("gpu",)),
    "api_gpu_power_watts": ("gauge", ("gpu",)),
    "process_virtual_memory_bytes": ("gauge", ()),
    "process_resident_memory_bytes": ("gauge", ()),
    "process_start_time_seconds": ("gauge", ()),
    "process_cpu_seconds_total": ("counter", ()),
    "process_open_fds": ("gauge", ()),
    "process_max_fds": ("gauge", ()),
    "python_info": ("gauge", ("implementation", "major", "minor", "patchlevel", "version")),
    "python_gc_objects_collected_total": ("counter", ("generation",)),
    "python_gc_objects_uncollectable_total": ("counter", ("generation",)),
    "python_gc_collections_total": ("counter", ("generation",)),
}

#: (Metric, label) → the values that do not come from a request, an engine, a GPU or a version.
LABEL_VALUES = {
    ("api_engine_connections", "state"): {"idle", "busy"},
    ("api_tokens_total", "kind"): {"prompt", "completion"},
    ("api_model_tokens_total", "kind"): {"prompt", "completion"},
    ("api_tls_handshakes_failed_total", "reason"): {"timeout", "crowded", "closed", "error"},
    ("api_config_reloads_total", "result"): {"applied", "refused"},
    ("api_requests_total", "status"): {"200", "none"},
    ("api_requests_total", "endpoint"): {"/v1/chat/completions", "other"},
}

OUTCOMES = {
    "served",
    "client_gone_queued",
    "client_gone_active",
    "shed_busy",
    "shed_queue_full",
    "shed_queue_timeout",
    "shed_draining",
    "shed_exhausted",
    "engine_unavailable",
    "engine_error",
    "engine_truncated",
    "timeout_first_token",
    "timeout_idle",
    "timeout_total",
    "client_stalled",
    "invalid",
    "too_large",
    "internal_error",
}

LOG_EVENTS = {
    "certificate",
    "crashed",
    "cut",
    "draining",
    "engine_degraded",
    "engine_down",
    "engine_starting",
    "engine_up",
    "few_descriptors",
    "gpu_available",
    "gpu_unavailable",
    "library",
    "listen_ignored",
    "listening",
    "reload_refused",
    "scrape",
    "reloaded",
    "request",
    "stopped",
    "tracing_down",
    "tracing_up",
    "tls_unused",
    "wedged",
}

#: Besides `time`, `level` and `event`; for journald in capitals behind SLUICEGATE_.
LOG_FIELDS = {
    "request_id",
    "outcome",
    "status",
    "endpoint",
    "client",
    "method",
    "path",
    "model",
    "stream",
    "queue_position",
    "queue_s",
    "ttft_s",
    "total_s",
    "prompt_tokens",
    "completion_tokens",
    "tokens_per_s",
    "version",
    "pid",
    "listen",
    "engine",
    "models",
    "config",
    "signal",
    "active",
    "waiting",
    "max_active",
    "queue_limit",
    "connections",
    "count",
    "seconds",
    "logger",
    "error",
    "detail",
}

#: TOML key → environment variable, default as it is written, range or words, and whether a change needs a restart.
CONFIGURATION: dict[str, tuple[str | None, str, tuple[float | str | None, ...], bool]] = {
    "listen": ("LISTEN", '"127.0.0.1:8080"', (), True),
    "engine.base_url": ("VLLM_BASE_URL", '"http://127.0.0.1:8000"', (), True),
    "engine.model_name": ("MODEL_NAME", '""', (), False),
    "engine.api_key": (None, '""', (), False),
    "engine.probe_interval_s": (None, "1.0", (0.05, 60), False),
    "engine.connect_timeout_s": (None, "2.0", (0.05, 60), False),
    "engine.pass_headers": (
        None,
        '["x-data-parallel-rank", "x-session-id", "x-vllm-priority", "endpoint-load-metrics-format"]',
        (),
        False,
    ),
    "admission.max_active": ("MAX_ACTIVE", "2", (1, 65536), False),
    "admission.queue_mode": ("QUEUE_MODE", '"queue"', ("queue", "reject"), False),
    "admission.queue_max": ("QUEUE_MAX", "100", (0, 65536), False),
    "admission.queue_timeout_s": ("QUEUE_TIMEOUT_S", "120.0", (0.01, 86400), False),
    "timeouts.request_s": ("REQUEST_TIMEOUT_S", "300.0", (0.01, 86400), False),
    "timeouts.first_token_s": (None, "120.0", (0.01, 86400), False),
    "timeouts.idle_s": (None, "60.0", (0.01, 86400), False),
    "timeouts.client_stall_s": (None, "15.0", (0.01, 3600), False),
    "timeouts.head_read_s": (None, "10.0", (0.01, 600), False),
    "timeouts.body_read_s": (None, "60.0", (0.01, 3600), False),
    "timeouts.keep_alive_s": (None, "75.0", (0.01, 3600), False),
    "timeouts.drain_s": (None, "30.0", (0, 86400), False),
    "limits.body_max_bytes": (None, "33554432", (1024, 1073741824), False),
    "limits.bodies_max_bytes": (None, "536870912", (1024, 1 << 40), False),
    "limits.header_max_bytes": (None, "32768", (1024, 1048576), False),
    "limits.connections_max": (None, "4096", (1, 65536), False),
    "limits.answer_max_bytes": (None, "67108864", (1024, 1073741824), False),
    "streams.final_frame": (None, '"comment"', ("comment", "off"), False),
    "streams.ping_s": (None, "0.0", (0, 3600), False),
    "cors.origins": (None, "[]", (), False),
    "proxies.trusted": (None, "[]", (), False),
    "tls.certificate": (None, '""', (), False),
    "tls.key": (None, '""', (), False),
    "tls.client_ca": (None, '""', (), False),
    "log.format": ("LOG_FORMAT", '"auto"', ("auto", "text", "json", "journal"), True),
    "log.level": ("LOG_LEVEL", '"info"', ("debug", "info", "warning", "error"), False),
    "gpu.sample_interval_s": (None, "5.0", (0.1, 600), False),
    "tracing.endpoint": (None, '""', (), True),
    "tracing.sample_ratio": (None, "1.0", (0, 1), False),
}

#: Path → whether it takes a slot. All are POST.
ADMITTED = {
    "/v1/chat/completions": True,
    "/v1/completions": True,
    "/v1/responses": True,
    "/v1/messages": True,
    "/v1/embeddings": True,
    "/v1/rerank": True,
    "/v1/score": True,
    "/v1/audio/transcriptions": True,
    "/tokenize": False,
    "/detokenize": False,
    "/v1/messages/count_tokens": False,
    "/v1/chat/completions/batch": True,
    "/cohere/v2/chat": True,
    "/invocations": True,
    "/v2/embed": True,
    "/rerank": True,
    "/v2/rerank": True,
    "/score": True,
    "/classify": True,
    "/pooling": True,
    "/generative_scoring": True,
    "/v1/systemone": True,
    "/v1/decisions": True,
    "/v1/audio/translations": True,
    "/version": False,
    "/v1/responses/{response_id}": False,
    "/v1/responses/{response_id}/cancel": False,
}

#: Answered by the gateway itself. All are GET; /ping is POST, too.
OWN_ROUTES = {"/health", "/ready", "/ping", "/metrics", "/engine/metrics", "/v1/models", "/v1/models/<name:model>"}


@pytest.fixture(scope="module")
def exposed() -> dict[str, Any]:
    """Metric → its family, as a scraper reads GET /metrics after everything has happened once."""
    metrics = Metrics(PATHS, "0")
    chat = Record("r1", "/v1/chat/completions", 0.0, ended_at=1.0, status=200, model_used="m", outcome=Outcome.SERVED)
    metrics.settled(chat)
    metrics.settled(Record("r2", "/nowhere", 0.0, outcome=Outcome.INVALID))
    metrics.certificate("/etc/sluicegate/tls/certificate.pem", 2e9)
    metrics.set_gpus({0: GpuReading(0.5, 1.0, 2.0, 50.0, 100.0)})
    families = text_string_to_metric_families(metrics.expose()[0].decode())
    return {family.name + ("_total" if family.type == "counter" else ""): family for family in families}


def test_metrics(exposed: dict[str, Any]) -> None:
    found = {
        name: (family.type, tuple(sorted({label for sample in family.samples for label in sample.labels} - {"le"})))
        for name, family in exposed.items()
    }
    assert found == METRICS


@pytest.mark.parametrize(("name", "label"), LABEL_VALUES)
def test_label_values(exposed: dict[str, Any], name: str, label: str) -> None:
    assert {sample.labels[label] for sample in exposed[name].samples} == LABEL_VALUES[name, label]


def test_outcomes_and_their_label(exposed: dict[str, Any]) -> None:
    assert {outcome.value for outcome in Outcome} == OUTCOMES
    assert {sample.labels["outcome"] for sample in exposed["api_outcomes_total"].samples} == OUTCOMES


def test_log_fields() -> None:
    assert {*Fields.__annotations__, *LOGGED} == LOG_FIELDS


def test_log_events() -> None:
    """Those that the package's calls of the log name, wherever they stand."""
    spec = importlib.util.find_spec("sluicegate")
    assert spec is not None
    assert spec.submodule_search_locations
    [root] = spec.submodule_search_locations
    sources = Path(root).rglob("*.py")
    assert {event for path in sources for event in _events(ast.parse(path.read_text()))} == LOG_EVENTS


def _events(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        level = node.func.attr
        name = node.args[level == "emit"] if len(node.args) > (level == "emit") else None
        if level not in ("debug", "info", "warning", "error", "emit") or not _is_log(node.func.value):
            continue
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            yield name.value
        elif isinstance(name, ast.JoinedStr) and ast.unparse(name).startswith("f'engine_"):
            yield from (f"engine_{state.value}" for state in EngineState if state is not EngineState.UP)


def _is_log(node: ast.expr) -> bool:
    """`log`, `self._log`, `gateway.log`; in the log itself `self`."""
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name in ("log", "_log", "self")


def test_configuration() -> None:
    found = {
        key: (
            setting.env,
            setting.write(setting.default),
            setting.choices or ((setting.low, setting.high) if setting.low is not None else ()),
            setting.restart,
        )
        for key, setting in SETTINGS.items()
    }
    assert found == CONFIGURATION


def test_routes() -> None:
    assert {endpoint.path: endpoint.needs_slot for endpoint in (*ENDPOINTS.values(), *LOOKUPS)} == ADMITTED
    nothing: Any = None
    app = make_app(nothing, nothing, nothing, nothing)
    rules = {rule.rule: rule.methods or set() for rule in app.url_map.iter_rules() if rule.endpoint != "static"}
    assert set(rules) == OWN_ROUTES
    assert all(methods - {"HEAD", "OPTIONS"} <= {"GET"} for rule, methods in rules.items() if rule != "/ping")
