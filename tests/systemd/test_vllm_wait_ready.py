"""vllm-wait-ready, in front of a server on a real Unix socket."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer

import pytest

from tests.systemd.programs import load, run

UNIT = "vllm@main.service"


class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    #: Statuses to answer with, one a request; the last stays.
    statuses: list[int]
    asked: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        status = self.server.statuses.pop(0) if len(self.server.statuses) > 1 else self.server.statuses[0]
        self.send_response(status)
        self.end_headers()

    def address_string(self) -> str:
        return "unix"

    def log_request(self, code: object = "-", size: object = "-") -> None:
        pass


@contextlib.contextmanager
def engine(directory: Path, *statuses: int) -> Iterator[Server]:
    with Server(str(directory / "engine.sock"), Handler) as server:
        server.statuses, server.asked = list(statuses), []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: a Unix socket's has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="engine-") as path:
        yield Path(path)


def wait(directory: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return run("vllm-wait-ready", UNIT, env={"RUNTIME_DIRECTORY": str(directory)} | settings)


def test_it_waits_until_the_engine_is_healthy(directory: Path) -> None:
    with engine(directory, 503, 503, 200) as server:
        done = wait(directory, MAINPID=str(os.getpid()))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"The engine answers on {directory}/engine.sock after ")
    assert server.asked == ["/health"] * 3


def test_it_waits_for_the_socket_itself(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine begins to listen while the program pauses for the first time."""
    program = load("vllm-wait-ready")
    with contextlib.ExitStack() as stack:

        def listen(seconds: float) -> None:
            stack.enter_context(engine(directory, 200))

        monkeypatch.setattr(program.time, "sleep", listen)
        assert program.wait(f"{directory}/engine.sock", 30.0, os.getpid(), UNIT) == 0


@pytest.mark.parametrize(
    ("statuses", "seen"), [((503,), "/health says 503"), ((), "FileNotFoundError"), ((404,), "/health says 404")]
)
def test_the_deadline_is_kept_and_says_what_was_seen(directory: Path, statuses: tuple[int, ...], seen: str) -> None:
    with engine(directory, *statuses) if statuses else contextlib.nullcontext():
        done = wait(directory, ENGINE_READY_TIMEOUT_S="1")
    assert done.returncode == 1
    assert done.stderr.startswith(f"The engine was not ready on {directory}/engine.sock within 1 s ({seen}")
    assert f"`journalctl -u {UNIT}`" in done.stderr
    assert "ENGINE_READY_TIMEOUT_S" in done.stderr


def test_silent_server_does_not_block(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server that accepts a connection and says nothing costs no more than the timeout."""
    program = load("vllm-wait-ready")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(directory / "engine.sock"))
        silent.listen()
        assert program.wait(f"{directory}/engine.sock", 0.3, 0, UNIT) == 1
    assert "(TimeoutError: timed out)" in capsys.readouterr().err


def test_garbage_is_not_health(directory: Path) -> None:
    program = load("vllm-wait-ready")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "engine.sock"))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        seen = program.look(f"{directory}/engine.sock", 5.0)
        thread.join()
    assert seen is not None
    assert seen.startswith("BadStatusLine")


def test_an_engine_that_has_ended_is_not_waited_for(directory: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    # The deadline lies beyond the test's own.
    done = wait(directory, MAINPID=str(ended.pid), ENGINE_READY_TIMEOUT_S="7200")
    assert done.returncode == 1
    assert done.stderr == f"The engine exited before it was ready: read its last lines with `journalctl -u {UNIT}`.\n"


@pytest.mark.parametrize("value", ["0", "7201", "-1", "1.5", "soon", "9" * 30])
def test_a_wrong_deadline_is_refused_by_name(directory: Path, value: str) -> None:
    done = wait(directory, ENGINE_READY_TIMEOUT_S=value)
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"ENGINE_READY_TIMEOUT_S = '{value}' must be a whole number of seconds from 1 to 7200"
    )


def test_outside_of_its_unit_it_says_so() -> None:
    done = run("vllm-wait-ready", UNIT, env={})
    assert done.returncode == 1
    assert "start the engine by systemctl" in done.stderr
    assert run("vllm-wait-ready", env={}).returncode == 1
