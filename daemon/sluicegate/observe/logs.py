"""The log: one line per event, as JSON, as text for people, or as an entry for journald, with known fields only.

No line ever holds a prompt, a key or a body: a field that `Fields` does not name is left out, a value that is neither
text nor a number is replaced by the name of its type, and text is bounded. Nothing that a client sends can forge a
line or move a terminal's cursor: characters that do not print leave as escapes, in every format.

Not on top of the standard library's logging: a record and a formatter of its cost 12 µs before a byte is written.
"""

import os
import time
from collections.abc import Callable, Mapping
from typing import TypedDict, Unpack

import msgspec

from sluicegate.account.record import LOGGED, Record
from sluicegate.observe import journal
from sluicegate.observe.sink import LINE_MAX_BYTES, Sink
from sluicegate.outcome import Kind

DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40
LEVELS = {"debug": DEBUG, "info": INFO, "warning": WARNING, "error": ERROR}

_NAMES = {number: name for name, number in LEVELS.items()}
#: What systemd reads off the start of a line (sd-daemon(3)), so that `journalctl -p warning` finds it.
_SYSLOG_PREFIX = {DEBUG: b"<7>", INFO: b"<6>", WARNING: b"<4>", ERROR: b"<3>"}
#: The same for journald itself: the priorities of syslog(3).
_PRIORITY = {DEBUG: "7", INFO: "6", WARNING: "4", ERROR: "3"}
#: Longest text value, in characters: the first bound with which the line keeps within LINE_MAX_BYTES. With the last
#: one, every field at once does.
_TEXT_BOUNDS = (512, 96, 16)
#: Decimal places of seconds and rates: microseconds.
_PLACES = 6

Value = str | int | float | None


class Fields(TypedDict, total=False):
    """The fields of the daemon's own lines, besides time, level and event; a request's are `account.record.LOGGED`.

    None leaves a field out. Times in seconds.
    """

    version: str | None
    pid: int | None
    listen: str | None
    engine: str | None
    models: str | None
    config: str | None
    signal: str | None
    active: int | None
    waiting: int | None
    max_active: int | None
    queue_limit: int | None
    connections: int | None
    count: int | None
    seconds: float | None
    logger: str | None
    error: str | None
    # what happened, in a sentence
    detail: str | None


_KNOWN = frozenset(Fields.__annotations__) | frozenset(LOGGED)
_JOURNAL_NAMES = {name: f"SLUICEGATE_{name.upper()}" for name in _KNOWN}


class Log:
    """Writes lines of at least one level to one descriptor. Usable from any thread; never raises, never waits.

    A line that the descriptor does not take at once is dropped and counted; `Sink` says why.
    """

    def __init__(
        self,
        format: str,  # noqa: A002
        level: str = "info",
        fd: int = 2,
        *,
        on_drop: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.time,
        journal_path: str = journal.SOCKET,
    ) -> None:
        """`format`: "text", "json" or "journal" (`choose_format` resolves "auto"). `level`: a key of LEVELS.

        "journal": entries go to the socket at `journal_path`, and as JSON to `fd` while nobody listens there.

        `on_drop` is called for each line that is lost; `now` gives seconds since the epoch.
        Raises KeyError for an unknown format or level. The descriptor stays the caller's; the log uses a duplicate.
        """
        self._encode = {"text": _as_text, "json": _as_json, "journal": _as_json}[format]
        self._journal = journal.Journal(journal_path, on_drop) if format == "journal" else None
        self._level = LEVELS[level]
        self._prefix = _SYSLOG_PREFIX if is_journal(fd) else dict.fromkeys(_SYSLOG_PREFIX, b"")
        self._sink = Sink(fd, on_drop)
        self._now = now
        self._second = (-1, "")

    def set_level(self, level: str) -> None:
        """From now on write what is at least `level`, a key of LEVELS. KeyError if it is none."""
        self._level = LEVELS[level]

    def debug(self, event: str, **fields: Unpack[Fields]) -> None:
        self.emit(DEBUG, event, fields)

    def info(self, event: str, **fields: Unpack[Fields]) -> None:
        self.emit(INFO, event, fields)

    def warning(self, event: str, **fields: Unpack[Fields]) -> None:
        self.emit(WARNING, event, fields)

    def error(self, event: str, **fields: Unpack[Fields]) -> None:
        self.emit(ERROR, event, fields)

    def settled(self, record: Record) -> None:
        """A sink of the ledger: write the one line of a request, at level warning if it is a fault, else info."""
        fault = record.outcome is not None and record.outcome.kind is Kind.FAULT
        self.emit(WARNING if fault else INFO, "request", {name: getattr(record, name) for name in LOGGED})

    def emit(self, level: int, event: str, fields: Mapping[str, object]) -> None:
        """Write one line, if `level` is high enough."""
        if level < self._level:
            return
        if self._journal is not None and self._journal.write(_as_entry(level, event, fields)):
            return
        prefix = self._prefix[level]
        stamp = self._stamp()
        for bound in _TEXT_BOUNDS:
            line = prefix + self._encode(stamp, _NAMES[level], _clean(event, bound), _known(fields, bound))
            if len(line) <= LINE_MAX_BYTES:
                break
        self._sink.write(line)

    def close(self) -> None:
        """Give the duplicate of the descriptor back; later lines are dropped."""
        if self._journal is not None:
            self._journal.close()
        self._sink.close()

    def _stamp(self) -> str:
        """Now, in ISO 8601, UTC, with milliseconds."""
        now = self._now()
        second = int(now)
        cached, text = self._second
        if second != cached:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = (second, text)
        return f"{text}.{int((now - second) * 1000):03d}Z"


