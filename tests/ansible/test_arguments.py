"""A value of a wrong type stops a role's preflight, and its main entry point, before its first task."""

import json
from pathlib import Path

import pytest
import yaml

from tests.ansible.plays import play

REPOSITORY = Path(__file__).parents[2]
ANSIBLE = REPOSITORY / "ansible"
ROLES = sorted(path.parents[1].name for path in ANSIBLE.glob("roles/*/meta/argument_specs.yml"))

#: What no option of this type takes.
WRONG = {"bool": "perhaps", "int": "many", "float": "many", "list": {"a": 1}, "dict": 1}


def options(role: str, entry: str) -> dict[str, dict[str, object]]:
    specs = yaml.safe_load((ANSIBLE / "roles" / role / "meta/argument_specs.yml").read_text())
    return dict(specs["argument_specs"].get(entry, {}).get("options", {}))


def wrong_values(role: str) -> dict[str, object]:
    """A value of a wrong type for each variable that has one; texts are all that a text can be made of."""
    return {
        name: WRONG[str(option["type"])]
        for name, option in options(role, "main").items()
        if option["type"] in ("bool", "int", "float", "list", "dict")
    }


@pytest.mark.parametrize("entry", ["main", "preflight"])
def test_a_wrong_type_is_refused_before_the_first_task(entry: str, tmp_path: Path) -> None:
    """All roles in one play: it takes seconds to start one. The host is this machine, without root."""
    said = tmp_path / "said.json"
    cases = [role for role in ROLES if wrong_values(role)]
    blocks = [
        {
            "name": f"Run {role}",
            "vars": {"role": role},
            "block": [
                {
                    "name": f"Include {role}",
                    "ansible.builtin.include_role": {"name": role, "tasks_from": entry},
                    "vars": wrong_values(role),
                }
            ],
            "rescue": [
                {
                    "name": f"Keep what {role} said",
                    "ansible.builtin.set_fact": {"said": "{{ said | default({}) | combine({role: answer}) }}"},
                    "vars": {"answer": "{{ [ansible_failed_task.name, ansible_failed_result.msg] }}"},
                }
            ],
        }
        for role in cases
    ]
    write = {
        "name": "Write it down",
        "ansible.builtin.copy": {"content": "{{ said | to_json }}", "dest": str(said), "mode": "0644"},
    }
    plays = [{"name": "Validate", "hosts": "all", "gather_facts": True, "tasks": [*blocks, write]}]
    played = play(tmp_path, plays, {"localhost": {"sluicegate_files": str(REPOSITORY)}})
    assert played.status == 0, played.output
    answers = json.loads(said.read_text())
    assert sorted(answers) == cases
    for role in cases:
        task, message = answers[role]
        assert task.startswith("Validating arguments"), task
        for name in wrong_values(role):
            assert f"argument '{name}' is of type" in message, message
