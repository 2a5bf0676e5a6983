import gc
import os
import tracemalloc
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from sluicegate.account.record import Record
from sluicegate.observe.gpu_gauges import GpuReading
from sluicegate.observe.metrics import MODELS_MAX, Metrics
from sluicegate.outcome import Outcome

CHAT = "/v1/chat/completions"
#: Far below what a dictionary entry for each of 1000 requests takes, which is some 100 000 (bytes).
GROWTH_MAX = 20_000
FACTS = (
    "model_used",
    "latency_s",
    "queue_s",
    "ttft_s",
    "inter_token_s",
    "tokens_per_s",
    "prompt_tokens",
    "completion_tokens",
)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics([CHAT, "/tokenize"], "1.2.3")


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def settle(metrics: Metrics, endpoint: str, status: int | None, outcome: Outcome, **facts: Any) -> None:
    """Settle a record of which no more is known than these facts."""
    unknown = dict.fromkeys(FACTS)
    record = SimpleNamespace(endpoint=endpoint, status=status, outcome=outcome, **(unknown | facts))
    metrics.settled(cast(Record, record))


def series(metrics: Metrics, name: str) -> list[dict[str, str]]:
    """Labels of every series of `name`."""
    return [s.labels for family in metrics.registry.collect() for s in family.samples if s.name == name]


def test_a_settled_request_is_counted_everywhere(metrics: Metrics) -> None:
    settle(
        metrics,
        CHAT,
        200,
        Outcome.SERVED,
        latency_s=2.0,
        queue_s=0.5,
        ttft_s=0.7,
        inter_token_s=0.02,
        tokens_per_s=40.0,
        prompt_tokens=11,
        completion_tokens=60,
    )
    assert value(metrics, "api_requests_total", endpoint=CHAT, status="200") == 1
    assert value(metrics, "api_outcomes_total", outcome="served") == 1
    assert value(metrics, "api_request_latency_seconds_sum", endpoint=CHAT) == 2.0
    assert value(metrics, "api_queue_wait_seconds_sum") == 0.5
    assert value(metrics, "api_time_to_first_token_seconds_sum") == 0.7
    assert value(metrics, "api_inter_token_seconds_sum") == 0.02
    assert value(metrics, "api_tokens_per_second_sum") == 40.0
    assert value(metrics, "api_tokens_total", kind="prompt") == 11
    assert value(metrics, "api_tokens_total", kind="completion") == 60


def test_what_does_not_apply_is_not_observed(metrics: Metrics) -> None:
    settle(metrics, CHAT, 429, Outcome.SHED_BUSY)
    assert value(metrics, "api_requests_total", endpoint=CHAT, status="429") == 1
    assert series(metrics, "api_request_latency_seconds_count") == []
    for name in (
        "api_queue_wait_seconds",
        "api_time_to_first_token_seconds",
        "api_inter_token_seconds",
        "api_tokens_per_second",
    ):
        assert value(metrics, f"{name}_count") == 0
    assert value(metrics, "api_tokens_total", kind="prompt") == 0


def test_tokens_below_zero_are_not_counted(metrics: Metrics) -> None:
    settle(metrics, CHAT, 200, Outcome.SERVED, prompt_tokens=-1, completion_tokens=-5)
    assert value(metrics, "api_tokens_total", kind="prompt") == 0
    assert value(metrics, "api_tokens_total", kind="completion") == 0


def test_every_outcome_exists_before_it_happens(metrics: Metrics) -> None:
    assert {labels["outcome"] for labels in series(metrics, "api_outcomes_total")} == {o.value for o in Outcome}
    assert all(value(metrics, "api_outcomes_total", outcome=outcome) == 0 for outcome in Outcome)


def test_labels_stay_bounded_whatever_comes(metrics: Metrics) -> None:
    def settle_unlike(start: int) -> int:
        """Settle requests of which no two are alike; the memory in use then (bytes)."""
        for attempt in range(start, start + 1000):
            settle(metrics, f"/etc/{attempt}", 404, Outcome.INVALID, latency_s=1.0)
            settle(metrics, CHAT, 1000 + attempt, Outcome.ENGINE_ERROR, latency_s=1.0)
            settle(metrics, CHAT, -attempt, Outcome.ENGINE_ERROR)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = settle_unlike(0)
        assert settle_unlike(1000) - before < GROWTH_MAX, "something is kept for each request"
    finally:
        tracemalloc.stop()
    settle(metrics, CHAT, None, Outcome.CLIENT_GONE_QUEUED)
    assert value(metrics, "api_requests_total", endpoint="other", status="404") == 2000
    assert value(metrics, "api_requests_total", endpoint=CHAT, status="none") == 4001
    assert len(series(metrics, "api_requests_total")) == 2
    assert {labels["endpoint"] for labels in series(metrics, "api_request_latency_seconds_count")} == {"other", CHAT}


