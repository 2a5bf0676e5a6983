"""journald's own protocol: an entry is one datagram, and `journalctl` can be asked for each field of it by name.

https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
"""

import contextlib
import select
import socket
from collections.abc import Callable, Iterable

#: Where journald listens.
SOCKET = "/run/systemd/journal/socket"

#: Largest entry (bytes): the line of text in it is bounded as any line is, and its fields are the same text once more.
ENTRY_MAX_BYTES = 12 * 1024

#: Longer values are written by their length (characters), as those with a line break must be.
INLINE_MAX_CHARS = 256

#: How long one entry waits for a journald that is behind (milliseconds); see Sink.
_WAIT_MS = 2


def entry(fields: Iterable[tuple[str, str]]) -> bytes:
    """Fields as journald reads them. Names are upper case letters, digits and underscores, and begin with a letter."""
    inline, by_length = [], []
    for name, value in fields:
        if len(value) <= INLINE_MAX_CHARS and "\n" not in value:
            inline.append(f"{name}={value}\n")
        else:
            data = value.encode(errors="replace")
            by_length.append(b"%s\n%s%s\n" % (name.encode("ascii"), len(data).to_bytes(8, "little"), data))
    return b"".join(["".join(inline).encode(errors="replace"), *by_length])


class Journal:
    """Entries to journald, which never wait for it for long: what it does not take is dropped and counted, as by Sink.

    Usable from any thread.
    """

    def __init__(self, path: str, on_drop: Callable[[], None]) -> None:
        self._path = path
        self._on_drop = on_drop
        self._wait_ms = _WAIT_MS
        self._sock: socket.socket | None = None
        self._closed = False

    def write(self, data: bytes) -> bool:
        """Send one entry. False if nobody listens: then it was not counted as dropped. Never raises."""
        for _ in range(2):  # the second time on a new connection, if the one that there was has broken
            sock = self._sock or self._connect()
            if sock is None:
                return False
            try:
                self._send(sock, data)
            except BlockingIOError:
                self._on_drop()
            except OSError:
                self._disconnect()
                continue
            return True
        return False

    def close(self) -> None:
        """Send nothing any more."""
        self._closed = True
        self._disconnect()

    def _send(self, sock: socket.socket, data: bytes) -> None:
        try:
            sock.send(data)
        except BlockingIOError:
            poll = select.poll()
            poll.register(sock, select.POLLOUT)
            if not poll.poll(self._wait_ms):
                self._wait_ms = 0  # the next ones do not wait, until one goes out again
                raise
            sock.send(data)
        self._wait_ms = _WAIT_MS

    def _connect(self) -> socket.socket | None:
        if self._closed:
            return None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.connect(self._path)
        except OSError:
            sock.close()
            return None
        self._sock = sock
        return sock

    def _disconnect(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()
