"""The gateway in front of the embedded engine: `sluicegate serve` as a program of its own."""

import errno
import select
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx2

from sluicegate.config.address import TcpAddress

from .engine import POLL_S
from .errors import EmbeddedError
from .logs import how_it_ended, last_words
from .process import Guarded

# It is ready in a second; a minute means that something is wrong with it and not with the machine.
START_DEADLINE_S = 60.0
# Who presses Ctrl-C wants an end, and requests in flight have no engine left to finish on.
GRACE_S = 5.0

_REASONS = {
    errno.EADDRINUSE: "is taken by another program",
    errno.EACCES: "is reserved for root",
    errno.EADDRNOTAVAIL: "is on no interface of this machine",
}


def require_free(listen: TcpAddress) -> None:
    """Refuse at once, and not after the preparation, an address that the gateway will not get."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the gateway does it: connections in TIME_WAIT do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            # Two sockets may be bound with SO_REUSEADDR as long as neither listens.
            probe.listen(1)
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, f"cannot be listened on ({error.strerror or error})")
        raise EmbeddedError(
            f"The address {listen} {reason}: free it, or name another one (LISTEN=127.0.0.1:8081), and run it again."
        ) from error


def url_of(listen: TcpAddress) -> str:
    """Where a client on this machine finds a gateway that listens there."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)  # noqa: S104 -- compared, not bound
    return f"http://{TcpAddress(host, listen.port)}"


def start(command: Sequence[str], listen: TcpAddress, environ: Mapping[str, str], log: Path) -> Guarded:
    """Start the gateway and wait until it is ready. Raises EmbeddedError, with nothing of it left, if it is not."""
    log.write_bytes(b"")
    program = Guarded(command, env=environ, log=log, grace_s=GRACE_S)
    try:
        _wait_ready(program, url_of(listen), log)
    except BaseException:
        program.stop()
        raise
    return program


def _wait_ready(program: Guarded, url: str, log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    # trust_env: a proxy has no business on the way to this machine itself.
    with httpx2.Client(base_url=url, timeout=5.0, trust_env=False) as client:
        while not _ready(client):
            if select.select([program], [], [], POLL_S)[0]:
                raise EmbeddedError(
                    f"The gateway ended before it was ready ({how_it_ended(program.wait())}, “{last_words(log)}”): "
                    f"read {log} and run it again."
                )
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"The gateway was not ready after {START_DEADLINE_S:.0f} s: read {log} and run it again."
                )


def _ready(client: httpx2.Client) -> bool:
    try:
        return client.get("/ready").status_code == 200
    except httpx2.TransportError:
        return False
