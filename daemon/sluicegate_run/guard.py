"""Stands between `sluicegate run` and one program, so that the program never outlives it.

    python guard.py GRACE_SECONDS PROGRAM [ARGUMENT ...]

`sluicegate run` may be ended by kill -9, and vLLM's API server too: nobody then tells the EngineCore that it started,
which would keep the memory of the GPU. So the guard

- reads its standard input: end of file means "stop", and arrives by itself when the parent dies, however it dies;
- is the subreaper of all that the program starts: a process that loses its parent, or starts a session of its own,
  becomes a child of the guard, which kills its children until it has none;
- has the kernel kill the program if the guard itself is killed.

It writes the program's process id to its standard output and ends with the program's exit status (128 + the signal's
number for a signal, as a shell does). The program's output goes to the guard's standard error.
It runs by its path, isolated, so it uses the standard library only.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

# A killed process ends within milliseconds, except in a driver's call: do not wait for that one for ever.
KILL_DEADLINE_S = 20.0
# A convention of shells: the program could not be started at all.
EXIT_NOT_STARTED = 127

_libc = ctypes.CDLL(None, use_errno=True)


def main(argv: Sequence[str]) -> int:
    grace_s, program = float(argv[0]), list(argv[1:])
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    woken = _wake_on(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    guard = os.getpid()

    def die_with_guard() -> None:  # pragma: no cover -- between fork and exec nothing can be measured
        """In the child, before it becomes the program: no guard, no program."""
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guard:
            os._exit(EXIT_NOT_STARTED)

    try:
        child = subprocess.Popen(  # noqa: S603
            program, stdin=subprocess.DEVNULL, stdout=2, stderr=2, start_new_session=True, preexec_fn=die_with_guard
        )
    except (OSError, subprocess.SubprocessError) as error:
        print(f"cannot start {program[0]}: {error}", file=sys.stderr)
        return EXIT_NOT_STARTED
    try:
        print(child.pid, flush=True)
        status = _guard(child.pid, woken, grace_s)
    finally:
        left = _kill_all()
    if left:
        print(f"still there after SIGKILL: {left}", file=sys.stderr)
    return status


def _guard(pid: int, woken: int, grace_s: float) -> int:
    """Wait until the program ends, or end it when told to stop; its exit status."""
    while (status := _reap(pid)) is None:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready and not _asked_to_stop(woken):
            continue
        _signal(pid, signal.SIGTERM)
        # A frozen program gets SIGTERM only when it runs again.
        _signal(pid, signal.SIGCONT)
        deadline = time.monotonic() + grace_s
        while (status := _reap(pid)) is None and (left := deadline - time.monotonic()) > 0:
            if select.select([woken], [], [], left)[0]:
                os.read(woken, 64)
        if status is None:
            return 128 + signal.SIGKILL
        break
    return status


def _asked_to_stop(woken: int) -> bool:
    return any(number != signal.SIGCHLD for number in os.read(woken, 64))


def _reap(pid: int) -> int | None:
    """Collect every dead child; the exit status of `pid` if it was among them."""
    status = None
    while True:
        try:
            dead, code = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if dead == 0:
            return status
        if dead == pid:
            code = os.waitstatus_to_exitcode(code)
            status = code if code >= 0 else 128 - code


def _kill_all() -> list[int]:
    """Kill children until there are none: those of a killed child become the guard's own. Returns what did not end."""
    deadline = time.monotonic() + KILL_DEADLINE_S
    while left := list(_children()):
        for pid in left:
            _signal(pid, signal.SIGKILL)
        _reap(0)
        if time.monotonic() > deadline:
            return left
        time.sleep(0.01)
    return []


def _children() -> Iterator[int]:
    """Process ids of this process's living children, out of /proc: the fourth field of `stat` is the parent."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The second field is the program's name in parentheses, in which may contain anything, parentheses too.
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            yield int(stat.parent.name)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _wake_on(*signals: signal.Signals) -> int:
    """A descriptor that becomes readable, with the signals' numbers in it, when one of them arrives."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in signals:
        signal.signal(number, lambda *_: None)
    return reader


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
