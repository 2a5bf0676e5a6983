"""Lines of the libraries beneath us (Hypercorn, Quart, trio, httpx2), brought into our own log.

What they say about an exception is its type and where it was raised, never its message: that may hold a piece of what
a client sent.
"""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from sluicegate.observe.logs import DEBUG, ERROR, INFO, WARNING, Log

#: Frames named per exception, innermost first, and exceptions named per group: enough to find the place.
_FRAMES = 4
_LEAVES = 3


@contextmanager
def foreign_loggers(log: Log, level: int = logging.WARNING) -> Iterator[None]:
    """Send what the standard library's loggers say at `level` and above to `log`, until the block ends.

    Replaces the root logger's handlers, then puts them back. Enter it before the Quart app first logs, or Quart gives
    itself a handler of its own, and set Hypercorn's `config.errorlog = logging.getLogger("hypercorn.error")`, for the
    same reason.
    """
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers[:] = [ForeignHandler(log)]
    root.setLevel(level)
    try:
        yield
    finally:
        root.handlers[:], level_before = before
        root.setLevel(level_before)


class ForeignHandler(logging.Handler):
    """Turns a standard library record into a line of ours."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # the library's format and its arguments disagree: any exception can come of that
            message = str(record.msg)
        error = record.exc_info[1] if record.exc_info else None
        self._log.emit(
            _level(record.levelno),
            "library",
            {"logger": record.name, "detail": message, "error": describe(error) if error else None},
        )


def describe(error: BaseException) -> str:
    """An exception's type and place, innermost frame first; for a group, those of its first leaves. No message."""
    leaves = list(_leaves(error))
    text = "; ".join(_place(leaf) for leaf in leaves[:_LEAVES])
    return text if len(leaves) <= _LEAVES else f"{text}; {len(leaves) - _LEAVES} more"


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[: -_FRAMES - 1 : -1]
    places = " < ".join(f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno} {frame.name}" for frame in frames)
    return f"{type(error).__name__} at {places}" if places else type(error).__name__


def _level(number: int) -> int:
    for level in (ERROR, WARNING, INFO):
        if number >= level:
            return level
    return DEBUG
