"""A log whose lines a test reads."""

import json
import os
from collections.abc import Callable

from sluicegate.observe.logs import Log

NOON = 1767268800.0  # 2026-01-01T12:00:00Z


class Captured:
    """A log into a pipe, and what came out of it."""

    def __init__(self, format_: str, level: str = "info", now: Callable[[], float] = lambda: NOON) -> None:
        self._reader, self.fd = os.pipe()
        self.dropped = 0
        self.log = Log(format_, level, self.fd, on_drop=self._drop, now=now)

    def _drop(self) -> None:
        self.dropped += 1

    def raw(self) -> bytes:
        """Everything since the last call."""
        os.write(self.fd, b"\0")
        data = b""
        while not data.endswith(b"\0"):
            data += os.read(self._reader, 1 << 16)
        return data[:-1]

    def lines(self) -> list[str]:
        return self.raw().decode().splitlines()

    def objects(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.lines()]

    def close(self) -> None:
        self.log.close()
        os.close(self._reader)
        os.close(self.fd)
