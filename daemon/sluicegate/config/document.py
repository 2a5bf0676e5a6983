"""Writes the tables of all settings into docs/configuration.md, between two markers, from the schema.

`python -m sluicegate.config.document [--check] [FILE]`: with --check nothing is written, and the exit code is 1 if the
file is stale. Exit code 2: the file cannot be used.
"""

import argparse
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .settings import SETTINGS, TABLES, Setting

BEGIN = "<!-- settings: written by python -m sluicegate.config.document; change the schema instead -->"
END = "<!-- end of settings -->"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sluicegate.config.document", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether FILE is up to date")
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", default=Path("docs/configuration.md"))
    arguments = parser.parse_args(argv)
    file: Path = arguments.file
    try:
        old = file.read_text(encoding="utf-8")
        new = with_settings(old)
        if new != old and not arguments.check:
            file.write_text(new, encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"{file}: {error}", file=sys.stderr)
        return 2
    if new != old and arguments.check:
        print(f"{file}: stale; run python -m sluicegate.config.document", file=sys.stderr)
        return 1
    return 0


def with_settings(text: str) -> str:
    """`text` with the current tables between the markers. Raises ValueError if there is not one pair of them."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in tail or END in tail:
        raise ValueError("expected one pair of markers for the settings")
    return f"{head}{BEGIN}\n\n{settings_tables()}\n{END}{tail}"


def settings_tables() -> str:
    """One section and one table per TOML table, those of the file's top first."""
    return "\n".join(line for section in ("", *TABLES) for line in _section(section))


def _section(table: str) -> Iterator[str]:
    if table:
        yield from (f"### `[{table}]`", "")
        # The docstring says "[table]: what it is about."; the heading has said the first half.
        about = (inspect.getdoc(TABLES[table]) or "").partition(": ")[2]
        yield from (about[:1].upper() + about[1:], "")
    else:
        yield from ("### Top of the file", "")
    yield "| Setting | Environment | Default | Allowed | Meaning |"
    yield "| --- | --- | --- | --- | --- |"
    yield from (_row(setting) for setting in SETTINGS.values() if setting.table == table)
    yield ""


def _row(setting: Setting) -> str:
    environment = f"`{setting.env}`" if setting.env else ""
    meaning = setting.doc + (" (a change needs a restart)" if setting.restart else "")
    cells = [f"`{setting.name}`", environment, f"`{setting.write(setting.default)}`", setting.allowed, meaning]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":  # pragma: no cover -- main() is tested
    raise SystemExit(main())
