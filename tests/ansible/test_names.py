"""A task's name is an imperative and its object: "Read the unit's state", not "Ask whether it runs"."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ANSIBLE = Path(__file__).parents[2] / "ansible"
FILES = sorted(
    path
    for pattern in ("roles/*/tasks/*.yml", "roles/*/handlers/*.yml", "playbooks/**/*.yml")
    for path in ANSIBLE.glob(pattern)
)

#: Imperatives that say what a task does; add one where none of these does, but no vague one ("Look", "Ask", "Let").
VERBS = frozenset({
    "Add", "Announce", "Apply", "Build", "Check", "Choose", "Close", "Compare", "Compute", "Configure", "Connect",
    "Copy", "Create", "Decide", "Disable", "Download", "Drop", "Enable", "Enrol", "Fetch", "Find", "Generate", "Give",
    "Hold", "Install", "Keep", "List", "Load", "Make", "Mark", "Name", "Note", "Pack", "Pin", "Prepare", "Provision",
    "Put", "Read", "Reboot", "Reload", "Remove", "Replace", "Report", "Request", "Reset", "Restart", "Restore",
    "Resume", "Roll", "Sandbox", "Save", "Schedule", "Set", "Start", "Stop", "Switch", "Test", "Try", "Uninstall",
    "Unpack", "Update", "Upgrade", "Verify", "Wait", "Write",
})  # fmt: skip


def tasks(nodes: object) -> Iterator[dict[str, object]]:
    """All plays, tasks and blocks, those inside of others too."""
    for node in nodes if isinstance(nodes, list) else []:
        yield node
        for key in ("tasks", "pre_tasks", "post_tasks", "handlers", "block", "rescue", "always"):
            yield from tasks(node.get(key))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ANSIBLE)))
def test_task_names_begin_with_an_imperative(path: Path) -> None:
    names = [str(task.get("name", "")) for task in tasks(yaml.safe_load(path.read_text()))]
    assert [name for name in names if (name.split() or [""])[0] not in VERBS] == []
