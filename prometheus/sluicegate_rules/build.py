"""`python -m prometheus.sluicegate_rules.build [--check]`: write rules and runbook tables, or say that one is stale."""

import argparse
import re
import sys
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path

import jinja2

from .definitions import HERE, Burn, Definitions, Name, Pace, Xid, definitions, xids

COMMAND = "python -m prometheus.sluicegate_rules.build"
RULES = HERE / "rules"
RUNBOOK = HERE.parent / "docs" / "runbook.md"
TEMPLATES = HERE / "templates"

#: Between these lines, with the table's name in the first, the runbook is written by this module.
_BUILT = re.compile(r"(?<=<!-- built: )(?P<name>[\w-]+)( -->\n\n)(?P<text>.*?)(?=\n<!-- /built -->)", re.DOTALL)

_UNITS = {"m": "min", "h": "h", "d": "d"}
_ACTIONS = {"reset": "reset the GPU", "reboot": "restart the host", "nvlink": "check its NVLinks"}


def rendered() -> dict[Path, str]:
    """File → text of the rules and of the runbook with its tables: the same bytes on every machine."""
    return {**_rules(), RUNBOOK: _with_tables(RUNBOOK.read_text("utf-8"))}


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 written or up to date, 1 stale under --check."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Build Prometheus' rules and the runbook's tables.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is not as built")
    check = parser.parse_args(arguments).check
    wanted = rendered()
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        if check:
            print(f"{path}: not as built; run {COMMAND} and commit what it changes", file=sys.stderr)
        else:
            path.write_text(wanted[path], "utf-8")
            print(f"wrote {path}")
    return 1 if check and stale else 0


def _rules() -> dict[Path, str]:
    given, faults = definitions(), xids()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        # Braces are PromQL's and the annotations' own.
        variable_start_string="[[",
        variable_end_string="]]",
        block_start_string="[%",
        block_end_string="%]",
        comment_start_string="[#",
        comment_end_string="#]",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 (YAML, not HTML)
    )
    environment.filters["plain"] = plain
    values = {
        "burning": lambda name, pace: _burning(given, name, pace),
        "burns": given.burns,
        "counted_windows": given.counted_windows,
        "days": given.objectives.days,
        "error": given.objectives.error,
        "fatal": faults.fatal_pattern,
        "inter_token_bound_s": given.inter_token_bound_s,
        "inter_token_ms": plain(Decimal(given.inter_token_bound_s) * 1000),
        "least": given.burns.least,
        "outcomes": given.matcher,
        "over": "[{}]".format,
        "recorded_windows": given.recorded_windows,
        "ttft": given.objectives.ttft,
    }
    built = {}
    for template in sorted(TEMPLATES.glob("*.j2")):
        line = f"Built by {COMMAND} from prometheus/templates/{template.name}, definitions.yml and xids.yml."
        text = environment.get_template(template.name).render(values, built=line)
        built[RULES / template.stem] = text
    return built


def _burning(given: Definitions, name: Name, pace: Pace) -> str:
    """The expression of a burn rate's alert, indented for the template: one of its windows burns."""

    def lines(burn: Burn, indent: str) -> list[str]:
        allowed = plain(given.objectives.named(name).allowed)
        limit = allowed if burn.rate == 1 else f"{burn.rate} * {allowed}"
        return [
            f"{indent}  sluicegate:slo_{name}:ratio_rate{burn.long} > {limit}",
            f"{indent}and",
            f"{indent}  sluicegate:slo_{name}:ratio_rate{burn.short} > {limit}",
            f"{indent}and",
            f"{indent}  sluicegate:slo_{name}_bad:increase{burn.counted} >= {given.burns.least}",
        ]

    indent = " " * 10
    if len(pace.windows) == 1:
        return "\n".join(lines(pace.windows[0], indent))
    parts = [[f"{indent}  (", *lines(burn, indent + " " * 4), f"{indent}  )"] for burn in pace.windows]
    return f"\n{indent}or\n".join("\n".join(part) for part in parts)


# -- the runbook -----------------------------------------------------------------------------------------------------


def _with_tables(text: str) -> str:
    given, faults = definitions(), xids()
    tables = {
        "objectives": _objectives(given),
        "burns": _burns(given),
        "xids-page": _table(
            ("XID", "meaning", "NVIDIA's bucket", "do"),
            [(*_xid(xid), _ACTIONS[xid.action]) for xid in faults.fatal],
        ),
        "xids-ticket": _table(
            ("XID", "meaning", "NVIDIA's bucket"),
            [_xid(xid) for xid in faults.xids if not xid.pages],
        ),
    }
    named = [match["name"] for match in _BUILT.finditer(text)]
    if sorted(named) != sorted(tables):
        raise ValueError(f"{RUNBOOK}: needs one place each for {', '.join(tables)}, and has {', '.join(named)}")
    return _BUILT.sub(lambda match: f"{match['name']}{match[2]}{tables[match['name']]}", text)


def _objectives(given: Definitions) -> str:
    days = given.objectives.days
    error, ttft = given.objectives.error, given.objectives.ttft
    uncounted = [group for group in given.outcomes if group not in ("served", "fault")]
    return _table(
        ("objective", "target", "counts as good", "counts as bad", "not counted"),
        [
            (
                "errors",
                f"{error.target} % in {days} days",
                _outcomes(given, "served"),
                _outcomes(given, "fault"),
                _outcomes(given, *uncounted),
            ),
            (
                "first token",
                f"{ttft.target} % in {days} days",
                f"streams with a first token within {ttft.seconds} s, waiting included",
                "later ones",
                "streams without any (they are errors)",
            ),
        ],
    )


def _burns(given: Definitions) -> str:
    paces = (("fast", given.burns.fast), ("slow", given.burns.slow))
    return _table(
        ("alert", "windows", "burn rate", "budget used by then"),
        [
            (
                f"{name}, {pace.severity}",
                f"{_span(burn.long)} and {_span(burn.short)}",
                f"{burn.rate}",
                f"{plain(burn.spent_percent(given.objectives.days))} %",
            )
            for name, pace in paces
            for burn in pace.windows
        ],
    )


def _xid(xid: Xid) -> tuple[str, str, str]:
    return f"{xid.number}", xid.meaning, f"`{xid.bucket}`"


def _outcomes(given: Definitions, *groups: str) -> str:
    return ", ".join(f"`{pattern.replace('.*', '*')}`" for group in groups for pattern in given.outcomes[group])


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rows))


def _span(window: str) -> str:
    return f"{window[:-1]} {_UNITS[window[-1]]}"


def plain(number: Decimal) -> str:
    """A number for people and for PromQL: 0.001 and 2, neither 1E-3 nor 2.0."""
    return f"{number.normalize():f}"


if __name__ == "__main__":
    sys.exit(main())
