"""Every expression of the built dashboards, with Grafana's variables filled in: ready to run against a Prometheus.

It reads the JSON that is shipped and needs nothing but the standard library.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

DASHBOARDS = Path(__file__).parents[1] / "dashboards"

#: What a viewer's Grafana would fill in: every host, every model, the whole time.
FILLED = {
    "__rate_interval": "1m",
    "__range": "1h",
    "instance": ".*",
    "model": ".*",
    "ttft_goal": "2.0",
    "itl_goal": "0.15",
}

#: Where an expression is about something that happened, and empty when it has not lately.
EVENTS = frozenset({"Alerts", "Deploys", "Configuration reloads", "Last XID", "XIDs"})

_NVML = re.compile(r"\bapi_gpu_(?!available\b)")
_VARIABLE = re.compile(r"\$(\w+)")
_LABEL_VALUES = re.compile(r"label_values\((?P<series>.+), *\w+\)")


class Expression(NamedTuple):
    """An expression and where it stands. `where`: the panel's title, or the annotation's or variable's name."""

    dashboard: str
    where: str
    text: str


def expressions(directory: Path = DASHBOARDS, filled: Mapping[str, str] = FILLED) -> Iterator[Expression]:
    """All of them: panels, annotations and variables. `filled`: variable → value, without its dollar sign."""
    for path in sorted(directory.glob("*.json")):
        board = json.loads(path.read_text("utf-8"))
        for where, text in _found(board):
            yield Expression(board["uid"], where, _VARIABLE.sub(lambda match: filled[match[1]], text))


def may_be_empty(expression: Expression) -> str | None:
    """Why a healthy host under traffic may have no data for it, or None: then it must have some."""
    if expression.where in EVENTS:
        return "nothing of the kind happened lately"
    if _NVML.search(expression.text) and " or " not in expression.text:
        return "the gateway reads it from NVML, which a host without an NVIDIA driver lacks"
    return None


def _found(board: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for mark in board["annotations"]["list"]:
        yield mark["name"], mark["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            found = _LABEL_VALUES.fullmatch(variable["query"]["query"])
            if found is None:
                raise ValueError(f"{board['uid']}: variable {variable['name']} is no label_values(series, label)")
            yield variable["name"], found["series"]
