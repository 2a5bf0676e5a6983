"""prometheus/definitions.yml and xids.yml: what is built from them is up to date, and they agree with the gateway."""

import json
import re
from pathlib import Path

import msgspec
import pytest
import yaml

from grafana.sluicegate_dashboards.dashboards.shared import OUTCOME_COLOURS
from grafana.sluicegate_dashboards.expressions import FILLED
from prometheus.sluicegate_rules import build
from prometheus.sluicegate_rules.definitions import Definitions, Xid, Xids, definitions, xids
from sluicegate.observe import buckets
from sluicegate.outcome import Kind, Outcome
from tests.exported import PROMETHEUS
from tests.promtool import promtool

ROOT = Path(__file__).parents[2]
DEFINED = definitions()
XIDS = xids()

#: Immediate actions of NVIDIA's catalogue after which the GPU or the machine is started anew.
STARTED_ANEW = {"RESET_GPU": "reset", "RESTART_BM": "reboot", "RESTART_VM": "reboot"}


# -- what is built ----------------------------------------------------------------------------------------------------


def test_committed_rules_and_tables_are_current() -> None:
    """The committed rules and the runbook's tables are what the source builds."""
    rendered = build.rendered()
    assert {path.name for path in rendered} == {"alerts.yml", "recording.yml", "runbook.md"}
    for path, text in rendered.items():
        assert path.read_text("utf-8") == text, f"{path.name} is stale: run {build.COMMAND}"


