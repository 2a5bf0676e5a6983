"""Write each role's defaults/main.yml and the table of variables in its README from its meta/argument_specs.yml.

    python ansible/generate.py [ROLE...]            write what differs, of all roles or of these
    python ansible/generate.py --check [ROLE...]    write nothing; fail if anything differs

The specification is the one source of a variable: its type, its meaning, what is allowed and its default. The entry
point `preflight` has the options of `main`, so that a wrong type stops a play before its first change too.

What the daemon accepts has one source as well, daemon/sluicegate/config/schema.py. The part of the role gateway's
vars/main.yml between two markers is written from it: the ranges that preflight checks, and the environment variables.
"""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sluicegate.config.settings import SETTINGS

ROLES = Path(__file__).parent / "roles"

BEGIN = "<!-- variables: generate.py writes this table from meta/argument_specs.yml -->"
END = "<!-- end of variables -->"

HEAD = "# Written by ansible/generate.py from meta/argument_specs.yml: change that file and run it again.\n"

SETTINGS_BEGIN = "# Settings: ansible/generate.py writes this part from daemon/sluicegate/config/schema.py."
SETTINGS_END = "# End of settings."

#: The repository's line length.
WIDTH = 120

#: A longer default makes a table unreadable; the table points to defaults/main.yml then (characters).
CELL = 60


class SpecError(Exception):
    """A specification that cannot be written out; the message says what to change."""


def main() -> int:
    """Write or check; the exit status: 0 if all files are as they should be (now), 1 if not."""
    parser = argparse.ArgumentParser(description="Write the roles' defaults and READMEs from their argument specs.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a file differs")
    parser.add_argument("--roles", type=Path, default=ROLES, metavar="DIRECTORY", help="where the roles are")
    parser.add_argument("names", nargs="*", metavar="ROLE", help="only these roles")
    args = parser.parse_args()
    try:
        texts = {path: text for role in roles(args.roles, args.names) for path, text in written(role).items()}
    except SpecError as error:
        print(error, file=sys.stderr)
        return 1
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    if args.check:
        for path in stale:
            source = "the gateway's schema" if path.parent.name == "vars" else "its role's meta/argument_specs.yml"
            print(f"{path} differs from what {source} says: run python ansible/generate.py.")
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(texts[path])
        print(f"{path}: written")
    return 0


def roles(directory: Path, names: Sequence[str] = ()) -> list[Path]:
    """The roles in a directory, all or those of these names. Raises SpecError where one of them is none."""
    found = {path.parents[1].name: path.parents[1] for path in sorted(directory.glob("*/meta/argument_specs.yml"))}
    for name in names:
        if name not in found:
            raise SpecError(f"{name} is no role in {directory}: name one of {', '.join(found)}.")
    return [found[name] for name in names or found]


def written(role: Path) -> dict[Path, str]:
    """What the files of a role should hold. Raises SpecError where the specification does not say enough."""
    source = (role / "meta" / "argument_specs.yml").read_text()
    specs = yaml.safe_load(source)["argument_specs"]
    for name, spec in specs.items():
        for variable, option in _all_options(spec.get("options", {})):
            _check(f"{role.name}: {variable} of the entry point {name}", option)
    readme = role / "README.md"
    files = {readme: _readme(readme, specs)}
    variables = role / "vars" / "main.yml"
    if variables.exists() and SETTINGS_BEGIN in (text := variables.read_text()):
        files[variables] = _with_settings(role.name, text)
    if "main" in specs:
        if specs.get("preflight") != specs["main"]:
            raise SpecError(f"{role.name}: write `main: &spec` and `preflight: *spec` in meta/argument_specs.yml.")
        files[role / "defaults" / "main.yml"] = _defaults(role.name, source, specs["main"].get("options", {}))
    return files


