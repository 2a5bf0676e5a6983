"""Running the playbooks as an operator does, and reading what they say as data."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.deploy.host import Host, inventory

REPOSITORY = Path(__file__).parents[2]
ANSIBLE = REPOSITORY / "ansible"

#: Kept to find the reason of a failure.
LOGS = REPOSITORY / "build" / "deploy"

#: Installing vLLM takes minutes on a slow line; nothing else here comes near it (seconds).
PLAYBOOK_S = 1500.0


@dataclass(frozen=True)
class Task:
    """What became of one task on the host."""

    name: str
    path: str
    state: str
    result: Mapping[str, Any]

    @property
    def changed(self) -> bool:
        """Whether it changed something, or would have in check mode."""
        return bool(self.result.get("changed")) and self.state == "ok"

    @property
    def message(self) -> str:
        """What it said, of all its loop's items that failed if it has a loop."""
        items = [item for item in self.result.get("results", []) if item.get("failed")]
        return "\n".join(str(each.get("msg", each)) for each in items or [self.result])

    def __str__(self) -> str:
        where = self.path.removeprefix(str(REPOSITORY))
        details = {key: self.result[key] for key in ("msg", "cmd", "stdout", "stderr", "diff") if self.result.get(key)}
        return f"{self.state} [{self.name}] {where}\n    " + "\n    ".join(f"{k}: {v}" for k, v in details.items())


@dataclass(frozen=True)
class Run:
    """One run of a playbook, finished."""

    name: str
    status: int
    tasks: list[Task]
    output: str

    @property
    def changed(self) -> list[Task]:
        """What it changed, or would change."""
        return [task for task in self.tasks if task.changed]

    @property
    def failed(self) -> list[Task]:
        """What failed and was not expected to."""
        ignored = [task for task in self.tasks if task.result.get("ignore_errors")]
        return [task for task in self.tasks if task.state in ("failed", "unreachable") and task not in ignored]

    @property
    def report(self) -> str:
        """The tasks that failed, or the last of what was printed if it was none of them."""
        return "\n".join(map(str, self.failed)) or self.output[-3000:]

    def succeeded(self) -> "Run":
        """Itself; raises AssertionError with its report."""
        assert self.status == 0, f"ansible-playbook {self.name} ended with {self.status}:\n{self.report}"
        return self


def play(
    host: Host,
    playbook: str,
    *args: str,
    variables: Mapping[str, object],
    log: str,
    on_task: Callable[[str], None] = lambda _: None,
) -> Run:
    """Run a playbook on the host. `variables`: the inventory's. `log`: the name of its file in build/deploy.

    `on_task` is told the name of each task as it begins.
    """
    path = host.directory / f"{log}.yml"
    path.write_text(inventory(host, dict(variables)))
    lines = []
    for line in _jsonl(host, playbook, "--inventory", str(path), *args, log=log):
        lines.append(line)
        if line.startswith("{") and (event := json.loads(line))["_event"] == "v2_playbook_on_task_start":
            on_task(event["task"]["name"])
    output = "\n".join(line for line in lines if not line.startswith("{"))
    events = [json.loads(line) for line in lines if line.startswith("{")]
    tasks = [task for event in events for task in _tasks(event)]
    return Run(f"{playbook} ({log})", int(output.rsplit("\n", 1)[-1]), tasks, output)


def play_role(
    host: Host, role: str, *passes: str, args: Sequence[str], variables: Mapping[str, object], log: str
) -> Run:
    """Run files of one role's tasks in turn, as `play` runs a playbook; `args` are ansible-playbook's."""
    tasks = [{"name": each, "ansible.builtin.import_role": {"name": role, "tasks_from": each}} for each in passes]
    path = host.directory / f"{log}-play.yml"
    path.write_text(json.dumps([{"name": role, "hosts": "gpu_hosts", "become": True, "tasks": tasks}]))
    # A playbook is named as those of the collection are, from their directory.
    name = os.path.relpath(path.with_suffix(""), ANSIBLE / "playbooks")
    return play(host, name, *args, variables=variables, log=log)


def _jsonl(host: Host, playbook: str, *args: str, log: str) -> Iterator[str]:
    """The lines that it prints, an event each, and its status as the last; written to the log as they come."""
    command = [str(Path(sys.executable).with_name("ansible-playbook")), f"playbooks/{playbook}.yml", *args]
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.jsonl",
        # Its connections end with the host, and its sockets lie where a host's files do.
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(host.directory / "cp"),
        "ANSIBLE_NOCOLOR": "1",
        "PYTHONWARNINGS": "ignore",
    }
    LOGS.mkdir(parents=True, exist_ok=True)
    with (
        (LOGS / f"{log}.jsonl").open("w") as kept,
        subprocess.Popen(
            ["timeout", "--kill-after=10", str(PLAYBOOK_S), *command],
            cwd=ANSIBLE,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as running,
    ):
        assert running.stdout is not None
        try:
            for line in running.stdout:
                kept.write(line)
                kept.flush()
                yield line.rstrip("\n")
        except BaseException:
            # It is in a process group of its own, where Ctrl-C does not reach it; `timeout` passes this on.
            running.terminate()
            raise
    yield str(running.returncode)


def _tasks(event: Mapping[str, Any]) -> Iterator[Task]:
    kind = event["_event"].removeprefix("v2_runner_on_")
    if kind in ("ok", "failed", "unreachable", "skipped"):
        for result in event["hosts"].values():
            yield Task(event["task"]["name"], event["task"].get("path", ""), kind, result)
