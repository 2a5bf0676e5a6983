"""What every dashboard must keep: rules over its JSON, each finding a sentence with the panel's name.

Grafana's own dashboard-linter is a Go program; these are its rules as far as they apply
to provisioned dashboards of one Prometheus, and ours beside them.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

from tests.promql import calls_in, windows_in

Board = dict[str, Any]
Panel = dict[str, Any]
Finding = str

#: Grafana's grid.
COLUMNS = 24
#: Kinds of panel that come with every supported Grafana; graph, singlestat and table-old are gone since Grafana 12.
KINDS = frozenset({"timeseries", "stat", "state-timeline", "heatmap", "table"})
#: Variables that Grafana itself fills in.
GLOBAL = frozenset({"__rate_interval", "__range"})
#: A rate over them would be empty zoomed in, or too smooth zoomed out, at any other window.
RATES = frozenset({"rate", "irate", "increase", "delta", "idelta", "deriv", "changes", "resets"})

_VARIABLE = re.compile(r"\$\{?(\w+)")
_LEGEND = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_GROUPED = re.compile(r"^(?:sum|max|min|avg|count|group) by \(([^)]*)\)")


def findings(board: Board, source: str) -> Iterator[Finding]:
    """What is wrong with a dashboard. `source`: uid of the one data source that it may ask."""
    for rule in _BOARD_RULES:
        for finding in rule(board):
            yield f"{board['uid']}: {finding}"
    for panel in _panels(board):
        for finding in (*_source(panel, source), *(said for rule in _PANEL_RULES for said in rule(panel))):
            yield f"{board['uid']}, {panel.get('title')!r}: {finding}"


def _panels(board: Board) -> list[Panel]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


# -- a dashboard -----------------------------------------------------------------------------------------------------


def _ids(board: Board) -> Iterator[Finding]:
    for number, times in Counter(panel["id"] for panel in board["panels"]).items():
        if times > 1:
            yield f"{times} panels have the id {number}: a link would lead to one of them"


def _titles(board: Board) -> Iterator[Finding]:
    for title, times in Counter(panel["title"] for panel in _panels(board)).items():
        if times > 1:
            yield f"{times} panels are called {title!r}"


def _places(board: Board) -> Iterator[Finding]:
    places = [(panel["title"], panel["gridPos"]) for panel in board["panels"]]
    for title, place in places:
        if not 0 <= place["x"] < place["x"] + place["w"] <= COLUMNS or place["y"] < 0 or place["h"] < 1:
            yield f"{title!r} is not on the grid"
    for (one, a), (other, b) in combinations(places, 2):
        apart_x = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        apart_y = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        if not apart_x and not apart_y:
            yield f"{one!r} and {other!r} overlap"


def _variables(board: Board) -> Iterator[Finding]:
    defined = {variable["name"] for variable in board["templating"]["list"]} | GLOBAL
    texts = [target["expr"] for panel in _panels(board) for target in panel["targets"]]
    texts += [mark["expr"] for mark in board["annotations"]["list"]]
    texts += [variable["query"]["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    for name in sorted({name for text in texts for name in _VARIABLE.findall(text)} - defined):
        yield f"the variable ${name} is not defined"


def _provisioned(board: Board) -> Iterator[Finding]:
    if board["editable"]:
        yield "it can be edited, and the next provisioning would throw the edit away"
    if "${DS_" in str(board):
        yield "it has an input, which provisioning does not fill in"
    for variable in board["templating"]["list"]:
        if not variable.get("label") or not variable.get("description"):
            yield f"the variable ${variable['name']} has no label or no description"


_BOARD_RULES: list[Callable[[Board], Iterator[Finding]]] = [_ids, _titles, _places, _variables, _provisioned]


# -- a panel ---------------------------------------------------------------------------------------------------------


def _source(panel: Panel, source: str) -> Iterator[Finding]:
    wanted = {"type": "prometheus", "uid": source}
    if any(asked.get("datasource") != wanted for asked in (panel, *panel["targets"])):
        yield f"it asks another data source than {source}"


def _kind(panel: Panel) -> Iterator[Finding]:
    if panel["type"] not in KINDS:
        yield f"its kind {panel['type']!r} is not among {', '.join(sorted(KINDS))}"


def _words(panel: Panel) -> Iterator[Finding]:
    title, description = panel.get("title", ""), panel.get("description", "")
    if not title:
        yield "it has no title"
    if len(description) <= len(title) + 20 or not description.endswith((".", ")")):
        yield "its description does not say in a sentence what to make of it"


def _fields(panel: Panel) -> Iterator[Finding]:
    defaults = panel["fieldConfig"]["defaults"]
    if not defaults.get("unit"):
        yield "it has no unit"
    if not defaults.get("noValue"):
        yield "it does not say what no data means"
    if not defaults.get("thresholds", {}).get("steps"):
        yield "it has no thresholds"


def _targets(panel: Panel) -> Iterator[Finding]:
    refs = [target["refId"] for target in panel["targets"]]
    if not refs:
        yield "it asks nothing"
    if len(set(refs)) != len(refs):
        yield "two of its queries have one refId"


def _windows(panel: Panel) -> Iterator[Finding]:
    for target in panel["targets"]:
        expression = target["expr"]
        for window in sorted(windows_in(expression) - {"$__rate_interval", "$__range"}):
            yield f"the window [{window}] does not follow the zoom: use $__rate_interval"
        used = calls_in(expression) & RATES
        if used and not windows_in(expression):
            yield f"{', '.join(sorted(used))} needs a window"
        if "rate" in used and "$__range" in windows_in(expression):
            yield "a rate over the whole range is one number: use $__rate_interval"


def _legends(panel: Panel) -> Iterator[Finding]:
    for target in panel["targets"]:
        legend = target["legendFormat"]
        if not legend and panel["type"] in ("timeseries", "state-timeline"):
            yield f"query {target['refId']} has no legend: Grafana would show all labels"
        grouped = _GROUPED.search(target["expr"])
        labels = {label.strip() for label in grouped[1].split(",")} if grouped else None
        for name in _LEGEND.findall(legend):
            if labels is not None and name not in labels:
                yield f"query {target['refId']} names {name} in its legend, which its sum leaves out"
    if panel["type"] in ("timeseries", "state-timeline"):
        for legend, times in Counter(target["legendFormat"] for target in panel["targets"]).items():
            if times > 1:
                yield f"{times} queries have the legend {legend!r}"


_PANEL_RULES: list[Callable[[Panel], Iterator[Finding]]] = [_kind, _words, _fields, _targets, _windows, _legends]