def _all_options(options: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, option in options.items():
        yield name, option
        yield from _all_options(option.get("options", {}))


def _check(where: str, option: Mapping[str, Any]) -> None:
    for key in ("type", "description"):
        if key not in option:
            raise SpecError(f"{where} has no {key}: write one in meta/argument_specs.yml.")
    # Ansible renders the specification as a template when it validates a role's arguments.
    if "{{" in option["description"] or "{%" in option["description"]:
        raise SpecError(f"{where} has a template in its description: write it in words, for Ansible would render it.")


def _defaults(role: str, source: str, options: Mapping[str, Any]) -> str:
    """defaults/main.yml: each variable below its description, with its default as the specification writes it."""
    parts = []
    for name, text in _default_texts(source).items():
        comment = textwrap.fill(
            _sentences(options[name]), WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
        )
        parts.append(f"{comment}\n{name}:{text}\n")
    result = f"---\n{HEAD}\n" + "\n".join(parts)
    expected = {name: option["default"] for name, option in options.items() if "default" in option}
    if (yaml.safe_load(result) or {}) != expected:
        raise SpecError(
            f"{role}: a default in meta/argument_specs.yml cannot be copied as it is: write it in another style."
        )
    return result


def _default_texts(source: str) -> dict[str, str]:
    """The default of each variable of `main` as it is written in the specification, after the colon."""
    lines = source.splitlines()
    options = _node(yaml.compose(source), "argument_specs", "main", "options")
    texts = {}
    for name, option in options.value if options else []:
        for key, value in option.value:
            if key.value == "default":
                texts[name.value] = _text(lines, key, value)
    return texts


def _node(node: Any, *path: str) -> Any:
    for name in path:
        node = next((value for key, value in node.value if key.value == name), None)
        if node is None:
            return None
    return node


def _text(lines: list[str], key: Any, value: Any) -> str:
    start, end = value.start_mark, value.end_mark
    first: str = lines[key.end_mark.line][key.end_mark.column + 1 :].rstrip()
    if start.line == end.line:
        return first
    rest = lines[key.end_mark.line + 1 : end.line + (1 if end.column and lines[end.line][: end.column].strip() else 0)]
    if isinstance(value, yaml.CollectionNode):
        # A block ends where the next token begins: comments before that belong to it, not to this.
        while rest and (not rest[-1].strip() or rest[-1].lstrip().startswith("#")):
            rest.pop()
    indent = key.start_mark.column
    return "\n".join([first, *(line[indent:].rstrip() for line in rest)]).rstrip()


def _sentences(option: Mapping[str, Any]) -> str:
    text = " ".join(option["description"].split())
    if option.get("choices"):
        text += f" Allowed: {', '.join(f'`{choice}`' for choice in option['choices'])}."
    return text


def _with_settings(role: str, text: str) -> str:
    """vars/main.yml with what the daemon accepts between the markers. Its __ROLE_variable_of names the settings."""
    before, _, rest = text.partition(SETTINGS_BEGIN)
    _, end, after = rest.partition(SETTINGS_END)
    if not end:
        raise SpecError(f"{role}: vars/main.yml has no line {SETTINGS_END}: put it behind the part of the settings.")
    variable_of = yaml.safe_load(text)[f"__{role}_variable_of"]
    unknown = sorted(set(variable_of) - set(SETTINGS))
    if unknown:
        raise SpecError(f"{role}: __{role}_variable_of names {', '.join(unknown)}: name settings that the schema has.")
    lines = ["# The least and the most that the daemon accepts.", f"__{role}_setting_ranges:"]
    for key, variable in variable_of.items():
        setting = SETTINGS[key]
        if setting.low is not None:
            lines.append(f"  {variable}: {{min: {json.dumps(setting.low)}, max: {json.dumps(setting.high)}}}")
    lines.append(f"__{role}_default_drain_s: {SETTINGS['timeouts.drain_s'].default:g}")
    lines.append("# The check must not read the controller's or the host's environment.")
    lines.append(f"__{role}_no_environment:")
    lines += [f'  {setting.env}: ""' for setting in SETTINGS.values() if setting.env]
    return "\n".join([before + SETTINGS_BEGIN, *lines, SETTINGS_END + after])


def _readme(path: Path, specs: Mapping[str, Any]) -> str:
    text = path.read_text() if path.exists() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SpecError(f"{path} has no lines {BEGIN} and {END}: put them where the table of variables belongs.")
    return f"{before}{BEGIN}\n{_tables(specs)}{END}{after}"


def _tables(specs: Mapping[str, Any]) -> str:
    tables = []
    for name, spec in specs.items():
        if name == "preflight":
            continue
        options = spec.get("options", {})
        title = "" if name == "main" else f"Of `tasks_from: {name}` ({spec['short_description']}):\n\n"
        tables.append(title + _table("variable", options))
        for variable, option in _all_options(options):
            if "options" in option:
                each = "each entry of " if option["type"] == "list" else ""
                tables.append(f"Keys of {each}`{variable}`:\n\n{_table('key', option['options'])}")
    return "\n".join(tables)


def _table(head: str, options: Mapping[str, Any]) -> str:
    rows = [(head, "type", "default", "meaning"), ("---",) * 4]
    rows += [(f"`{name}`", _type(option), _default(option), _sentences(option)) for name, option in options.items()]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)


def _type(option: Mapping[str, Any]) -> str:
    return f"list of {option['elements']}" if "elements" in option else str(option["type"])


def _default(option: Mapping[str, Any]) -> str:
    if "default" not in option:
        return "required" if option.get("required") else "none"
    value = option["default"]
    if value == "":
        return "empty"
    if isinstance(value, str):
        # Quoted where YAML would read something else, such as a number.
        text = json.dumps(value) if re.fullmatch(r"[\w.]+", value) and yaml.safe_load(value) != value else value
    elif isinstance(value, list | dict):
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False).strip()
    else:
        text = json.dumps(value)
    if len(text) > CELL or "\n" in text or "`" in text:
        return f"[{'computed' if '{{' in text else 'see there'}](defaults/main.yml)"
    return f"`{text}`"


if __name__ == "__main__":
    sys.exit(main())
