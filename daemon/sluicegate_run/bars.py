"""Progress on a terminal, drawn by rich (the extra `run`)."""

import contextlib
import time
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Columns

from .progress import Bar, Unit, amounts, share


class RichProgress:
    """One bar at a time; when its step ends, one line with the time that it took stays."""

    def __init__(self, stream: TextIO, *, force_terminal: bool | None = None) -> None:
        self._console = Console(file=stream, highlight=False, force_terminal=force_terminal)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def bar(self, title: str, total: float, unit: Unit) -> Iterator[Bar]:
        start = time.monotonic()
        columns = Columns(
            TextColumn("{task.description}", markup=False),
            # Narrow: all of it fits into the 80 columns of a plain terminal, with a long package name too.
            BarColumn(bar_width=14),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[detail]}", markup=False),
            console=self._console,
            transient=True,
        )
        word = "stopped after"
        try:
            with columns:
                task = columns.add_task(title, total=1.0, detail="")
                yield _RichBar(columns, task, total, unit)
            word = "done in"
        finally:
            self.say(f"{title}: {word} {time.monotonic() - start:.0f} s")


class _RichBar:
    def __init__(self, columns: Columns, task: TaskID, total: float, unit: Unit) -> None:
        self._columns = columns
        self._task = task
        self._total = total
        self._unit = unit

    def update(self, done: float, detail: str = "", *, total: float | None = None) -> None:
        self._total = total or self._total
        words = [amounts(done, self._total, self._unit), *([detail] if detail else [])]
        self._columns.update(self._task, completed=share(done, self._total), detail=", ".join(words))
