"""The linter over all dashboards, and that each of its rules finds what it is for."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from grafana.sluicegate_dashboards import layout
from grafana.sluicegate_dashboards.names import DATA_SOURCE, Uid
from tests.grafana import lint
from tests.grafana.reading import boards


@pytest.mark.parametrize("uid", list(Uid))
def test_the_linter_finds_nothing(uid: Uid) -> None:
    assert list(lint.findings(boards()[uid], DATA_SOURCE)) == []


def test_the_layout_has_the_linters_grid() -> None:
    assert layout.COLUMNS == lint.COLUMNS


def _panel(board: dict[str, Any], number: int = 0) -> Any:
    return [panel for panel in board["panels"] if panel["type"] == "timeseries"][number]


def _target(board: dict[str, Any]) -> Any:
    return _panel(board)["targets"][0]


def _without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda board: _panel(board)["fieldConfig"]["defaults"].pop(key)


def _expression(text: str) -> Callable[[dict[str, Any]], None]:
    return lambda board: _target(board).update(expr=text, legendFormat="x")


BROKEN: list[tuple[str, Callable[[dict[str, Any]], None]]] = [
    ("have the id", lambda board: _panel(board).update(id=_panel(board, 1)["id"])),
    ("are called", lambda board: _panel(board).update(title=_panel(board, 1)["title"])),
    ("is not on the grid", lambda board: _panel(board)["gridPos"].update(x=20, w=8)),
    ("overlap", lambda board: _panel(board)["gridPos"].update(_panel(board, 1)["gridPos"])),
    ("$job is not defined", lambda board: _target(board).update(expr='up{job=~"$job"}')),
    ("$job is not defined", lambda board: board["annotations"]["list"][0].update(expr='up{job=~"${job}"}')),
    ("can be edited", lambda board: board.update(editable=True)),
    ("has an input", lambda board: _panel(board).update(datasource="${DS_PROMETHEUS}")),
    ("no label or no description", lambda board: board["templating"]["list"][0].update(label="")),
    ("asks another data source", lambda board: _target(board)["datasource"].update(uid="other")),
    ("its kind 'graph'", lambda board: _panel(board).update(type="graph")),
    ("no title", lambda board: _panel(board).update(title="")),
    ("description does not say", lambda board: _panel(board).update(description="Requests.")),
    ("no unit", _without("unit")),
    ("what no data means", _without("noValue")),
    ("no thresholds", _without("thresholds")),
    ("asks nothing", lambda board: _panel(board).update(targets=[])),
    ("one refId", lambda board: _panel(board)["targets"].append(_target(board))),
    ("window [5m]", _expression("sum(rate(api_outcomes_total[5m]))")),
    ("needs a window", _expression("rate(api_outcomes_total)")),
    ("one number", _expression("rate(api_outcomes_total[$__range])")),
    ("has no legend", lambda board: _target(board).update(legendFormat="")),
    ("leaves out", lambda board: _target(board).update(expr="sum by (a) (up)", legendFormat="{{b}}")),
    ("have the legend", lambda board: _panel(board)["targets"].append({**_target(board), "refId": "Z"})),
]


@pytest.mark.parametrize(("finding", "spoil"), BROKEN, ids=[finding for finding, _ in BROKEN])
def test_the_linter_finds(finding: str, spoil: Callable[[dict[str, Any]], None]) -> None:
    board = copy.deepcopy(boards()[Uid.OVERVIEW])
    spoil(board)
    assert any(finding in found for found in lint.findings(board, DATA_SOURCE))
