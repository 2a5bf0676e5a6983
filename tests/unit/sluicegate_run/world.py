"""The machine around an embedded engine, as far as its tests need one: see fake_machine.py for the programs on it."""

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sluicegate_run.prepare import Outside
from sluicegate_run.recipe import NO_GPU, Hardware

REPOSITORY = Path(__file__).parents[3]
# What a step takes is milliseconds; a test that waits this long has failed.
PATIENCE_S = 30.0


class World:
    """`directory` is the test's own; `hardware` and `free` are what the machine claims to have, `lacking` what not."""

    def __init__(self, directory: Path, *, hardware: Hardware = NO_GPU, free: int = 10**12) -> None:
        self.directory = directory
        self.cache = directory / "cache"
        self.hardware = hardware
        self.lacking: set[str] = set()
        self.free = free
        self.variables: dict[str, str] = {}
        self.python = directory / "python"
        self.python.write_text(f"#!{sys.executable} -IS\n{Path(__file__).with_name('fake_machine.py').read_text()}")
        self.python.chmod(0o755)
        # Short: the path of a Unix socket has 107 bytes at most, and pytest's directories are long.
        self.runtime = tempfile.TemporaryDirectory(prefix="sg-")
        os.mkfifo(directory / "steps")
        self._reader = os.open(directory / "steps", os.O_RDONLY | os.O_NONBLOCK)
        # Our own writer: no end of file before the first program has come.
        self._writer = os.open(directory / "steps", os.O_WRONLY)
        self._seen = b""
        self.script()

    def close(self) -> None:
        os.close(self._reader)
        if self._writer != -1:
            os.close(self._writer)
        self.runtime.cleanup()

    def script(self, **steps: Any) -> None:
        """What the programs do at each step from now on: nothing special, "hold", or [exit status, *last lines]."""
        (self.directory / "script.json").write_text(json.dumps(steps))

    def answer(self, *events: Any, done: bool = True, raw: str = "") -> None:
        """What the gateway streams for a question."""
        body = (
            "".join(f"data: {json.dumps(event)}\n\n" for event in events) + raw + ("data: [DONE]\n\n" if done else "")
        )
        (self.directory / "answer").write_text(body)

    @property
    def environ(self) -> Mapping[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name not in ("LISTEN", "MODEL", "MAX_ACTIVE")}
        private = {"FAKE_WORLD": str(self.directory), "SLUICEGATE_CACHE": str(self.cache)}
        return {**inherited, **private, "XDG_RUNTIME_DIR": self.runtime.name, **self.variables}

    @property
    def outside(self) -> Outside:
        return Outside(
            self.environ,
            self.python,
            look=lambda: self.hardware,
            free=lambda _: self.free,
            has_library=lambda name: name not in self.lacking,
        )

    def use_cache(self, prepared: Path) -> None:
        """Have everything prepared already; the programs find their world by FAKE_WORLD, so the copy is as good."""
        shutil.copytree(prepared, self.cache)

    def spawn(self, what: str, *arguments: str) -> "subprocess.Popen[str]":
        """Run player.py (a preparation, or a whole run) as a process that can be killed."""
        return subprocess.Popen(
            [sys.executable, Path(__file__).with_name("player.py"), what, self.directory, *arguments],
            env={**self.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'daemon'}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def read(self, name: str) -> Any:
        """What a program left behind in this file."""
        return json.loads((self.directory / name).read_text())

    def pip_calls(self) -> list[list[str]]:
        log = self.directory / "pip.log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def wait_for(self, step: str) -> None:
        """Until a program has come to this step; earlier ones are forgotten."""
        line = f"{step}\n".encode()
        deadline = time.monotonic() + PATIENCE_S
        while line not in self._seen:
            self._receive(deadline, f"nobody came to {step!r}")
        self._seen = self._seen.partition(line)[2]

    def wait_until_all_are_gone(self) -> None:
        """Until no program lives; raises AssertionError if one stays."""
        os.close(self._writer)
        self._writer = -1
        deadline = time.monotonic() + PATIENCE_S
        while self._receive(deadline, "a program is still there"):
            pass
        self._writer = os.open(self.directory / "steps", os.O_WRONLY)

    def whole_parts(self) -> list[str]:
        return sorted(marker.parent.parent.name for marker in self.cache.glob("*/*/COMPLETE"))

    def _receive(self, deadline: float, complaint: str) -> bool:
        """False at the end of file."""
        ready = select.select([self._reader], [], [], max(0.0, deadline - time.monotonic()))[0]
        assert ready, f"{complaint}; seen: {self._seen!r}"
        chunk = os.read(self._reader, 65536)
        self._seen += chunk
        return bool(chunk)
