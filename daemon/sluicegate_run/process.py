"""Programs that `sluicegate run` starts: they end with it, and it can wait until they are ready."""

import contextlib
import functools
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

from .failure import RunError, ended
from .progress import Bar

GUARD = Path(__file__).with_name("guard.py")
# The guard gives up on a process that cannot be killed 20 s after SIGKILL; if it takes longer, the guard itself hangs.
GUARD_DEADLINE_S = 25.0
# The program that the deployment's unit waits with. It is in a checkout, as this package is.
WAIT_READY = Path(__file__).parents[2] / "systemd" / "libexec" / "vllm-wait-ready"


class Guarded:
    """One program and everything that it starts, in a session of its own (Ctrl-C in the terminal does not reach it).

    It ends when `stop` or `kill` is called, or when this process ends, by kill -9 too (see guard.py).
    `log` gets the program's output, appended; without it the output is read with `lines`.
    `grace_s`: the time between SIGTERM and SIGKILL.
    `keep_open`: descriptors that stay open until the last of the program's processes has ended (a lock, for one).
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
        self._grace_s = grace_s
        with contextlib.ExitStack() as stack:
            output = subprocess.PIPE if log is None else stack.enter_context(log.open("ab")).fileno()
            # -I: neither PYTHONPATH nor the current directory may replace the guard's modules.
            self._guard = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", GUARD, str(grace_s), *map(str, argv)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=env,
                pass_fds=keep_open,
                start_new_session=True,
            )
        assert self._guard.stdout is not None
        first = self._guard.stdout.readline()
        # Empty if the program could not be started: the guard has said why and ends with 127.
        self.pid = int(first) if first else None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until the program and all that it started have ended; the exit status (128 + the number for a signal),
        or None if something still runs after `timeout_s`."""
        try:
            return self._guard.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def fileno(self) -> int:
        """Becomes readable when the program has ended: one select can wait for several."""
        assert self._guard.stdout is not None
        return self._guard.stdout.fileno()

    def lines(self, tick_s: float) -> Iterator[str | None]:
        """The program's output line by line until it ends, and None whenever `tick_s` passed without a line."""
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

    def kill(self) -> None:
        """SIGKILL to all of it, as an out-of-memory kill would; returns when nothing of it is left."""
        if self.wait(0) is None:
            self._kill_group()
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
        if self._guard.returncode < 0:
            # The guard itself was killed: the kernel has ended the program, but not the rest of its group.
            self._kill_group()
        assert self._guard.stdout is not None
        self._guard.stdout.close()

    def _kill_group(self) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


def wait_ready(
    program: Guarded, name: str, address: str, target: str, timeout_s: float, log: Path, bar: Bar | None = None
) -> None:
    """Wait until GET `target` on `address` (`host:port` or a Unix socket's path) is answered 200.

    Raises RunError if the program ends first or needs more than `timeout_s`.
    """
    waiter = _waiter()

    def has_ended(pause_s: float) -> bool:
        return bool(select.select([program], [], [], pause_s)[0])

    def waiting(passed_s: float, _seen: str) -> None:
        if bar is not None:
            bar.update(passed_s)

    try:
        waiter.until_ready(lambda limit_s: waiter.look(address, limit_s, target), timeout_s, has_ended, waiting)
    except waiter.EndedError:
        raise ended(name, "before it was ready", program.wait(), log) from None
    except TimeoutError as error:
        raise RunError(
            f"{name} was not ready after {timeout_s:.0f} s ({error}): read {log} and run it again."
        ) from None


@functools.cache
def _waiter() -> ModuleType:
    loader = SourceFileLoader("vllm_wait_ready", str(WAIT_READY))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module
