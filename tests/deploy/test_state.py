"""The list of what is state: it names what the roles keep, and the documentation names it."""

import re
from typing import Any

import pytest
import yaml

from tests.deploy.playbooks import ANSIBLE, REPOSITORY

LIST: dict[str, Any] = yaml.safe_load((ANSIBLE / "playbooks/vars/state.yml").read_text())
PARTS: list[dict[str, Any]] = LIST["state"]


def _cells(paths: list[str]) -> str:
    return ", ".join(f"`{path}`" for path in paths)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part["name"])
def test_docs_have_its_row(part: dict[str, Any]) -> None:
    stopped = "yes" if part["stop_to_copy"] else "no"
    row = f"| `{part['name']}` | {_cells(part['paths'])} | {_cells(part['configuration'])} | {stopped} |"
    assert row in (REPOSITORY / "docs/deploy.md").read_text().splitlines()


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part["name"])
def test_its_role_knows_the_paths_and_the_units(part: dict[str, Any]) -> None:
    """A path that a role moves must move here too, or the archive would lack it without a word."""
    role = ANSIBLE / "roles" / part["name"]
    texts = [path.read_text() for path in sorted(role.glob("**/*.yml"))]
    texts += [path.read_text() for path in (REPOSITORY / "systemd").glob("*.service")]
    for path in part["paths"] + part["configuration"]:
        # By the first three parts: what lies below is the program's own, and in a drop-in or a template.
        directory = "/".join(path.split("/")[:4])
        assert any(directory in text for text in texts), path
    for unit in part["units"]:
        assert any(unit in text for text in texts), unit


def test_data_that_an_uninstall_keeps_is_in_the_list() -> None:
    """uninstall.yml keeps data unless it is told otherwise: all that may be lost only on demand is worth a backup."""
    saved = [path for part in PARTS for path in part["paths"] + part["configuration"]]
    kept = set()
    for path in sorted((ANSIBLE / "roles").glob("*/tasks/uninstall.yml")):
        for task in _tasks(yaml.safe_load(path.read_text())):
            if "uninstall_data" in str(task.get("when", "")):
                kept |= set(re.findall(r"/var/lib/[a-z-]+", str(task)))
    # Models are downloaded again.
    kept -= {"/var/lib/vllm"}
    assert kept >= {"/var/lib/sluicegate", "/var/lib/grafana", "/var/lib/open-webui"}
    assert [path for path in kept if not any(each.startswith(path) for each in saved)] == []


def _tasks(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All of them, those in blocks too."""
    return [each for task in tasks for each in [task, *_tasks(task.get("block", []))]]
