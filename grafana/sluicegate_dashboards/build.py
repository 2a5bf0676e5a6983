"""`python -m grafana.sluicegate_dashboards.build [--check]`: write the dashboards' JSON, or say that it is stale."""

import argparse
import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from .dashboards import capacity, gateway, infrastructure, llm, overview

OUT = Path(__file__).parents[1] / "dashboards"
COMMAND = "python -m grafana.sluicegate_dashboards.build"


def rendered() -> dict[Path, str]:
    """File → text of every dashboard: the same bytes on every machine."""
    boards = (module.board() for module in (overview, gateway, capacity, llm, infrastructure))
    return {OUT / f"{board.uid}.json": _text(board) for board in boards}


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 written or up to date, 1 stale under --check."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Build the Grafana dashboards.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is not as built")
    check = parser.parse_args(arguments).check
    wanted = rendered()
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
    surplus = [path for path in sorted(OUT.glob("*.json")) if path not in wanted]
    if check:
        for path in (*stale, *surplus):
            print(f"{path}: not as built; run {COMMAND} and commit what it changes", file=sys.stderr)
        return 1 if stale or surplus else 0
    OUT.mkdir(exist_ok=True)
    for path in stale:
        path.write_text(wanted[path], "utf-8")
        print(f"wrote {path}")
    for path in surplus:
        path.unlink()
        print(f"removed {path}: no dashboard of that name")
    return 0


def _text(board: Dashboard) -> str:
    return json.dumps(board, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