@pytest.mark.parametrize(("status", "label"), [(100, "100"), (599, "599"), (99, "none"), (600, "none"), (0, "none")])
def test_the_status_label_is_an_http_status_or_none(metrics: Metrics, status: int, label: str) -> None:
    settle(metrics, CHAT, status, Outcome.SERVED)
    assert series(metrics, "api_requests_total") == [{"endpoint": CHAT, "status": label}]


def test_gate_and_connections_are_read_at_the_scrape(metrics: Metrics) -> None:
    state = {"active": 1, "waiting": 2, "slots": 3, "limit": 4, "clients": 5, "idle": 6, "busy": 7}
    state |= {"timeout": 8, "connections": 9}
    metrics.bind_gate(
        active=lambda: state["active"],
        queued=lambda: state["waiting"],
        max_active=lambda: state["slots"],
        queue_limit=lambda: state["limit"],
        queue_timeout_s=lambda: state["timeout"],
    )
    metrics.bind_client_connections(lambda: state["clients"], limit=lambda: state["connections"])
    metrics.bind_engine_connections(idle=lambda: state["idle"], busy=lambda: state["busy"])

    def seen() -> list[float | None]:
        return [
            value(metrics, "api_active_requests"),
            value(metrics, "api_queue_depth"),
            value(metrics, "api_max_active"),
            value(metrics, "api_queue_limit"),
            value(metrics, "api_client_connections"),
            value(metrics, "api_engine_connections", state="idle"),
            value(metrics, "api_engine_connections", state="busy"),
            value(metrics, "api_queue_timeout_seconds"),
            value(metrics, "api_client_connections_limit"),
        ]

    assert seen() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    state |= {"active": 10, "busy": 70}
    assert seen() == [10, 2, 3, 4, 5, 6, 70, 8, 9]


def test_engine_up_and_build_info(metrics: Metrics) -> None:
    assert value(metrics, "api_engine_up") == 0
    metrics.engine_up(True)
    assert value(metrics, "api_engine_up") == 1
    metrics.engine_up(False)
    assert value(metrics, "api_engine_up") == 0
    assert [labels["version"] for labels in series(metrics, "api_build_info")] == ["1.2.3"]


def test_missing_gpu_leaves_no_stale_value(metrics: Metrics) -> None:
    """A GPU or a reading that is gone leaves no stale value."""
    whole = GpuReading(0.5, 1e9, 2e9, 60, 300)
    metrics.set_gpus({0: whole, 1: whole})
    assert value(metrics, "api_gpu_available") == 1
    assert value(metrics, "api_gpu_utilization_ratio", gpu="1") == 0.5
    assert value(metrics, "api_gpu_memory_used_bytes", gpu="1") == 1e9
    assert value(metrics, "api_gpu_memory_total_bytes", gpu="1") == 2e9
    assert value(metrics, "api_gpu_temperature_celsius", gpu="1") == 60

    metrics.set_gpus({0: GpuReading(0.0, 1e9, 2e9, 60, None)})
    assert value(metrics, "api_gpu_utilization_ratio", gpu="0") == 0.0
    assert value(metrics, "api_gpu_utilization_ratio", gpu="1") is None
    assert series(metrics, "api_gpu_power_watts") == []

    metrics.set_gpus({})
    assert value(metrics, "api_gpu_available") == 0
    assert series(metrics, "api_gpu_memory_used_bytes") == []

    metrics.set_gpus({0: whole})
    assert value(metrics, "api_gpu_power_watts", gpu="0") == 300


def test_two_daemons_in_one_process_do_not_mix(metrics: Metrics) -> None:
    other = Metrics([CHAT], "1.2.3")
    settle(other, CHAT, 200, Outcome.SERVED)
    other.log_line_dropped()
    assert value(other, "api_log_lines_dropped_total") == 1
    assert value(metrics, "api_outcomes_total", outcome="served") == 0
    assert value(metrics, "api_log_lines_dropped_total") == 0


def test_the_process_is_described(metrics: Metrics) -> None:
    resident = value(metrics, "process_resident_memory_bytes")
    assert resident is not None
    assert resident > os.sysconf("SC_PAGESIZE")
    assert series(metrics, "python_info") != []
    assert len(series(metrics, "python_gc_collections_total")) == 3


PROMETHEUS_2_42 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


def shortened(accept: object) -> str:
    return str(accept)[:40]


