"""The committed dashboards as the tests read them, and a reader of PromQL that knows as much as they need."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "grafana" / "dashboards"

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_BRACES = re.compile(r"\{[^}]*\}")
_BRACKETS = re.compile(r"\[[^\]]*\]")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_NAME = re.compile(r"(?<![\w:.])([a-zA-Z_:][\w:]*)(\s*\()?")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_WORDS = frozenset({"and", "or", "unless", "bool", "offset"})


def boards() -> dict[str, dict[str, Any]]:
    """Uid → dashboard."""
    found = (json.loads(path.read_text("utf-8")) for path in sorted(BUILT.glob("*.json")))
    return {board["uid"]: board for board in found}


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    """(Uid, panel) of all panels but the headings of rows."""
    for uid, board in boards().items():
        for panel in board["panels"]:
            if panel["type"] != "row":
                yield uid, panel


def metrics_in(expression: str) -> set[str]:
    """Names of the metrics that an expression selects."""
    bare = _BRACKETS.sub("", _BRACES.sub("", _STRING.sub("", expression)))
    bare = _GROUPING.sub(" ", bare)
    return {name for name, call in _NAME.findall(bare) if not call and name not in _WORDS}


def labels_in(expression: str) -> set[str]:
    """Labels that an expression matches or groups by."""
    bare = _STRING.sub("", expression)
    matched = {label for braces in _BRACES.findall(bare) for label in _MATCHER.findall(braces)}
    grouped = {label.strip() for group in _GROUPING.findall(bare) for label in group.split(",")}
    return matched | grouped - {""}


def windows_in(expression: str) -> set[str]:
    """Windows over which an expression looks, as they are written."""
    return {window.strip("[]") for window in _BRACKETS.findall(_STRING.sub("", expression))}
