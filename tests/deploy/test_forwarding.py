"""A forwarded port answers as what is behind it, in this network and in another one."""

import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.forwarding import Address, forwarded

LOOPBACK = "127.0.0.1"
WAIT_S = 10.0


@pytest.fixture
def upper() -> Iterator[Address]:
    """A server that reads to the end, answers in capitals and hangs up."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        listener.settimeout(WAIT_S)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(_whole(connection).upper())

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def _whole(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def _said(address: Address, text: bytes) -> bytes:
    with socket.create_connection(address, WAIT_S) as connection:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        return _whole(connection)


def test_all_data_and_both_ends_arrive(upper: Address) -> None:
    """The forwarder passes on all data and the end of either side."""
    long = b"a" * 1_000_000
    with forwarded((LOOPBACK, 0), upper) as address:
        assert address != upper
        assert [_said(address, b"one"), _said(address, long)] == [b"ONE", long.upper()]


def test_connection_to_nobody_is_closed(upper: Address) -> None:
    """If nobody listens, the forwarder closes the connection and accepts the next one."""
    with socket.create_server((LOOPBACK, 0)) as gone:
        nobody = gone.getsockname()
    with forwarded((LOOPBACK, 0), nobody) as address:
        assert [_said(address, b""), _said(address, b"")] == [b"", b""]


def test_nobody_listens_after_the_end(upper: Address) -> None:
    with forwarded((LOOPBACK, 0), upper) as address:
        # A connection that stays does not hold up the end.
        staying = socket.create_connection(address, WAIT_S)
    with staying, pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, WAIT_S)


@pytest.mark.deploy
def test_what_is_behind_may_be_in_another_network() -> None:
    """As a deployed Prometheus is, which listens on the host's own loopback alone."""
    command = ["unshare", "--net", "sh", "-c", "ip link set lo up && exec python3 -u -m http.server --bind 127.0.0.1 0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd="/proc/sys"
    ) as there:
        assert there.stdout is not None
        found = re.search(r"port (\d+)", there.stdout.readline())
        assert found
        to = (LOOPBACK, int(found[1]))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(to, WAIT_S)
        with forwarded((LOOPBACK, 0), to, Path(f"/proc/{there.pid}/ns/net")) as address:
            assert b"kernel/" in _said(address, b"GET / HTTP/1.0\r\n\r\n")
        there.kill()