@pytest.mark.parametrize(
    "accept",
    [PROMETHEUS_2_42, PROMETHEUS_3, "Application/OpenMetrics-Text", "application/openmetrics-text;x"],
    ids=shortened,
)
def test_openmetrics_for_who_prefers_it(metrics: Metrics, accept: str) -> None:
    settle(metrics, CHAT, 200, Outcome.SERVED, latency_s=1.0)
    body, content_type = metrics.expose(accept)
    assert content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert body.endswith(b"# EOF\n")
    families = {family.name: family for family in parse_openmetrics(body.decode())}  # type: ignore[no-untyped-call]
    assert families["api_requests"].samples[0].value == 1


@pytest.mark.parametrize(
    "accept",
    [
        None,
        "",
        "*/*",
        "text/plain",
        "text/plain,application/openmetrics-text;q=0.5",
        "application/openmetrics-text;version=0.0.1",
        "application/openmetrics-text;version=\x7f",
        "application/openmetrics-text;q=0",
        "application/openmetrics-text;q=nonsense",
        "application/openmetrics-text;q=nan",
        "," * 5000 + "application/openmetrics-text",
    ],
    ids=shortened,
)
def test_prometheus_text_for_everybody_else(metrics: Metrics, accept: str | None) -> None:
    settle(metrics, CHAT, 200, Outcome.SERVED)
    body, content_type = metrics.expose(accept)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in parse_text(body.decode())}
    assert families["api_requests"].samples[0].value == 1


@pytest.mark.parametrize("accept", [None, PROMETHEUS_3])
def test_no_created_series(metrics: Metrics, accept: str | None) -> None:
    settle(metrics, CHAT, 200, Outcome.SERVED, latency_s=1.0)
    body, _ = metrics.expose(accept)
    assert b"_created" not in body


# --- by model ---


def test_requests_and_tokens_are_counted_by_model(metrics: Metrics) -> None:
    settle(metrics, CHAT, 200, Outcome.SERVED, model_used="a", prompt_tokens=3, completion_tokens=5)
    settle(metrics, CHAT, 200, Outcome.SERVED, model_used="a", prompt_tokens=4)
    settle(metrics, CHAT, 429, Outcome.SHED_BUSY, model_used="b")
    settle(metrics, CHAT, 404, Outcome.INVALID, model_used="")
    settle(metrics, CHAT, 400, Outcome.INVALID)
    assert value(metrics, "api_model_requests_total", model="a") == 2
    assert value(metrics, "api_model_requests_total", model="b") == 1
    assert value(metrics, "api_model_requests_total", model="other") == 1
    assert value(metrics, "api_model_tokens_total", model="a", kind="prompt") == 7
    assert value(metrics, "api_model_tokens_total", model="a", kind="completion") == 5
    assert value(metrics, "api_tokens_total", kind="prompt") == 7


def test_models_that_are_served_are_there_from_the_start(metrics: Metrics) -> None:
    assert value(metrics, "api_model_requests_total", model="other") == 0
    metrics.serves(["a", "b"])
    metrics.serves(["a"])
    assert value(metrics, "api_model_requests_total", model="b") == 0
    assert value(metrics, "api_model_tokens_total", model="b", kind="completion") == 0
    assert len(series(metrics, "api_model_requests_total")) == 3


def test_there_are_no_more_models_than_the_bound(metrics: Metrics) -> None:
    metrics.serves(f"adapter-{number}" for number in range(MODELS_MAX))
    for number in range(1000):
        settle(metrics, CHAT, 200, Outcome.SERVED, model_used=f"more-{number}", completion_tokens=1)
    settle(metrics, CHAT, 200, Outcome.SERVED, model_used="adapter-31", completion_tokens=1)
    settle(metrics, CHAT, 200, Outcome.SERVED, model_used="other", completion_tokens=1)
    assert len(series(metrics, "api_model_requests_total")) == MODELS_MAX + 1
    assert value(metrics, "api_model_requests_total", model="other") == 1001
    assert value(metrics, "api_model_tokens_total", model="other", kind="completion") == 1001
    assert value(metrics, "api_model_requests_total", model="adapter-31") == 1


def test_reloads_are_counted_and_the_last_one_is_shown(metrics: Metrics) -> None:
    assert value(metrics, "api_config_last_reload_successful") == 1
    assert value(metrics, "api_config_reloads_total", result="refused") == 0
    metrics.config_reloaded(applied=False)
    assert value(metrics, "api_config_last_reload_successful") == 0
    metrics.config_reloaded(applied=True)
    assert value(metrics, "api_config_last_reload_successful") == 1
    assert value(metrics, "api_config_reloads_total", result="applied") == 1
    assert value(metrics, "api_config_reloads_total", result="refused") == 1
