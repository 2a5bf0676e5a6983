"""Progress of a long step: a bar on a terminal, a plain line every few seconds anywhere else."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Literal, TextIO

# Few lines for a log, and often enough for a person who watches a pipe.
PLAIN_EVERY_S = 5.0

Unit = Literal["bytes", "seconds"]
# Shows a share from 0 to 1, and the words after it.
Show = Callable[[float, str], None]


class Bar:
    """One step under way."""

    def __init__(self, show: Show, total: float, unit: Unit) -> None:
        self._show = show
        self._total = total
        self._unit = unit

    def update(self, done: float, detail: str = "", *, total: float | None = None) -> None:
        """`done` of the total is done; `detail` is what is being done now. `total` replaces the estimate."""
        self._total = total or self._total
        words = amounts(done, self._total, self._unit)
        self._show(share(done, self._total), f"{words}, {detail}" if detail else words)


class Progress:
    """Writes to `stream`: with rich (the extra `run`) if that is a terminal and rich is installed, else plain lines."""

    def __init__(
        self, stream: TextIO, *, every_s: float = PLAIN_EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._every_s = every_s
        self._clock = clock
        self._console = None
        if stream.isatty():
            with contextlib.suppress(ImportError):
                from rich.console import Console

                self._console = Console(file=stream, highlight=False)

    def say(self, text: str) -> None:
        """Write one line that stays."""
        if self._console is None:
            print(text, file=self._stream, flush=True)
        else:
            self._console.print(text, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def bar(self, title: str, total: float, unit: Unit) -> Iterator[Bar]:
        """Show a step while the context lasts; one line with its duration stays. `total` may be an estimate."""
        start = self._clock()
        ended = "stopped after"
        try:
            with (self._lines if self._console is None else self._drawing)(title) as show:
                yield Bar(show, total, unit)
            ended = "done in"
        finally:
            self.say(f"{title}: {ended} {self._clock() - start:.0f} s")

    @contextlib.contextmanager
    def _lines(self, title: str) -> Iterator[Show]:
        due = self._clock() + self._every_s

        def show(part: float, words: str) -> None:
            nonlocal due
            if self._clock() >= due:
                due = self._clock() + self._every_s
                self.say(f"{title}: {part:.0%} ({words})")

        self.say(f"{title} ...")
        yield show

    @contextlib.contextmanager
    def _drawing(self, title: str) -> Iterator[Show]:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Columns

        columns = Columns(
            TextColumn("{task.description}", markup=False),
            # Narrow: everything fits into the 80 columns of a plain terminal, with a long package name too.
            BarColumn(bar_width=14),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[words]}", markup=False),
            console=self._console,
            transient=True,
        )
        with columns:
            task = columns.add_task(title, total=1.0, words="")
            yield lambda part, words: columns.update(task, completed=part, words=words)


def share(done: float, total: float) -> float:
    """The part done, 0 to 0.99: totals are estimates, so 100 % is never shown before the step has ended."""
    return max(0.0, min(done / total, 0.99)) if total > 0 else 0.0


def amounts(done: float, total: float, unit: Unit) -> str:
    """`done` of `total` in words, in MB of 10^6 bytes as pip counts, or in seconds."""
    if unit == "seconds":
        return f"{done:.0f} s of about {total:.0f} s"
    return f"{done / 1e6:.0f} of about {total / 1e6:.0f} MB"
