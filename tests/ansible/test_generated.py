"""The roles' defaults and READMEs say what their argument specs say, and `generate.py --check` notices a change."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ANSIBLE = Path(__file__).parents[2] / "ansible"

ROLES = sorted(path.name for path in (ANSIBLE / "roles").iterdir())

SPEC = """\
---
argument_specs:
  main: &spec
    short_description: Things
    options:
      thing_count:
        type: int
        description: How many, from 1 to 9.
        default: 3
      thing_mode:
        type: str
        choices: [fast, slow]
        description: >-
          How it is done; "a|b" is a text
          of two lines.
        default: >-
          {{ 'fast' if thing_count > 3
             else 'slow' }}
      # A comment between two options.
      thing_code:
        type: str
        description: A text of digits.
        default: "007"
      thing_parts:
        type: list
        elements: dict
        description: The parts.
        default:
          - name: one
          # A comment in a default.
          - name: two

      # A comment behind a default.
      thing_secret:
        type: str
        no_log: true
        description: Nobody knows.
        default: ""
  preflight: *spec
"""


def generate(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ANSIBLE / "generate.py"), *args], capture_output=True, text=True, check=False
    )


@pytest.fixture
def role(tmp_path: Path) -> Path:
    """A role before its files are generated, in a directory of roles of its own."""
    path = tmp_path / "thing"
    (path / "meta").mkdir(parents=True)
    (path / "meta/argument_specs.yml").write_text(SPEC)
    begin, end = (
        "<!-- variables: generate.py writes this table from meta/argument_specs.yml -->",
        "<!-- end of variables -->",
    )
    (path / "README.md").write_text(f"# Thing\n\n{begin}\n{end}\n\nMore.\n")
    return path


def test_every_file_is_as_the_specs_say() -> None:
    checked = generate("--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_defaults_and_readme_are_written_from_the_spec(role: Path) -> None:
    assert generate("--roles", str(role.parent)).returncode == 0
    defaults = (role / "defaults/main.yml").read_text()
    options = yaml.safe_load(SPEC)["argument_specs"]["main"]["options"]
    assert yaml.safe_load(defaults) == {name: option["default"] for name, option in options.items()}
    assert '# How it is done; "a|b" is a text of two lines. Allowed: `fast`, `slow`.\nthing_mode: >-\n  {{ ' in defaults
    assert "# A comment behind" not in defaults
    readme = (role / "README.md").read_text()
    assert readme.startswith("# Thing\n\n")
    assert readme.endswith("\n\nMore.\n")
    assert "| `thing_count` | int | `3` | How many, from 1 to 9. |\n" in readme
    assert '| `thing_code` | str | `"007"` | A text of digits. |\n' in readme
    assert r'How it is done; "a\|b" is a text of two lines. Allowed: `fast`, `slow`. |' in readme
    assert "| `thing_secret` | str | empty | Nobody knows. |\n" in readme
    assert generate("--roles", str(role.parent), "--check").returncode == 0


def test_nested_keys_have_a_table_of_their_own(role: Path) -> None:
    spec = role / "meta/argument_specs.yml"
    keys = "        options:\n          name: {type: str, required: true, description: Its name.}\n"
    spec.write_text(SPEC.replace("        description: The parts.\n", f"        description: The parts.\n{keys}"))
    assert generate("--roles", str(role.parent)).returncode == 0
    assert (
        "Keys of each entry of `thing_parts`:\n\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n"
        "| `name` | str | required | Its name. |\n"
    ) in (role / "README.md").read_text()


@pytest.mark.parametrize("name", ["defaults/main.yml", "README.md"])
def test_a_change_by_hand_is_noticed_and_undone(role: Path, name: str) -> None:
    generate("--roles", str(role.parent))
    path = role / name
    text = path.read_text()
    path.write_text(text.replace("from 1 to 9", "from 1 to 99"))
    checked = generate("--roles", str(role.parent), "--check")
    assert checked.returncode == 1
    assert checked.stdout == (
        f"{path} differs from what its role's meta/argument_specs.yml says: run python ansible/generate.py.\n"
    )
    assert path.read_text() != text
    assert generate("--roles", str(role.parent)).stdout == f"{path}: written\n"
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("description: Nobody knows.", "default: 1", "thing_secret of the entry point main has no description: write"),
        ("        type: int\n", "", "thing_count of the entry point main has no type: write"),
        ("from 1 to 9.", "from {{ 1 }} to 9.", "thing_count of the entry point main has a template in its description"),
        ("preflight: *spec", "preflight: {options: {}}", "thing: write `main: &spec` and `preflight: *spec` in"),
    ],
)
def test_an_incomplete_spec_is_refused(role: Path, old: str, new: str, sentence: str) -> None:
    (role / "meta/argument_specs.yml").write_text(SPEC.replace(old, new))
    refused = generate("--roles", str(role.parent))
    assert refused.returncode == 1
    assert sentence in refused.stderr
    assert not (role / "defaults").exists()


def test_a_readme_without_the_markers_is_refused(role: Path) -> None:
    (role / "README.md").write_text("# Thing\n")
    refused = generate("--roles", str(role.parent))
    assert refused.returncode == 1
    assert "put them where the table of variables belongs" in refused.stderr


def test_a_role_that_is_none_is_refused(role: Path) -> None:
    refused = generate("--roles", str(role.parent), "thong")
    assert refused.returncode == 1
    assert refused.stderr == f"thong is no role in {role.parent}: name one of thing.\n"


def test_the_check_covers_each_role_that_has_variables(tmp_path: Path) -> None:
    for name in ROLES:
        shutil.copytree(ANSIBLE / "roles" / name, tmp_path / name)
        readme = tmp_path / name / "README.md"
        readme.write_text(readme.read_text().replace("| variable |", "| name |"))
    stale = generate("--roles", str(tmp_path), "--check").stdout.splitlines()
    assert [Path(line.split(" differs")[0]).parent.name for line in stale] == ROLES


@pytest.fixture
def gateway(tmp_path: Path) -> Path:
    """A copy of the role gateway, whose vars/main.yml holds what the daemon accepts."""
    return Path(shutil.copytree(ANSIBLE / "roles/gateway", tmp_path / "gateway"))


@pytest.mark.parametrize(
    ("old", "new"),
    [("max: 65536}", "max: 65537}"), ("default_drain_s: 30", "default_drain_s: 31"), ("  LISTEN:", "  LISTENS:")],
)
def test_manual_change_is_noticed_and_undone(gateway: Path, old: str, new: str) -> None:
    """The generator's --check reports a change made by hand to the generated variables; a run undoes it."""
    path = gateway / "vars/main.yml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    checked = generate("--roles", str(gateway.parent), "--check")
    assert checked.returncode == 1
    assert checked.stdout == f"{path} differs from what the gateway's schema says: run python ansible/generate.py.\n"
    assert generate("--roles", str(gateway.parent)).stdout == f"{path}: written\n"
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("# End of settings.", "# End.", "gateway: vars/main.yml has no line # End of settings.: put it behind"),
        (
            "admission.queue_max:",
            "admission.queue:",
            "gateway: __gateway_variable_of names admission.queue: name settings",
        ),
    ],
)
def test_part_that_cannot_be_written_is_refused(gateway: Path, old: str, new: str, sentence: str) -> None:
    """If the generator cannot write a part of the settings, it fails and leaves the file alone."""
    path = gateway / "vars/main.yml"
    text = path.read_text().replace(old, new)
    path.write_text(text)
    refused = generate("--roles", str(gateway.parent))
    assert refused.returncode == 1
    assert sentence in refused.stderr
    assert path.read_text() == text
