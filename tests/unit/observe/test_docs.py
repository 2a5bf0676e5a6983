"""docs/observability.md and the code agree, both ways."""

import datetime
import itertools
import json
import os
import re
from pathlib import Path

import pytest

from sluicegate.account.record import LOGGED, Record
from sluicegate.observe.gpu_gauges import GpuReading
from sluicegate.observe.logs import INFO, WARNING, Log
from sluicegate.observe.metrics import Metrics
from sluicegate.outcome import Outcome
from tests.exported import gateway

PAGE = (Path(__file__).parents[3] / "docs" / "observability.md").read_text()
METRIC_ROW = re.compile(r"^\| `([a-z_]+)` \| (\w+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)

#: Type and label names, by metric name.
Described = dict[str, tuple[str, frozenset[str]]]


def served(endpoint: str) -> Record:
    return Record(endpoint, endpoint, 0.0, ended_at=1.0, status=200, model_used="m", outcome=Outcome.SERVED)


def described_by_the_code() -> Described:
    metrics = Metrics(["/v1/chat/completions"], "0")
    metrics.settled(served("/v1/chat/completions"))
    metrics.certificate("/etc/sluicegate/tls/certificate.pem", 2e9)
    metrics.set_gpus({0: GpuReading(0.5, 1.0, 2.0, 50.0, 100.0)})
    described: Described = {}
    for family in metrics.registry.collect():
        name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        kind = "gauge" if family.type == "info" else family.type
        assert family.samples, f"{name} is not shown even when everything has happened"
        labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
        described[name] = (kind, labels)
    return described


def described_by_the_page() -> Described:
    return {
        name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels, *_ in METRIC_ROW.findall(PAGE)
    }


def test_documented_metrics_are_the_real_ones() -> None:
    """Every metric is documented, and every documented metric exists."""
    assert described_by_the_page() == described_by_the_code()


def test_every_metric_has_a_full_row() -> None:
    """Every metric's row gives its unit, its meaning and when to worry."""
    rows = METRIC_ROW.findall(PAGE)
    assert rows
    assert all(cell.strip() for row in rows for cell in row)
    assert PAGE.count("\n| `api_") == len([row for row in rows if row[0].startswith("api_")])


def test_the_questions_ask_for_metrics_that_exist() -> None:
    [questions] = re.findall(r"```promql\n(.*?)```", PAGE, re.DOTALL)
    asked = set(re.findall(r"\bapi_[a-z_]+", questions))
    assert asked
    assert asked <= gateway()  # which has no bare histogram: that has no samples


def test_the_bounds_that_the_page_promises_exist() -> None:
    body = Metrics(["/"], "0")
    body.settled(served("/"))
    text = body.expose()[0].decode()
    for bound in ("60.0", "120.0", "300.0"):
        assert f'api_request_latency_seconds_bucket{{endpoint="/",le="{bound}"}}' in text
        assert f'api_queue_wait_seconds_bucket{{le="{bound}"}}' in text
        assert f'api_time_to_first_token_seconds_bucket{{le="{bound}"}}' in text
    assert 'api_time_to_first_token_seconds_bucket{le="2.0"}' in text
    assert 'api_inter_token_seconds_bucket{le="0.15"}' in text


def test_every_field_of_a_request_is_documented() -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| [^|]+ \|[^|]*\|$", PAGE, re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert documented - {"time", "level", "event"} == set(LOGGED)


@pytest.mark.parametrize("format_", ["json", "text"])
def test_the_example_lines_are_what_the_log_writes(format_: str) -> None:
    """The page's JSON lines, read back and logged again, give the page's lines of either format."""
    [examples] = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    [expected] = re.findall(rf"```{format_}\n(.*?)```", PAGE, re.DOTALL)
    reader, writer = os.pipe()
    for example in examples.splitlines():
        fields = json.loads(example)
        when = datetime.datetime.fromisoformat(fields.pop("time")).timestamp()
        fault = fields.pop("level") == "warning"
        assert fields.pop("event") == "request"
        log = Log(format_, "info", writer, now=itertools.repeat(when).__next__)
        log.emit(WARNING if fault else INFO, "request", fields)
        log.close()
    os.close(writer)
    with open(reader) as written:
        assert written.read() == expected