def test_every_file_of_rules_is_built() -> None:
    assert set((PROMETHEUS / "rules").iterdir()) == {path for path in build.rendered() if path.parent == build.RULES}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rules and runbook of its own, so that a test may spoil them."""
    runbook = tmp_path / "runbook.md"
    runbook.write_text(build.RUNBOOK.read_text("utf-8"), "utf-8")
    (tmp_path / "rules").mkdir()
    monkeypatch.setattr(build, "RULES", tmp_path / "rules")
    monkeypatch.setattr(build, "RUNBOOK", runbook)
    return tmp_path


def test_check_names_what_is_stale_and_writes_nothing(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build.main([])
    (elsewhere / "rules" / "alerts.yml").unlink()
    runbook = elsewhere / "runbook.md"
    spoilt = runbook.read_text("utf-8").replace("| 79 | fallen off the bus |", "| 79 | lost |")
    runbook.write_text(spoilt, "utf-8")
    capsys.readouterr()
    assert build.main(["--check"]) == 1
    said = capsys.readouterr().err
    assert said.count(f"not as built; run {build.COMMAND}") == 2
    assert not (elsewhere / "rules" / "alerts.yml").exists()
    assert build.main([]) == 0
    assert build.main(["--check"]) == 0


def test_table_without_a_place_is_refused(elsewhere: Path) -> None:
    """The build fails if the runbook has no place for a table."""
    runbook = elsewhere / "runbook.md"
    runbook.write_text(runbook.read_text("utf-8").replace("<!-- built: burns -->", ""), "utf-8")
    with pytest.raises(ValueError, match="burns"):
        build.rendered()


def test_a_slip_in_the_definitions_is_named() -> None:
    given = yaml.safe_load((PROMETHEUS / "definitions.yml").read_text("utf-8"))
    given["burns"]["slow"]["severity"] = "info"
    with pytest.raises(msgspec.ValidationError, match=r"severity|burns\.slow"):
        msgspec.convert(given, Definitions)


# -- outcomes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", list(Outcome))
def test_an_outcome_is_in_one_group(outcome: Outcome) -> None:
    assert len(DEFINED.group_of(outcome)) == 1, "give it its place in prometheus/definitions.yml"


def recorded() -> list[dict[str, str]]:
    groups = yaml.safe_load((PROMETHEUS / "rules" / "recording.yml").read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def grouped(group: str) -> set[Outcome]:
    return {outcome for outcome in Outcome if DEFINED.group_of(outcome) == [group]}


def test_the_groups_are_the_gateways_own() -> None:
    assert grouped("served") == {Outcome.SERVED}
    assert grouped("fault") == {one for one in Outcome if one.kind is Kind.FAULT}
    assert set(DEFINED.waited_in_vain) == {one for one in Outcome if one.queued_in_vain}
    assert grouped("shed") | grouped("drained") == {one for one in Outcome if one.kind is Kind.SHED}
    assert grouped("client") == {one for one in Outcome if one.kind is Kind.CLIENT}


@pytest.mark.parametrize(
    ("record", "groups"),
    [
        ("sluicegate:requests_served:rate5m", {"served"}),
        ("sluicegate:requests_shed:rate5m", {"shed"}),
        ("sluicegate:slo_error_bad:rate5m", {"fault"}),
        ("sluicegate:slo_error_total:rate5m", {"served", "fault"}),
        ("sluicegate:slo_error_bad:increase1h", {"fault"}),
        ("sluicegate:slo_error_bad:increase6h", {"fault"}),
    ],
)
def test_a_recorded_value_counts_these_groups(record: str, groups: set[str]) -> None:
    (rule,) = [rule for rule in recorded() if rule["record"] == record]
    (operator, pattern) = re.findall(r"outcome(=~?)\"([^\"]+)\"", rule["expr"])[0]
    counted = {one for one in Outcome if (re.fullmatch(pattern, one) if operator == "=~" else pattern == one)}
    assert counted == set[Outcome]().union(*(grouped(group) for group in groups))


@pytest.mark.parametrize("group", DEFINED.outcomes)
def test_a_pattern_selects_something(group: str) -> None:
    assert DEFINED.outcomes[group]
    for pattern in DEFINED.outcomes[group]:
        assert any(re.fullmatch(pattern, outcome) for outcome in Outcome), pattern


def test_colours_tell_the_groups_apart() -> None:
    colours = {group: {OUTCOME_COLOURS[outcome] for outcome in grouped(group)} for group in DEFINED.outcomes}
    assert all("blue" in colour for colour in colours["client"])
    assert all("yellow" in colour or "orange" in colour for colour in colours["shed"] | colours["drained"])


# -- objectives -------------------------------------------------------------------------------------------------------


def test_goals_are_bounds_of_the_buckets() -> None:
    assert DEFINED.objectives.ttft.bound_s in {str(float(bound)) for bound in buckets.FIRST_TOKEN_S}
    assert DEFINED.inter_token_bound_s in {str(float(bound)) for bound in buckets.INTER_TOKEN_S}
    text = (PROMETHEUS / "rules" / "recording.yml").read_text("utf-8")
    assert set(re.findall(r"first_token_seconds_bucket\{le=\"([^\"]+)\"", text)) == {DEFINED.objectives.ttft.bound_s}
    assert set(re.findall(r"inter_token_seconds_bucket\{le=\"([^\"]+)\"", text)) == {DEFINED.inter_token_bound_s}
    assert FILLED["ttft_goal"] == DEFINED.objectives.ttft.bound_s
    assert FILLED["itl_goal"] == DEFINED.inter_token_bound_s


def test_the_runbook_speaks_of_the_same_numbers() -> None:
    """Where a sentence has them, not a table."""
    text = " ".join((ROOT / "docs" / "runbook.md").read_text("utf-8").split())
    fast, slower = DEFINED.burns.fast.windows
    days = DEFINED.objectives.days
    spent = f"uses up {build.plain(fast.spent_percent(days))} % of a month's budget within an hour, or "
    assert (fast.long, slower.long) == ("1h", "6h")
    assert f"{spent}{build.plain(slower.spent_percent(days))} % within six" in text
    late = DEFINED.objectives.ttft
    shares = [build.plain(late.allowed_percent * burn.rate) for burn in (fast, slower)]
    assert (
        f"wait longer than {late.seconds} s for their first token: {shares[0]} % over an hour or {shares[1]} %" in text
    )
    assert f"more than {build.plain(late.allowed_percent)} % of streams had their first token late" in text
    assert DEFINED.burns.least == 10
    assert "at least ten bad requests" in text


# -- XIDs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("xid", XIDS.xids, ids=lambda xid: xid.number)
def test_our_action_follows_nvidias_bucket(xid: Xid) -> None:
    bucket, action = xid.bucket, xid.action
    if bucket in STARTED_ANEW:
        assert action == STARTED_ANEW[bucket]
    elif "NVLINK" in bucket:
        assert action == "nvlink"
    elif bucket in ("IGNORE", "RESTART_APP"):
        assert action == "note"
    else:
        assert bucket in ("WORKFLOW_XID_45", "WORKFLOW_XID_48", "XID_154")


def test_an_xid_listed_twice_is_refused() -> None:
    given = yaml.safe_load((PROMETHEUS / "xids.yml").read_text("utf-8"))
    given["xids"].append(given["xids"][-1])
    with pytest.raises(msgspec.ValidationError, match="once"):
        msgspec.convert(given, Xids)


def test_every_xid_pages_or_makes_a_ticket(tmp_path: Path) -> None:
    """All at once, on one GPU: as many XIDs as the exporter counts, listed and not (1 to 200)."""
    numbers = range(1, 201)
    labels = 'job="dcgm", instance="gpuhost", gpu="0", window_size_in_ms="300000"'
    series = [
        {"series": f'DCGM_EXP_XID_ERRORS_COUNT{{{labels}, xid="{number}"}}', "values": "1x40"} for number in numbers
    ]
    pages = {xid.number for xid in XIDS.xids if xid.pages}
    firing = [
        {
            "expr": f'count by (xid) (ALERTS{{alertname="{alert}", alertstate="firing"}})',
            "eval_time": "5m",
            "exp_samples": [{"labels": f'{{xid="{number}"}}', "value": 1} for number in sorted(expected)],
        }
        for alert, expected in (("SluicegateGpuFault", pages), ("SluicegateGpuXid", set(numbers) - pages))
    ]
    file = tmp_path / "xids.yml"
    rules = [str(PROMETHEUS / "rules" / name) for name in ("recording.yml", "alerts.yml")]
    order = yaml.safe_load((PROMETHEUS / "tests" / "gpu.yml").read_text("utf-8"))["group_eval_order"]
    tests = [{"interval": "15s", "input_series": series, "promql_expr_test": firing}]
    file.write_text(
        json.dumps({"rule_files": rules, "evaluation_interval": "15s", "group_eval_order": order, "tests": tests})
    )
    promtool("test", "rules", file)


def test_the_xids_that_need_somebody_now() -> None:
    """NVIDIA's RESET_GPU, RESTART_BM and RESTART_VM, 48, and the NVLink group: none may be lost in an edit."""
    reset = {46, 48, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158}
    by_action = {action: {xid.number for xid in XIDS.xids if xid.action == action} for action in build._ACTIONS}
    assert by_action == {"reset": reset, "reboot": {79, 151}, "nvlink": {74, *range(144, 151)}}
