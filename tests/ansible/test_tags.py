"""`--tags ROLE` runs all that a playbook does for that role and nothing that it does for another."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ANSIBLE = Path(__file__).parents[2] / "ansible"
ROLES = {path.name for path in (ANSIBLE / "roles").iterdir()} - {"common"}

#: The plays of each playbook, each with the roles that it has tasks of.
PLAYS = {
    "site": {"Check before anything changes": ROLES, "Build": ROLES, "Verify": ROLES},
    "verify": {"Verify": ROLES},
    "upgrade": {"Check before anything changes": {"uv", "vllm", "gateway"}, "Upgrade": {"uv", "vllm", "gateway"}},
    "uninstall": {"Uninstall": ROLES},
}


def listed(playbook: str, *args: str) -> Iterator[tuple[str, str, str, set[str]]]:
    """Play, role, name and tags of each task; the tasks of the playbook itself have no role."""
    result = subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-playbook")),
            f"playbooks/{playbook}.yml",
            "--inventory=inventories/example/hosts.yml",
            "--list-tasks",
            *args,
        ],
        cwd=ANSIBLE,
        capture_output=True,
        text=True,
        check=True,
    )
    play = ""
    for line in result.stdout.splitlines():
        if begun := re.match(r"  play #\d+ \(\w+\): (.*)\tTAGS: ", line):
            play = begun[1]
        elif task := re.match(r"      (?:(\w+) : )?(.*)\tTAGS: \[(.*)\]$", line):
            yield play, task[1] or "", task[2], {tag for tag in task[3].split(", ") if tag}


@pytest.mark.parametrize("playbook", PLAYS)
def test_each_role_has_its_tag_in_each_pass(playbook: str) -> None:
    found: dict[str, set[str]] = {play: set() for play in PLAYS[playbook]}
    for play, role, name, tags in listed(playbook):
        roles = tags & ROLES
        if role in ROLES and "always" not in tags:
            assert roles == {role}, name
            found[play].add(role)
        elif role == "common" and tags != {"always"}:
            assert len(roles) == 1, name
    assert found == PLAYS[playbook]


def test_a_tag_runs_the_three_passes_of_its_role_alone() -> None:
    tasks = [(play, role) for play, role, _, tags in listed("site", "--tags=grafana") if "always" not in tags]
    assert {role for _, role in tasks} <= {"grafana", "common"}
    assert {play for play, _ in tasks} == set(PLAYS["site"])
