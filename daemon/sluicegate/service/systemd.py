"""What a service and systemd tell each other: notifications, sockets handed over, the watchdog, credentials.

Each of these is a few lines over the environment and a datagram socket (sd_notify(3), sd_listen_fds(3),
sd_watchdog_enabled(3), systemd.exec(5)), so no library is needed. The variables are taken out of the environment as
they are read: they are for this process and for none that it may start.
"""

import contextlib
import os
import socket
import stat
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

#: SD_LISTEN_FDS_START: the first descriptor that is handed over.
FIRST_FD = 3

#: More sockets than this come from no unit of ours.
SOCKETS_MAX = 16

#: How long a notification waits for systemd to take it (seconds). A lost READY=1 is a failed start; a service manager
#: that takes longer than this must still not hold up the clients.
SEND_TIMEOUT_S = 0.2

#: systemd ignores a notification of more than 4096 bytes whole.
STATUS_MAX_CHARS = 500

#: systemd keeps all credentials of a unit within 1 MiB; a secret that is meant to be one is far smaller.
CREDENTIAL_MAX_BYTES = 64 * 1024


class HandoverError(Exception):
    """systemd handed over something that cannot be listened on. The message is one sentence with what to do."""


class Notifier:
    """Tells systemd about the service's state; silent without a NOTIFY_SOCKET. Never raises, hardly ever waits."""

    def __init__(self, address: str = "") -> None:
        """`address`: a path, or with an @ in front a name in the abstract namespace; empty: nobody listens."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._sock: socket.socket | None = None
        if address.startswith(("/", "@")):
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._sock.settimeout(SEND_TIMEOUT_S)

    def ready(self, status: str) -> None:
        """It is up, or done with a reload."""
        self._send("READY=1", _status(status))

    def status(self, status: str) -> None:
        """One line for people, as `systemctl status` shows it."""
        self._send(_status(status))

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str, within_s: float) -> None:
        """It stops, and may take `within_s` seconds for it, also where the unit's TimeoutStopSec= is less."""
        self._send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={round(within_s * 1e6)}", _status(status))

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Say nothing more."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _send(self, *assignments: str) -> None:
        if self._sock is not None:
            with contextlib.suppress(OSError):  # a service manager that is gone, or does not listen, costs its news
                self._sock.sendto("\n".join(assignments).encode(errors="replace"), self._address)


def _status(text: str) -> str:
    printable = "".join(c if c.isprintable() else "?" for c in text)
    return f"STATUS={printable if len(printable) <= STATUS_MAX_CHARS else printable[: STATUS_MAX_CHARS - 1] + '…'}"


@dataclass(frozen=True, slots=True)
class Service:
    """What systemd gave this process. `sockets` are its own from now on; `watchdog_s`: how often it wants a sign."""

    notifier: Notifier = field(default_factory=Notifier)
    sockets: tuple[socket.socket, ...] = ()
    watchdog_s: float | None = None


def take(environ: MutableMapping[str, str], pid: int) -> Service:
    """Take what systemd left for the process `pid` out of `environ`. HandoverError if a socket cannot be used."""
    watchdog_s = _watchdog_s(environ, pid)
    return Service(Notifier(environ.pop("NOTIFY_SOCKET", "")), _sockets(environ, pid), watchdog_s)


def credential(environ: Mapping[str, str], name: str) -> bytes | None:
    """The credential `name` (LoadCredential= and the like); None if there is none. OSError if it cannot be read.

    ValueError if it is longer than CREDENTIAL_MAX_BYTES, or `name` is no plain file name.
    """
    if not name or "/" in name or name in (".", ".."):
        raise ValueError(f"not the name of a credential: {name!r}")
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return None
    try:
        with Path(directory, name).open("rb") as file:
            data = file.read(CREDENTIAL_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(data) > CREDENTIAL_MAX_BYTES:
        raise ValueError(f"the credential {name} is longer than {CREDENTIAL_MAX_BYTES} bytes")
    return data


def _watchdog_s(environ: MutableMapping[str, str], pid: int) -> float | None:
    microseconds, for_pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
    if (for_pid and for_pid != str(pid)) or not _is_count(microseconds) or int(microseconds) == 0:
        return None
    return int(microseconds) / 1e6


def _sockets(environ: MutableMapping[str, str], pid: int) -> tuple[socket.socket, ...]:
    for_pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if for_pid != str(pid):
        return ()
    if not _is_count(count) or int(count) > SOCKETS_MAX:
        raise HandoverError(f"systemd hands over LISTEN_FDS={count[:20]!r} sockets; at most {SOCKETS_MAX} are taken")
    described = [names[at] if at < len(names) and names[at] else "without a name" for at in range(int(count))]
    return tuple(_adopted(FIRST_FD + at, name) for at, name in enumerate(described))


def _adopted(fd: int, name: str) -> socket.socket:
    """The listening socket at `fd`, which is closed with it."""
    what = f"systemd's descriptor {fd} ({name})"
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise HandoverError(f"{what} is no socket: the socket unit may have ListenStream= alone")
    except OSError as error:
        raise HandoverError(f"{what} is not open ({error.strerror}): start the daemon through its unit") from None
    os.set_inheritable(fd, False)
    sock = socket.socket(fileno=fd)
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX) or sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise HandoverError(f"{what} is no stream socket: the socket unit needs ListenStream=")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        raise HandoverError(f"{what} does not listen: the socket unit needs Accept=no")
    return sock


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18
