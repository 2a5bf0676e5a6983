"""A program under guard: what `sluicegate run` starts, and what ends with it."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

GUARD = Path(__file__).with_name("guard.py")
# The guard gives up on a process that will not die 20 s after SIGKILL; a little longer, and it is the guard that hangs.
GUARD_DEADLINE_S = 25.0


class Guarded:
    """One program and everything it starts, in a session of its own (a Ctrl-C in the terminal does not reach it).

    It ends when `stop` or `kill` is called, or when this process ends, by kill -9 too (see guard.py).
    `log` takes the program's output, appended; without it the output is read with `lines`.
    `grace_s`: how long the program has between SIGTERM and SIGKILL.
    `keep_open`: descriptors that stay open until the last of the program's processes is gone (a lock, for one).
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        grace_s: float = 10.0,
        keep_open: Sequence[int] = (),
    ) -> None:
        self.argv = [str(word) for word in argv]
        self._grace_s = grace_s
        with contextlib.ExitStack() as stack:
            output = subprocess.PIPE if log is None else stack.enter_context(log.open("ab")).fileno()
            # -I: neither PYTHONPATH nor the current directory may put something else in place of the guard's modules.
            self._guard = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", GUARD, str(grace_s), *self.argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=env,
                pass_fds=keep_open,
                start_new_session=True,
            )
        assert self._guard.stdout is not None
        first = self._guard.stdout.readline()
        # Empty when the program could not be started: the guard has said why and is ending with 127.
        self.pid = int(first) if first else None

    def __repr__(self) -> str:
        return f"<Guarded {self.argv[0]} pid={self.pid} status={self.poll()}>"

    def poll(self) -> int | None:
        """The exit status once the program and all that it started are gone (128 + signal for a signal), else None."""
        return self._guard.poll()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for the end; the exit status, or None when it is still running after `timeout_s`."""
        try:
            return self._guard.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def fileno(self) -> int:
        """Becomes readable when the program has ended: several can be waited for in one select."""
        assert self._guard.stdout is not None
        return self._guard.stdout.fileno()

    def lines(self, tick_s: float) -> Iterator[str | None]:
        """The program's output line by line until it ends, and None whenever `tick_s` passed without any."""
        assert self._guard.stderr is not None
        descriptor = self._guard.stderr.fileno()
        tail = ""
        tick_at = time.monotonic() + tick_s
        while True:
            if not select.select([descriptor], [], [], max(0.0, tick_at - time.monotonic()))[0]:
                yield None
                tick_at = time.monotonic() + tick_s
                continue
            if not (chunk := os.read(descriptor, 65536)):
                break
            # pip's own bars and tqdm end their lines with a carriage return.
            *whole, tail = (tail + chunk.decode(errors="replace")).replace("\r", "\n").split("\n")
            yield from whole
        if tail:
            yield tail

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program and what it started in its process group (to freeze it, for one)."""
        if self.pid is not None and self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def kill(self) -> None:
        """End it at once, as an out-of-memory kill would; returns when nothing of it is left."""
        self.signal(signal.SIGKILL)
        self._finish(GUARD_DEADLINE_S)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for what is left after the grace; returns when nothing of it is left. Repeatable."""
        self._finish(self._grace_s + GUARD_DEADLINE_S)

    def _finish(self, deadline_s: float) -> None:
        for pipe in (self._guard.stdin, self._guard.stderr):
            if pipe is not None:
                pipe.close()
        if self.wait(deadline_s) is None:
            self._guard.kill()
            self._guard.wait()
        if self._guard.returncode < 0 and self.pid is not None:
            # The guard itself was killed: the kernel has ended the program, and nobody the rest of its group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        assert self._guard.stdout is not None
        self._guard.stdout.close()
