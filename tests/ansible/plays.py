"""A play on this machine, with a host for each case: for what the roles decide without a host of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ANSIBLE = Path(__file__).parents[2] / "ansible"

#: The longest play here has some 40 hosts and takes 20 s on two busy cores (seconds).
PLAY_S = 300


@dataclass(frozen=True)
class Played:
    """What a play printed: `events` as Ansible's jsonl callback writes them, `output` with its warnings and errors."""

    status: int
    events: list[dict[str, Any]]
    output: str

    @property
    def failures(self) -> dict[str, str]:
        """Host → the message of its failed task; of a loop, the messages of the items that failed."""
        failed = [event for event in self.events if event["_event"] == "v2_runner_on_failed"]
        return {name: _sentence(result) for event in failed for name, result in event["hosts"].items()}


def play(
    directory: Path,
    plays: str | Sequence[Mapping[str, object]],
    hosts: Mapping[str, Mapping[str, object]],
    programs: Path | None = None,
) -> Played:
    """Run plays on hosts that are this machine, each with its variables; an AssertionError if none of it began.

    `programs`: a directory whose programs come before this machine's.
    """
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory = {"all": {"hosts": {name: {**local, **variables} for name, variables in hosts.items()}}}
    (directory / "inventory.json").write_text(json.dumps(inventory))
    (directory / "play.yml").write_text(plays if isinstance(plays, str) else yaml.safe_dump(list(plays)))
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    if programs:
        kept["PATH"] = f"{programs}:{kept['PATH']}"
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-playbook")),
            *("--inventory", str(directory / "inventory.json"), str(directory / "play.yml")),
        ],
        cwd=ANSIBLE,
        env={
            **kept,
            "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.jsonl",
            "ANSIBLE_LOCAL_TEMP": str(directory / "tmp"),
            "ANSIBLE_HOME": str(directory / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "LC_ALL": "C.UTF-8",
        },
        capture_output=True,
        text=True,
        timeout=PLAY_S,
        check=False,
    )
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert events, done.stdout + done.stderr
    return Played(done.returncode, events, done.stdout + done.stderr)


def _sentence(result: Mapping[str, Any]) -> str:
    failed = [item for item in result.get("results", []) if item.get("failed")]
    return "\n".join(str(each.get("msg", each)) for each in failed or [result])
