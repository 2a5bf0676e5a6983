"""The protocols between systemd and a service, against sockets and files of the test's own."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sluicegate
from sluicegate.service import systemd
from sluicegate.service.systemd import CREDENTIAL_MAX_BYTES, HandoverError, Notifier, credential, take

PID = 4711


class Manager:
    """systemd's end of the notification socket."""

    def __init__(self, address: str | bytes) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(address)
        self.sock.setblocking(False)

    def heard(self) -> list[str]:
        """The next notification."""
        return self.sock.recv(1 << 16).decode().split("\n")

    def heard_nothing(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            self.sock.recv(1)
            return False
        return True


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    with made.sock:
        yield made


@pytest.fixture
def notifier(tmp_path: Path) -> Iterator[Notifier]:
    with contextlib.closing(Notifier(str(tmp_path / "notify"))) as made:
        yield made


# --- notifications ---


def test_each_state_is_told_in_the_words_of_sd_notify(manager: Manager, notifier: Notifier) -> None:
    notifier.ready("Serving.")
    assert manager.heard() == ["READY=1", "STATUS=Serving."]
    notifier.status("Still serving.")
    assert manager.heard() == ["STATUS=Still serving."]
    notifier.stopping("Draining.", 30.5)
    assert manager.heard() == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=30500000", "STATUS=Draining."]
    notifier.alive()
    assert manager.heard() == ["WATCHDOG=1"]
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    told, stamp = manager.heard()
    assert told == "RELOADING=1"
    name, _, value = stamp.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= time.monotonic_ns() // 1000


def test_a_status_stays_one_short_line_whatever_is_in_it(manager: Manager, notifier: Notifier) -> None:
    notifier.status("a\nREADY=1\x1b[2J" + "\ud800" + "ä" * 5000)
    (line,) = manager.heard()
    assert line.startswith("STATUS=a?READY=1?[2J?ää")
    assert line.endswith("ä…")
    assert len(line.encode()) < 4096


def test_an_abstract_address() -> None:
    name = f"sluicegate-test-{os.getpid()}"
    manager = Manager(b"\0" + name.encode())
    with manager.sock, contextlib.closing(Notifier(f"@{name}")) as notifier:
        notifier.alive()
        assert manager.heard() == ["WATCHDOG=1"]


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "notify"])
def test_unknown_address_sends_nothing(address: str, manager: Manager) -> None:
    """Without an address that the notifier understands, it sends nothing."""
    notifier = Notifier(address)
    notifier.ready("Serving.")
    notifier.close()
    assert manager.heard_nothing()


def test_absent_manager_costs_only_its_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manager that is gone or does not read loses its messages, and the notifier goes on."""
    monkeypatch.setattr(systemd, "SEND_TIMEOUT_S", 0.01)
    with contextlib.closing(Notifier(str(tmp_path / "nobody"))) as notifier:
        notifier.ready("Serving.")
    manager = Manager(str(tmp_path / "full"))
    with manager.sock, contextlib.closing(Notifier(str(tmp_path / "full"))) as notifier:
        queued = fill(str(tmp_path / "full"))
        notifier.alive()
        assert [manager.heard() for _ in range(queued)] == [["x"]] * queued
        assert manager.heard_nothing()


def fill(address: str) -> int:
    """Send until no more is taken; how many datagrams were."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        for sent in range(100_000):
            try:
                sock.sendto(b"x", address)
            except BlockingIOError:
                return sent
    raise AssertionError("the queue never filled")


def test_a_closed_notifier_says_nothing(manager: Manager, notifier: Notifier) -> None:
    notifier.close()
    notifier.close()
    notifier.alive()
    assert manager.heard_nothing()


# --- what is taken from the environment ---


def test_nothing_is_there_without_systemd() -> None:
    environ = {"PATH": "/bin"}
    service = take(environ, PID)
    assert (service.sockets, service.watchdog_s, environ) == ((), None, {"PATH": "/bin"})


def test_what_was_taken_is_in_the_environment_no_more(manager: Manager) -> None:
    address = manager.sock.getsockname()
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(PID), "HOME": "/"}
    environ |= {"LISTEN_PID": str(PID), "LISTEN_FDS": "0", "LISTEN_FDNAMES": ""}
    service = take(environ, PID)
    assert environ == {"HOME": "/"}
    assert service.watchdog_s == 20.0
    with contextlib.closing(service.notifier) as notifier:
        notifier.alive()
    assert manager.heard() == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    ("microseconds", "for_pid", "seconds"),
    [
        ("1500000", "", 1.5),
        ("1500000", str(PID), 1.5),
        ("1500000", "1", None),
        ("0", "", None),
        ("", "", None),
        ("-1", "", None),
        ("soon", "", None),
        ("٣", "", None),
        ("9" * 5000, "", None),
    ],
)
def test_the_watchdog_is_for_one_process_and_has_a_pace(microseconds: str, for_pid: str, seconds: float | None) -> None:
    environ = {"WATCHDOG_USEC": microseconds, "WATCHDOG_PID": for_pid}
    assert take(environ, PID).watchdog_s == seconds
    assert environ == {}


