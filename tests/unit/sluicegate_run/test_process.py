import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluicegate_run import guard
from sluicegate_run.failure import RunError
from sluicegate_run.process import GUARD, Guarded, wait_ready
from tests.unit.sluicegate_run.world import PATIENCE_S, World

# A program that starts another one in a session of its own, which ignores SIGTERM, and says "ready"; what it inherits
# as descriptor 0 of `keep_open` stays open for as long as one of both lives.
FAMILY = """
import os, signal, sys
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(1, b"ready\\n")
    while True:
        signal.pause()
signal.signal(signal.SIGTERM, signal.{on_term})
while True:
    signal.pause()
"""


def family(on_term: str = "SIG_DFL") -> list[str]:
    return [sys.executable, "-IS", "-c", FAMILY.format(on_term=on_term)]


class Life:
    """A pipe whose writing end a program and everything that it starts keep open."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_inheritable(self.writer, True)

    def assert_over(self) -> None:
        os.close(self.writer)
        ready = select.select([self.reader], [], [], PATIENCE_S)[0]
        assert ready, "something of the program is left"
        assert os.read(self.reader, 1) == b""


@pytest.fixture
def life() -> Iterator[Life]:
    life = Life()
    yield life
    os.close(life.reader)


def started(argv: list[str], life: Life, grace_s: float = PATIENCE_S) -> Guarded:
    """The guarded program, when it has said that it is ready. Its standard error carries the writing end of `life`."""
    # The guard gives its program no descriptor but these; so the pipe goes through /proc.
    shell = f'exec "$@" 3>/proc/{os.getpid()}/fd/{life.writer}'
    program = Guarded(["/bin/sh", "-c", shell, "sh", *argv], grace_s=grace_s)
    for line in program.lines(PATIENCE_S):
        assert line == "ready", line
        break
    return program


def state_and_parent(program: Guarded) -> tuple[str, int]:
    """The letter of the program's state and the process id of its guard, out of /proc."""
    state, parent = Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()[:2]
    return state, int(parent)


def test_stop_leaves_nothing_of_a_family(life: Life) -> None:
    program = started(family(), life)
    program.stop()
    life.assert_over()
    assert program.wait(0) == 128 + signal.SIGTERM
    program.stop()


def test_stop_kills_what_does_not_heed_it(life: Life) -> None:
    program = started(family("SIG_IGN"), life, grace_s=0.05)
    program.stop()
    life.assert_over()
    assert program.wait(0) == 128 + signal.SIGKILL


def test_kill_leaves_nothing_of_a_family(life: Life) -> None:
    program = started(family("SIG_IGN"), life)
    program.kill()
    life.assert_over()
    assert program.wait(0) == 128 + signal.SIGKILL


def test_a_program_that_ends_by_itself_leaves_nothing(life: Life) -> None:
    program = started(family(), life)
    assert program.pid is not None
    os.kill(program.pid, signal.SIGABRT)
    assert program.wait(PATIENCE_S) == 128 + signal.SIGABRT
    life.assert_over()
    program.stop()


def test_a_guard_that_is_killed_takes_the_program_along(life: Life) -> None:
    # All of one process group: what is in a session of its own has only the guard to end it.
    program = started([sys.executable, "-IS", "-c", "import signal; print('ready', flush=True); signal.pause()"], life)
    os.kill(state_and_parent(program)[1], signal.SIGKILL)
    program.stop()
    life.assert_over()
    assert program.wait(0) == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_guard_that_is_told_to_end_ends_the_program(life: Life, number: signal.Signals) -> None:
    program = started(family(), life)
    os.kill(state_and_parent(program)[1], number)
    assert program.wait(PATIENCE_S) == 128 + signal.SIGTERM
    life.assert_over()
    program.stop()


def test_the_program_does_not_outlive_a_killed_parent(life: Life, tmp_path: Path) -> None:
    script = (
        "import sys, signal; from sluicegate_run.process import Guarded; "
        "p = Guarded(sys.argv[1:], grace_s=30); print(next(p.lines(30)), flush=True); signal.pause()"
    )
    shell = f'exec "$@" 3>/proc/{os.getpid()}/fd/{life.writer}'
    argv = [sys.executable, "-c", script, "/bin/sh", "-c", shell, "sh", *family()]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        parent.kill()
    life.assert_over()


def test_a_frozen_family_can_be_stopped(life: Life) -> None:
    program = started(family(), life)
    assert program.pid is not None
    os.killpg(program.pid, signal.SIGSTOP)
    deadline = time.monotonic() + PATIENCE_S
    while state_and_parent(program)[0] != "T":
        assert time.monotonic() < deadline
    program.stop()
    life.assert_over()
    assert program.wait(0) == 128 + signal.SIGTERM


