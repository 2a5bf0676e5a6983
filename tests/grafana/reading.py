"""The committed dashboards as the tests read them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "grafana" / "dashboards"


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