# --- sockets ---

#: Puts sockets of its own where systemd would put them, then says what became of them. A process of its own: in this
#: one, descriptor 3 may belong to anything.
PROGRAM = """
import os, socket, sys
from sluicegate.service.systemd import HandoverError, take

def tcp(listening=True):
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    if listening:
        sock.listen()
    return sock

def datagram():
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

def unix():
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("s")
    sock.listen()
    return sock

made = [eval(what) for what in sys.argv[2:]]
parked = [os.dup(each.fileno() if hasattr(each, "fileno") else each) for each in made]
parked = [os.dup2(fd, 100 + at) for at, fd in enumerate(parked)]
os.closerange(3, 100)
for at, fd in enumerate(parked):
    os.dup2(fd, 3 + at, inheritable=True)
environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": sys.argv[1], "LISTEN_FDNAMES": "http:"}
try:
    service = take(environ, os.getpid())
except HandoverError as error:
    print(error)
else:
    print([(sock.fileno(), sock.family.name, sock.get_inheritable()) for sock in service.sockets])
assert not environ
for each in made:
    if hasattr(each, "detach"):
        each.detach()
"""


def handed_over(count: str, *made: str, directory: Path) -> str:
    environ = os.environ | {"PYTHONPATH": str(Path(sluicegate.__file__).parents[1])}
    argv = [sys.executable, "-c", PROGRAM, count, *made]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, cwd=directory, env=environ)
    assert done.stderr == ""
    return done.stdout.strip()


def test_listening_stream_sockets_are_taken(tmp_path: Path) -> None:
    taken = handed_over("2", "tcp()", "unix()", directory=tmp_path)
    assert taken == "[(3, 'AF_INET', False), (4, 'AF_UNIX', False)]"


@pytest.mark.parametrize(
    ("count", "made", "sentence"),
    [
        ("1", ["datagram()"], "systemd's descriptor 3 (http) is no stream socket: the socket unit needs ListenStream="),
        ("1", ["tcp(False)"], "systemd's descriptor 3 (http) does not listen: the socket unit needs Accept=no"),
        ("2", ["tcp()", "1"], "systemd's descriptor 4 (without a name) is no socket: the socket unit may have Listen"),
        ("1", [], "systemd's descriptor 3 (http) is not open (Bad file descriptor): start the daemon through its unit"),
        ("3000", [], "systemd hands over LISTEN_FDS='3000' sockets; at most 16 are taken"),
        ("some", [], "systemd hands over LISTEN_FDS='some' sockets; at most 16 are taken"),
    ],
)
def test_what_cannot_be_listened_on_is_one_sentence(count: str, made: list[str], sentence: str, tmp_path: Path) -> None:
    assert handed_over(count, *made, directory=tmp_path).startswith(sentence)


@pytest.mark.parametrize("for_pid", ["", "1", "x"])
def test_sockets_for_another_process_are_left_alone(for_pid: str) -> None:
    environ = {"LISTEN_PID": for_pid, "LISTEN_FDS": "7", "LISTEN_FDNAMES": "a:b"}
    assert take(environ, PID).sockets == ()
    assert environ == {}


# --- credentials ---


def test_a_credential_is_read_from_its_directory(tmp_path: Path) -> None:
    (tmp_path / "hf-token").write_bytes(b"secret\n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert credential(environ, "hf-token") == b"secret\n"
    assert credential(environ, "absent") is None
    assert credential({}, "hf-token") is None


def test_a_credential_is_bounded(tmp_path: Path) -> None:
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    (tmp_path / "large").write_bytes(b"x" * CREDENTIAL_MAX_BYTES)
    assert credential(environ, "large") == b"x" * CREDENTIAL_MAX_BYTES
    (tmp_path / "large").write_bytes(b"x" * (CREDENTIAL_MAX_BYTES + 1))
    with pytest.raises(ValueError, match="the credential large is longer than 65536 bytes"):
        credential(environ, "large")


@pytest.mark.parametrize("name", ["", ".", "..", "../shadow", "/etc/passwd", "a/b"])
def test_a_credential_cannot_be_outside_of_its_directory(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the name of a credential"):
        credential({"CREDENTIALS_DIRECTORY": str(tmp_path)}, name)


def test_an_unreadable_credential_is_not_an_absent_one(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError, match="directory"):
        credential({"CREDENTIALS_DIRECTORY": str(tmp_path)}, "directory")


def test_a_failed_handover_is_an_exception_of_its_own() -> None:
    assert not issubclass(HandoverError, OSError), "the command line tells them apart"
