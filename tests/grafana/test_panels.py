import re
from typing import Any
from urllib.parse import urlsplit

import pytest

from grafana.sluicegate_dashboards import layout
from grafana.sluicegate_dashboards.dashboards.shared import OUTCOME_COLOURS
from grafana.sluicegate_dashboards.names import DATA_SOURCE, RUNBOOK, Uid
from grafana.sluicegate_dashboards.queries import objectives
from sluicegate.observe import buckets
from sluicegate.outcome import Outcome
from tests.grafana.reading import ROOT, boards, panels

ALERTS = (ROOT / "prometheus" / "rules" / "alerts.yml").read_text("utf-8")
ALERT_NAMES = re.findall(r"- alert: (\w+)", ALERTS)
ALERT_DASHBOARDS = dict(zip(ALERT_NAMES, re.findall(r"dashboard: (\S+)", ALERTS), strict=True))

#: Panels that stand on the dashboard to which they lead as well.
SHARED = {"Outcomes", "Slots in use", "Requests waiting", "Goodput against offered load"}


def runbook_links(panel: dict[str, Any]) -> set[str]:
    return {link["url"].removeprefix(f"{RUNBOOK}#") for link in panel["links"] if link["url"].startswith(RUNBOOK)}


def test_five_dashboards_keep_their_uids() -> None:
    """Links and bookmarks rely on the UIDs of the five dashboards."""
    assert sorted(boards()) == [
        "sluicegate-capacity",
        "sluicegate-gateway",
        "sluicegate-infra",
        "sluicegate-llm",
        "sluicegate-overview",
    ]


def test_their_titles() -> None:
    assert {uid: board["title"] for uid, board in boards().items()} == {
        "sluicegate-overview": "API Overview",
        "sluicegate-gateway": "API Gateway",
        "sluicegate-capacity": "Capacity & Saturation",
        "sluicegate-llm": "LLM Performance",
        "sluicegate-infra": "Infrastructure Health",
    }


def test_a_panel_keeps_its_id_while_it_keeps_its_title() -> None:
    """Alerts and bookmarks hold it: this number may only change together with the title."""
    assert layout.panel_id("Outcomes") == 633580


def test_links_keep_the_selection() -> None:
    """Links lead to dashboards that exist, and keep the time range and the variables."""
    existing = {f"/d/{uid}" for uid in Uid}
    for uid, board in boards().items():
        assert {link["url"] for link in board["links"]} == existing - {f"/d/{uid}"}
        assert all(link["keepTime"] and link["includeVars"] for link in board["links"])
    within = 0
    for uid, panel in panels():
        for link in panel["links"]:
            target = urlsplit(link["url"])
            if not target.netloc:
                within += 1
                assert target.path in existing - {f"/d/{uid}"} or panel["title"] in SHARED, (uid, panel["title"])
                assert target.path in existing
                assert target.query == "${__url_time_range}&${__all_variables}"
    assert within, "no panel leads to another dashboard"


def test_every_runbook_link_names_an_alert() -> None:
    anchors = {name.lower() for name in ALERT_NAMES}
    for uid, panel in panels():
        assert runbook_links(panel) <= anchors, (uid, panel["title"])


@pytest.mark.parametrize("alert", ALERT_NAMES)
def test_alert_leads_to_a_panel(alert: str) -> None:
    """The dashboard of an alert has a panel that shows what the alert is about."""
    uid = ALERT_DASHBOARDS[alert]
    shown = [panel["title"] for on, panel in panels() if on == uid and alert.lower() in runbook_links(panel)]
    assert shown, f"{uid} has no panel that links the runbook's section {alert}"


def test_dashboards_share_variables_and_marks() -> None:
    """Every dashboard has the same variables and annotations."""
    for uid, board in boards().items():
        variables = {variable["name"]: variable for variable in board["templating"]["list"]}
        assert list(variables) == ["instance", "model", "ttft_goal", "itl_goal"], uid
        for name in ("instance", "model"):
            assert variables[name]["multi"]
            assert variables[name]["includeAll"]
        names = [mark["name"] for mark in board["annotations"]["list"]]
        assert names == ["Deploys", "Gateway starts", "Engine starts", "Configuration reloads"], uid


@pytest.mark.parametrize("uid", list(Uid))
def test_a_variable_is_offered_where_it_is_used(uid: Uid) -> None:
    text = " ".join(target["expr"] for on, panel in panels() if on == uid for target in panel["targets"])
    for variable in boards()[uid]["templating"]["list"]:
        hidden = variable["hide"] == 2
        assert hidden != (f'"${variable["name"]}"' in text), variable["name"]


def test_goals_are_bounds_of_the_buckets() -> None:
    """At another value the share would be empty: `le` is matched as text."""
    assert set(layout.TTFT_GOALS) <= {str(float(bound)) for bound in buckets.FIRST_TOKEN_S}
    assert set(layout.ITL_GOALS) <= {str(float(bound)) for bound in buckets.INTER_TOKEN_S}


def test_every_outcome_has_its_colour() -> None:
    assert set(OUTCOME_COLOURS) == {outcome.value for outcome in Outcome}
    assert len(set(OUTCOME_COLOURS.values())) == len(Outcome)


def test_objectives_are_those_of_the_alerts() -> None:
    """As the rules compare them, wherever they come from."""
    compared = dict(re.findall(r"(sluicegate:slo_\w+:ratio_rate(?:3d|1h)) > ([\d.* ]+\d)", ALERTS))
    assert float(compared["sluicegate:slo_error:ratio_rate3d"]) == objectives.ERRORS_ALLOWED
    assert float(compared["sluicegate:slo_ttft:ratio_rate3d"]) == objectives.LATE_ALLOWED
    factor, share = compared["sluicegate:slo_error:ratio_rate1h"].split(" * ")
    assert pytest.approx(float(factor) * float(share)) == objectives.ERRORS_PAGE


def test_provisioning_and_schema() -> None:
    """Provisioning names the dashboards' data source, and Grafana can load their schema version."""
    provisioned = (ROOT / "grafana" / "provisioning" / "datasources" / "sluicegate.yaml").read_text("utf-8")
    assert f"uid: {DATA_SOURCE}\n" in provisioned
    for board in boards().values():
        assert board["schemaVersion"] == 39


@pytest.mark.parametrize("uid", list(Uid))
def test_the_documentation_lists_the_rows(uid: Uid) -> None:
    board = boards()[uid]
    sections = (ROOT / "docs" / "dashboards.md").read_text("utf-8").split("\n## ")
    (section,) = [section for section in sections if section.startswith(f"{board['title']}\n")]
    listed = re.search(r"Rows: ([^.]+)\.", section)
    assert listed
    rows = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert " ".join(listed[1].split()).split(", ") == rows


def test_documented_panels_exist() -> None:
    """The panels that the documentation names exist."""
    titles = {panel["title"] for _, panel in panels()}
    table = (ROOT / "docs" / "dashboards.md").read_text("utf-8").split("## Which one")[1].split("## ")[0]
    for title in (
        "Outcomes",
        "Share of slots in use",
        "Offered, served, shed",
        "Outcomes in this time range",
        "Time to first token: gateway and engine",
        "Gap between tokens",
        "Requests preempted",
        "Held back",
        "Tokens in the engine",
        "Units active",
        "Last XID",
        "XIDs",
        "Host memory",
        "Last reload",
        "Goodput against offered load",
        "KV cache used",
        "GPU utilisation against slots",
    ):
        assert title in table
        assert title in titles
