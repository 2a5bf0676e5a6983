"""Programs of ours that run on this machine: starting them, and finding all that they started."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

SLUICEGATE = [sys.executable, "-m", "sluicegate"]

#: How long a program may take from the word to end to its end (seconds): vLLM has a grace of 10.
END_S = 60.0


class Program:
    """`sluicegate` with these arguments. Its standard error goes to a file, to find the reason of a failure."""

    def __init__(self, arguments: list[str], environ: dict[str, str], errors: Path) -> None:
        self.errors = errors
        with errors.open("wb") as file:
            self.process = subprocess.Popen(
                [*SLUICEGATE, *arguments],
                env=environ,
                cwd=errors.parent,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                start_new_session=True,
            )

    def read_until(self, words: str) -> str:
        """Its output up to the line with these words in it; all of it if there is none. Blocks."""
        lines = []
        for line in self._output:
            lines.append(line)
            if words in line:
                break
        return "".join(lines)

    def read_all(self) -> str:
        """The rest of its output, once it has closed it. Blocks."""
        return self._output.read()

    def interrupt(self) -> int:
        """Ctrl-C; its exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(END_S)

    @property
    def _output(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout


class Relative:
    """One process. `started` tells it from a later one with the same number (clock ticks since the boot)."""

    def __init__(self, pid: int) -> None:
        """Raises OSError if there is no such process."""
        self.pid = pid
        # The second field is the program's name in parentheses, in which anything may stand.
        name, _, rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")
        fields = rest.split()
        self.name = name.partition("(")[2]
        self.state, self.parent, self.started = fields[0], int(fields[1]), int(fields[19])

    @classmethod
    def everybody(cls) -> Iterator["Relative"]:
        """All processes of the machine."""
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                yield cls(int(directory.name))
            except OSError:
                continue  # it ended meanwhile

    def lives(self) -> bool:
        """Whether it is still there; a zombie has ended."""
        try:
            now = Relative(self.pid)
        except OSError:
            return False
        return now.started == self.started and now.state != "Z"

    def __repr__(self) -> str:
        return f"<{self.name} {self.pid} of {self.parent}>"


def family(pid: int) -> set[Relative]:
    """A process and all of its descendants that live now."""
    known = {relative.pid: relative for relative in Relative.everybody()}
    members = {pid}
    while more := {pid for pid, relative in known.items() if relative.parent in members} - members:
        members |= more
    return {known[pid] for pid in members if pid in known}


@contextmanager
def running(arguments: list[str], environ: dict[str, str], errors: Path) -> Iterator[Program]:
    """A program, of which nothing is left at the end of the block."""
    program = Program(arguments, environ, errors)
    try:
        yield program
    finally:
        if program.process.poll() is None:
            program.process.terminate()
            try:
                program.process.wait(END_S)
            except subprocess.TimeoutExpired:
                os.killpg(program.process.pid, signal.SIGKILL)
                program.process.wait()
        program._output.close()
