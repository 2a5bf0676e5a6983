"""Scrape configuration, recording rules and alerts: valid, tested, documented, and about exported metrics.

promtool does the evaluating; what it cannot see is checked here: that no alert lacks a test in which it fires, one in
which it is close and silent, a section in the runbook, or a metric to look at.
"""

import functools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.exported import PROMETHEUS, counters, exported
from tests.promql import metrics_in
from tests.promtool import promtool

ROOT = Path(__file__).parents[2]
RUNBOOK = ROOT / "docs" / "runbook.md"
TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))

#: Grafana's uids of the five dashboards, in grafana/.
DASHBOARDS = {
    "sluicegate-overview",
    "sluicegate-gateway",
    "sluicegate-capacity",
    "sluicegate-llm",
    "sluicegate-infra",
}
#: What each section of the runbook answers, in this order.
QUESTIONS = ["What it means", "What users feel", "What to look at", "What to do", "When to escalate"]


@functools.cache
def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def rules(name: str) -> list[dict[str, Any]]:
    return [rule for group in load(PROMETHEUS / "rules" / name)["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules("alerts.yml")}
RECORDED = {rule["record"] for rule in rules("recording.yml")}


# -- promtool ------------------------------------------------------------------------------------------------------


def test_the_configuration_is_valid_where_it_is_deployed(tmp_path: Path) -> None:
    for file in PROMETHEUS.glob("*.yml"):
        shutil.copy(file, tmp_path)
    shutil.copytree(PROMETHEUS / "rules", tmp_path / "rules" / "sluicegate")
    said = promtool("check", "config", tmp_path / "prometheus.yml")
    assert "2 rule files found" in said
    assert "WARNING" not in said


def test_every_job_has_a_target_and_bounds() -> None:
    config = load(PROMETHEUS / "prometheus.yml")
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert {group["labels"]["job"] for group in load(PROMETHEUS / "targets.yml")} == set(jobs)
    for name, job in jobs.items():
        assert job["relabel_configs"] == [{"source_labels": ["job"], "regex": name, "action": "keep"}]
        bounds = {"sample_limit", "label_limit", "label_name_length_limit", "label_value_length_limit"}
        assert bounds | {"body_size_limit"} <= set(job), name


def test_targets_listen_on_loopback() -> None:
    """All targets listen on loopback and share one instance label."""
    groups = load(PROMETHEUS / "targets.yml")
    assert {group["labels"]["instance"] for group in groups} == {"gpuhost"}
    assert all(target.startswith("127.0.0.1:") for group in groups for target in group["targets"])


def test_the_rules_are_valid() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", *sorted((PROMETHEUS / "rules").glob("*.yml")))


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_the_rules_do_what_they_should(file: Path) -> None:
    promtool("test", "rules", file)


# -- every rule is tested --------------------------------------------------------------------------------------------


def groups() -> Iterator[dict[str, Any]]:
    for file in TESTS:
        yield from load(file)["tests"]


def series_names(group: dict[str, Any]) -> set[str]:
    return {series["series"].partition("{")[0] for series in group["input_series"]}


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_seen_to_fire(alert: str) -> None:
    fired = [
        expected
        for group in groups()
        for case in group.get("alert_rule_test", [])
        if case["alertname"] == alert
        for expected in case["exp_alerts"]
    ]
    assert fired, f"no case in prometheus/tests in which {alert} fires"


@pytest.mark.parametrize("alert", ALERTS)
def test_alert_stays_silent(alert: str) -> None:
    """Beside something that it reads: an alert that sees nothing is silent without deserving it."""
    read = metrics_behind(ALERTS[alert]["expr"])
    silent = []
    for group in groups():
        cases = [case for case in group.get("alert_rule_test", []) if case["alertname"] == alert]
        if cases and not any(case["exp_alerts"] for case in cases) and read & series_names(group):
            silent.append(group["name"])
    assert silent, f"no group in prometheus/tests in which {alert} has something to read and stays silent throughout"


def test_tests_are_about_alerts_that_exist() -> None:
    named = {case["alertname"] for group in groups() for case in group.get("alert_rule_test", [])}
    assert named <= set(ALERTS)


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_a_recorded_value_is_tested(name: str) -> None:
    tested = [
        case["expr"]
        for group in groups()
        for case in group.get("promql_expr_test", [])
        if name in case["expr"] and case["exp_samples"]
    ]
    assert tested, f"no promql_expr_test in prometheus/tests that expects a value of {name}"


def test_groups_are_in_evaluation_order() -> None:
    """Every group of rules has its place in the order of evaluation of each test file."""
    names = [
        group["name"]
        for file in ("recording.yml", "alerts.yml")
        for group in load(PROMETHEUS / "rules" / file)["groups"]
    ]
    for file in TESTS:
        assert load(file)["group_eval_order"] == names, file.name


# -- every alert tells what to do ------------------------------------------------------------------------------------


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_what_it_needs_to(alert: str) -> None:
    rule = ALERTS[alert]
    assert re.fullmatch("Sluicegate[A-Z][A-Za-z]+", alert)
    assert rule["labels"] in ({"severity": "page"}, {"severity": "ticket"})
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url", "dashboard"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{alert.lower()}"
    assert rule["annotations"]["dashboard"] in DASHBOARDS
    assert not rule["annotations"]["summary"].endswith(".")
    assert rule["annotations"]["description"].endswith(".")


def sections() -> dict[str, str]:
    """The runbook's sections about alerts, by heading."""
    parts = re.split(r"^### (.+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_runbook_has_a_section_per_alert() -> None:
    """The runbook has a section for every alert, and no other section."""
    assert set(sections()) == set(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_a_section_answers_every_question(alert: str) -> None:
    assert re.findall(r"^\*\*(.+?)\.\*\*", sections()[alert], flags=re.MULTILINE) == QUESTIONS


def test_contents_name_every_alert() -> None:
    """The runbook's table of contents lists every alert with its severity."""
    listed = re.findall(r"^\| \[(\w+)\]\(#(\w+)\) \| (\w+) \|", RUNBOOK.read_text(), flags=re.MULTILINE)
    assert listed == [(alert, alert.lower(), rule["labels"]["severity"]) for alert, rule in ALERTS.items()]


def test_links_within_the_runbook_lead_somewhere() -> None:
    text = RUNBOOK.read_text()
    anchors = {
        re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


# -- every metric is exported by somebody ----------------------------------------------------------------------------


def metrics_behind(expression: str) -> set[str]:
    """Names of the metrics that an expression reads, with every recorded value replaced by what it is made of."""
    seen, todo = set[str](), metrics_in(expression)
    while todo:
        name = todo.pop()
        seen.add(name)
        made_of = [metrics_in(rule["expr"]) for rule in rules("recording.yml") if rule["record"] == name]
        # A recorded value may be made of what it was before.
        todo |= set[str]().union(*made_of) - seen
    return seen - RECORDED


@pytest.mark.parametrize(
    "rule", [*rules("recording.yml"), *ALERTS.values()], ids=lambda r: r.get("alert") or r["record"]
)
def test_a_rule_reads_metrics_that_somebody_exports(rule: dict[str, Any]) -> None:
    read = metrics_in(rule["expr"])
    assert read
    assert read <= exported() | RECORDED


def test_tests_feed_metrics_that_somebody_exports() -> None:
    assert set[str]().union(*(series_names(group) for group in groups())) <= exported()


def test_counters_are_as_the_exporter_reads_them() -> None:
    rows = counters()
    assert all(len(row) == 3 for row in rows), "a comma in the help text would be read as a fourth column"
    # DCGM's fields, and what the exporter counts by itself.
    assert all(re.fullmatch("DCGM_(FI_(DEV|PROF)|EXP)_[A-Z0-9_]+", row[0]) for row in rows)
    assert {row[1] for row in rows} == {"gauge", "counter"}
    assert len({row[0] for row in rows}) == len(rows)
