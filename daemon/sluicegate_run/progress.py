"""How a long step shows itself: a bar on a terminal, a plain line every few seconds anywhere else."""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Literal, Protocol, TextIO

# A log wants few lines, a person who watches a pipe wants to see that something moves.
PLAIN_EVERY_S = 5.0

Unit = Literal["bytes", "seconds"]


class Bar(Protocol):
    """One step under way."""

    def update(self, done: float, detail: str = "", *, total: float | None = None) -> None:
        """So much of the total is done; `detail` is what is being done just now. `total` replaces the estimate."""


class Progress(Protocol):
    """Where a preparation tells what it does."""

    def say(self, text: str) -> None:
        """One line that stays."""

    def bar(self, title: str, total: float, unit: Unit) -> AbstractContextManager[Bar]:
        """Show a step for as long as the context lasts; `total` may be an estimate, for 99 % is shown until it ends."""


def for_stream(stream: TextIO) -> Progress:
    """Bars where `stream` is a terminal and rich (the extra `run`) is installed, plain lines otherwise."""
    if stream.isatty():
        with contextlib.suppress(ImportError):
            from .bars import RichProgress

            return RichProgress(stream)
    return PlainProgress(stream)


class PlainProgress:
    """Lines, each whole in itself: for logs, CI and tests."""

    def __init__(
        self, stream: TextIO, *, every_s: float = PLAIN_EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._every_s = every_s
        self._clock = clock

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    @contextlib.contextmanager
    def bar(self, title: str, total: float, unit: Unit) -> Iterator[Bar]:
        start = self._clock()
        self.say(f"{title} ...")
        try:
            yield _PlainBar(self, title, total, unit, self._every_s, self._clock)
        except BaseException:
            self.say(f"{title}: stopped after {self._clock() - start:.0f} s")
            raise
        self.say(f"{title}: done in {self._clock() - start:.0f} s")


class _PlainBar:
    def __init__(
        self,
        progress: PlainProgress,
        title: str,
        total: float,
        unit: Unit,
        every_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._progress = progress
        self._title = title
        self._total = total
        self._unit = unit
        self._every_s = every_s
        self._clock = clock
        self._due = clock() + every_s

    def update(self, done: float, detail: str = "", *, total: float | None = None) -> None:
        self._total = total or self._total
        if self._clock() < self._due:
            return
        self._due = self._clock() + self._every_s
        tail = f", {detail}" if detail else ""
        amount = f"{amounts(done, self._total, self._unit)}{tail}"
        self._progress.say(f"{self._title}: {share(done, self._total):.0%} ({amount})")


def share(done: float, total: float) -> float:
    """The part done, 0 to 0.99: only the end of a step is its end, and totals are estimates."""
    return max(0.0, min(done / total, 0.99)) if total > 0 else 0.0


def amounts(done: float, total: float, unit: Unit) -> str:
    """`done` of `total` in words, in MB of 10^6 bytes as pip and the package registries count, or in seconds."""
    if unit == "seconds":
        return f"{done:.0f} s of about {total:.0f} s"
    return f"{done / 1e6:.0f} of about {total / 1e6:.0f} MB"
