import json
import re
from pathlib import Path
from typing import Any

import pytest

from grafana.sluicegate_dashboards.expressions import EVENTS, FILLED, Expression, expressions, may_be_empty
from grafana.sluicegate_dashboards.queries import gateway, gpu
from grafana.sluicegate_dashboards.queries.promql import quantile
from tests.exported import PROMETHEUS, exported, listed
from tests.grafana.reading import ROOT, boards
from tests.promql import labels_in, metrics_in
from tests.promtool import promtool

#: Labels that the exporters give their metrics and Prometheus its targets.
LABELS = frozenset(
    {
        *("instance", "job"),
        *("endpoint", "status", "outcome", "kind", "state", "model", "version", "python", "result", "generation", "le"),
        "reason",
        *("model_name", "engine", "finished_reason"),
        *("gpu", "xid", "mode", "device", "fstype", "mountpoint", "name"),
        *("alertname", "alertstate", "severity"),
    }
)

ALL = list(expressions())
EVERY = [pytest.param(expression, id=f"{expression.dashboard}: {expression.where}") for expression in ALL]


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Every metric that an expression may name: what is scraped, and what the rules make of it."""
    rules = (PROMETHEUS / "rules" / "recording.yml").read_text("utf-8")
    recorded = set(re.findall(r"record: (\S+)", rules))
    return exported() | listed(ROOT / "grafana" / "metrics.txt") | recorded | {"ALERTS"}


def filled(expression: str) -> str:
    for name, value in FILLED.items():
        expression = expression.replace(f"${name}", value)
    return expression


def test_all_are_found_and_no_variable_is_left() -> None:
    targets = sum(len(panel.get("targets", ())) for board in boards().values() for panel in board["panels"])
    marks_and_variables = 5 * (4 + 2)
    assert len(ALL) == targets + marks_and_variables
    assert not [expression for expression in ALL if "$" in expression.text]


def test_prometheus_can_parse_every_one(tmp_path: Path) -> None:
    rules = [
        {"record": f"e{number}", "expr": text, "labels": {"where": f"{dashboard} {where}"}}
        for number, (dashboard, where, text) in enumerate(ALL)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "all", "rules": rules}]}))
    promtool("check", "rules", file)


def test_few_may_be_empty_and_their_names_exist() -> None:
    assert {expression.where for expression in ALL} >= EVENTS
    nvml = [expression for expression in ALL if expression.where not in EVENTS and may_be_empty(expression)]
    assert len(nvml) == 5
    assert all(expression.text.startswith("api_gpu_") for expression in nvml)


@pytest.mark.parametrize("expression", EVERY)
def test_somebody_exports_every_metric(expression: Expression, known: set[str]) -> None:
    used = metrics_in(expression.text)
    assert used
    assert used <= known


@pytest.mark.parametrize("expression", EVERY)
def test_every_label_exists(expression: Expression) -> None:
    assert labels_in(expression.text) <= LABELS


def outcome(kind: str, values: str) -> dict[str, str]:
    return {"series": f'api_outcomes_total{{instance="a", outcome="{kind}"}}', "values": values}


def gauge(series: str, value: float) -> dict[str, str]:
    return {"series": series, "values": f"{value}+0x40"}


TRAFFIC = [outcome("served", "0+60x40"), outcome("engine_error", "0+0x40"), outcome("shed_busy", "0+0x40")]
NO_TRAFFIC = [outcome("served", "9+0x40"), outcome("engine_error", "9+0x40"), outcome("shed_busy", "9+0x40")]
FAULTS = [outcome("served", "0+45x40"), outcome("engine_error", "0+15x40"), outcome("shed_busy", "0+60x40")]
GATE = [gauge('api_active_requests{instance="a"}', 3), gauge('api_max_active{instance="a"}', 4)]
ENERGY = {"series": 'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{instance="a", gpu="0"}', "values": "0+1500000x40"}
NVML_POWER = gauge('api_gpu_power_watts{instance="a", gpu="0"}', 50)
COMPLETIONS = {"series": 'api_tokens_total{instance="a", kind="completion"}', "values": "0+1500x40"}
BUILD = 'api_build_info{{instance="a", job="sluicegate", version="{}", python="3.11"}}'
START = gauge('process_start_time_seconds{instance="a", job="sluicegate"}', 1200)
THERMAL = gauge('DCGM_FI_DEV_CLOCKS_EVENT_REASONS{instance="a", gpu="0"}', 0x4 + 0x40)


@pytest.mark.parametrize(
    ("expression", "series", "expected"),
    [
        pytest.param(gateway.ERROR_RATIO, TRAFFIC, [0], id="no errors: 0"),
        pytest.param(gateway.ERROR_RATIO, NO_TRAFFIC, [], id="no traffic: no error ratio"),
        pytest.param(gateway.ERROR_RATIO, FAULTS, [0.25], id="errors: a share of what was taken on"),
        pytest.param(gateway.SHED_RATIO, FAULTS, [0.5], id="shed: a share of everything"),
        pytest.param(gateway.SHED_RATIO, NO_TRAFFIC, [], id="no traffic: no shed ratio"),
        pytest.param(gateway.SLOTS_USED, GATE, [0.75], id="slots"),
        pytest.param(
            gateway.QUEUE_USED,
            [gauge('api_queue_depth{instance="a"}', 0), gauge('api_queue_limit{instance="a"}', 0)],
            [],
            id="a queue of no places has no share",
        ),
        pytest.param(gateway.CARRYING_CAPACITY, [*TRAFFIC, *GATE], [4 / 3], id="Little's law"),
        pytest.param(
            quantile(0.95, "h"),
            [{"series": 'h_bucket{instance="a", le="+Inf"}', "values": "7+0x40"}],
            [],
            id="no observations: no quantile instead of NaN",
        ),
        pytest.param(gpu.TOKENS_PER_JOULE, [COMPLETIONS, ENERGY, NVML_POWER], [1], id="energy from DCGM: 25 W"),
        pytest.param(gpu.TOKENS_PER_JOULE, [COMPLETIONS, NVML_POWER], [0.5], id="power from the gateway: 50 W"),
        pytest.param(gpu.TOKENS_PER_JOULE, [COMPLETIONS], [], id="no GPU: no tokens per joule"),
        pytest.param(gpu.throttled(0x40), [THERMAL], [1], id="a bit that is set"),
        pytest.param(gpu.throttled(0x8), [THERMAL], [0], id="a bit that is not"),
        pytest.param(
            gateway.DEPLOYS,
            [
                START,
                {"series": BUILD.format("1"), "values": "1x18 stale"},
                {"series": BUILD.format("2"), "values": "_x19 1x20"},
            ],
            [1_200_000],
            id="a new version is a deploy",
        ),
        pytest.param(
            gateway.DEPLOYS, [START, gauge(BUILD.format("1"), 1)], [], id="a start of the same version is none"
        ),
    ],
)
def test_what_an_expression_yields(
    expression: str, series: list[dict[str, str]], expected: list[float], tmp_path: Path
) -> None:
    """At minute 20, from samples every minute, with a window of 4 minutes."""
    text = filled(expression.replace("$__rate_interval", "4m"))
    check: dict[str, Any] = {
        "expr": f"round(sum without (instance, job, gpu, version, python) ({text}), 1e-6)",
        "eval_time": "20m",
        "exp_samples": [{"labels": "{}", "value": round(value, 6)} for value in expected],
    }
    tests = {"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": [check]}]}
    file = tmp_path / "test.yml"
    file.write_text(json.dumps(tests))
    promtool("test", "rules", file)