def test_output_comes_line_by_line_and_ticks_between() -> None:
    script = (
        r"import sys, signal; print('one\rtwo', flush=True); signal.sigwait([10]); print('three', end='', flush=True)"
    )
    program = Guarded([sys.executable, "-IS", "-c", f"import signal; signal.pthread_sigmask(0, [10])\n{script}"])
    lines = program.lines(0.05)
    # How many ticks pass before it has started is the machine's affair.
    assert next(line for line in lines if line is not None) == "one"
    assert next(lines) == "two"
    assert next(lines) is None
    assert program.pid is not None
    os.killpg(program.pid, signal.SIGUSR1)
    assert [line for line in lines if line is not None] == ["three"]
    assert program.wait() == 0
    program.stop()


def test_output_may_go_to_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    program = Guarded(["/bin/sh", "-c", "echo out; echo err >&2; exit 3"], log=log)
    assert program.wait(PATIENCE_S) == 3
    program.stop()
    assert log.read_text() == "before\nout\nerr\n"


def test_becomes_readable_at_its_end() -> None:
    program = Guarded(["/bin/sh", "-c", "read line"], log=Path(os.devnull))
    assert select.select([program], [], [], PATIENCE_S)[0] == [program]
    program.stop()


def test_a_program_that_is_not_there_says_so(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = Guarded([tmp_path / "nothing"], log=log)
    assert program.pid is None
    assert program.wait(PATIENCE_S) == 127
    assert f"cannot start {tmp_path}/nothing: [Errno 2]" in log.read_text()
    program.kill()


def test_a_descriptor_is_kept_open_until_nothing_is_left() -> None:
    reader, writer = os.pipe()
    program = Guarded(["/bin/sh", "-c", "echo ready; read line < /dev/zero"], keep_open=[writer], grace_s=PATIENCE_S)
    assert next(program.lines(PATIENCE_S)) == "ready"
    os.close(writer)
    assert select.select([reader], [], [], 0)[0] == []
    program.stop()
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_guard_that_hangs_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sluicegate_run.process.GUARD_DEADLINE_S", 0.05)
    program = Guarded(["/bin/sh", "-c", "echo ready; read line < /dev/zero"], grace_s=0)
    assert next(program.lines(PATIENCE_S)) == "ready"
    os.kill(state_and_parent(program)[1], signal.SIGSTOP)
    program.stop()
    assert program.wait(0) == -signal.SIGKILL


def test_guard_gives_up_on_an_unkillable_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard returns the processes that it could not kill."""
    # Process 4711 survives SIGKILL and is never reaped: as one that hangs in a driver.
    monkeypatch.setattr(guard, "_children", lambda: iter([4711]))
    monkeypatch.setattr(guard, "_signal", lambda *_: None)
    monkeypatch.setattr(guard, "_reap", lambda _: None)
    monkeypatch.setattr(guard, "KILL_DEADLINE_S", 0.0)
    assert guard._kill_all() == [4711]


def test_guard_needs_only_the_standard_library() -> None:
    """The guard runs isolated from every installed package."""
    argv = [sys.executable, "-IS", str(GUARD), "1", "true"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as program:
        assert program.stdout is not None
        assert int(program.stdout.read()) > 0
    assert program.returncode == 0


@pytest.fixture
def address() -> str:
    """An address on which nothing listens yet."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def waited_for(world: World, address: str, timeout_s: float = PATIENCE_S) -> int | None:
    """Start the gateway of this world and wait until it is ready; its exit status after it was stopped."""
    log = world.directory / "gateway.log"
    program = Guarded([world.python, "serve"], env={**world.environ, "LISTEN": address}, log=log)
    try:
        wait_ready(program, "The gateway", address, "/ready", timeout_s, log)
    finally:
        program.stop()
    return program.wait()


def test_waits_until_a_program_is_ready(world: World, address: str) -> None:
    assert waited_for(world, address) == 0
    world.wait_for("gateway /ready")


def test_a_program_that_ends_instead_gives_its_reason(world: World, address: str) -> None:
    world.script(gateway=[2, "sluicegate: max_active must be from 1 to 65536"])
    with pytest.raises(RunError) as caught:
        waited_for(world, address)
    assert str(caught.value) == (
        "The gateway ended before it was ready (exit status 2, “sluicegate: max_active must be from 1 to 65536”): "
        f"read {world.directory}/gateway.log and run it again."
    )


def test_program_that_is_never_ready(world: World, address: str) -> None:
    """The error says what was seen last and which log to read."""
    world.script(gateway="hold")
    with pytest.raises(RunError, match=r"The gateway was not ready after 0 s \(ConnectionRefusedError: .*\): read "):
        waited_for(world, address, timeout_s=0.1)