def choose_format(format: str, fd: int) -> str:  # noqa: A002
    """Resolve "auto" by what `fd` is: "text" for a terminal, "journal" for journald, else "json".

    Anything else comes back as it is.
    """
    if format != "auto":
        return format
    if os.isatty(fd):
        return "text"
    return "journal" if is_journal(fd) else "json"


def is_journal(fd: int) -> bool:
    """True if `fd` is the very socket that systemd connected to journald (JOURNAL_STREAM in systemd.exec(5))."""
    try:
        stat = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


_json = msgspec.json.Encoder().encode


def _as_json(stamp: str, level: str, event: Value, fields: dict[str, Value]) -> bytes:
    return _json({"time": stamp, "level": level, "event": event, **fields}) + b"\n"


def _as_text(stamp: str, level: str, event: Value, fields: dict[str, Value]) -> bytes:
    return f"{stamp} {level.upper():<7} {_message(event, fields)}".encode() + b"\n"


def _as_entry(level: int, event: str, fields: Mapping[str, object]) -> bytes:
    """An entry for journald, which knows the time itself: the text of the line, and each field once more by name."""
    for bound in _TEXT_BOUNDS:
        known, what = _known(fields, bound), _clean(event, bound)
        named = [
            (_JOURNAL_NAMES[name], value if isinstance(value, str) else _number(value)) for name, value in known.items()
        ]
        data = journal.entry(
            [
                ("MESSAGE", _message(what, known)),
                ("PRIORITY", _PRIORITY[level]),
                ("SYSLOG_IDENTIFIER", "sluicegate"),
                ("SLUICEGATE_EVENT", str(what)),
                *named,
            ]
        )
        if len(data) <= journal.ENTRY_MAX_BYTES:
            break
    return data


def _message(event: Value, fields: Mapping[str, Value]) -> str:
    values = " ".join(f"{name}={_quoted(value)}" for name, value in fields.items())
    return f"{event} {values}".rstrip()


def _number(value: Value) -> str:
    return _json(value).decode()


def _quoted(value: Value) -> str:
    if not isinstance(value, str):
        return _number(value)
    quote = not value or " " in value or "=" in value or '"' in value
    return _json(value).decode() if quote else value


def _known(fields: Mapping[str, object], bound: int) -> dict[str, Value]:
    """The fields that may be logged and have a value, made safe."""
    known: dict[str, Value] = {}
    for name, value in fields.items():
        if value is None or name not in _KNOWN:
            continue
        if type(value) is str and len(value) <= bound and value.isprintable():
            known[name] = value  # as nearly every text is: a call saved for each
        else:
            known[name] = _clean(value, bound)
    return known


def _clean(value: object, bound: int) -> Value:
    """`value` as it may be logged: text of at most `bound` printable characters, or a number."""
    if isinstance(value, str):
        text = _cut(value, bound)
        # Not printable: C0 and C1 controls, line and paragraph separators, bidirectional overrides, lone surrogates.
        return text if text.isprintable() else _cut(text.encode("unicode_escape").decode("ascii"), bound)
    if isinstance(value, float):
        return round(value, _PLACES)
    if isinstance(value, int) and value.bit_length() < 64:  # the encoder refuses longer ones
        return value
    return type(value).__name__


def _cut(text: str, bound: int) -> str:
    return text if len(text) <= bound else text[: bound - 1] + "…"
