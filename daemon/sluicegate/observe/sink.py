"""Where log lines go: a descriptor that may block, break or be closed, and must not take the daemon along."""

import os
import select
from collections.abc import Callable

#: Longest line, in bytes: PIPE_BUF, up to which a write to a pipe is all or nothing and lines of several writers
#: never mix; and what a pipe or socket that polls as writable takes at once.
LINE_MAX_BYTES = 4096
#: How long one line waits for a reader that is behind, in milliseconds. A burst of refusals outruns a pipe's 64 KiB for
#: that long; a pause of the whole daemon should not be noticed by anybody.
_WAIT_MS = 2


class Sink:
    """One write per line, to a duplicate of `fd`; a line that cannot go out at once is dropped and counted.

    Dropping, rather than waiting: whoever waits for a stopped journald (or a terminal under Ctrl-S) holds up every
    client. Only the first line that finds no room waits, for _WAIT_MS; until one goes out again, the rest do not.
    Dropping, rather than keeping for later: the lines would pile up without bound. `on_drop` counts what is missing.

    `fd` is asked (poll) before each write instead of being made non-blocking: that flag belongs to the open file, which
    the shell and the engine share. A regular file always polls as writable, so a slow disk is the one thing waited for.

    The duplicate is ours alone: were descriptor 2 closed and given to a client's connection, the log would go there.
    Usable from any thread.
    """

    def __init__(self, fd: int, on_drop: Callable[[], None]) -> None:
        self._on_drop = on_drop
        self._torn = False
        self._wait_ms = _WAIT_MS
        self._fd: int | None
        try:
            self._fd = os.dup(fd)
        except OSError:  # started with standard error closed
            self._fd = None

    def write(self, line: bytes) -> None:
        """Write one line, at most LINE_MAX_BYTES long and ending with a newline, or drop it. Never raises."""
        if self._torn:
            line = b"\n" + line
        sent = self._offer(line)
        if sent:
            # A rest can only stay behind where somebody made the shared open file non-blocking.
            self._torn = sent < len(line)
        if sent < len(line):
            self._on_drop()

    def close(self) -> None:
        """Drop whatever is written from now on."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _offer(self, line: bytes) -> int:
        """How many bytes of `line` went out."""
        fd = self._fd  # another thread may close it meanwhile
        if fd is None:
            return 0
        # One of its own each time (0.3 µs): two threads may not poll with the same one.
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        try:
            ready = poll.poll(self._wait_ms)
            self._wait_ms = _WAIT_MS if ready else 0
            return os.write(fd, line) if ready else 0
        except OSError:  # the reader is gone, or the disk is full
            return 0
