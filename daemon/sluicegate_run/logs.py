"""Why a program ended, out of its exit status and its log: one line for the sentence that a person gets."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

# A traceback of vLLM with its configuration in it is 20 kB; the causes stand in the last few.
TAIL_BYTES = 100_000
LINE_MAX = 300

# "(EngineCore pid=7) ERROR 11-22 16:47:42 [core.py:402] ValueError: ..." and a bare "ValueError: ..." mean the same.
_SOURCE = re.compile(r"^(?:\([^)]* pid=\d+\) ?)?(?:[A-Z]+ \S+ \S+ \[\S+\] ?)?")
_ERROR = re.compile(r"^(?:[\w.]*(?:Error|Exception|Exit)|(?:\S+: )?error): \S")
# vLLM's API server says this when its engine core has died of something else, which stands before it if anywhere.
_CONSEQUENCES = ("Engine core initialization failed", "EngineDeadError", "WorkerProc initialization failed")
# pydantic says on the next line what is wrong.
_CONTINUED = re.compile(r"\d+ validation errors? for \S+$")


def how_it_ended(status: int | None) -> str:
    """An exit status as Guarded gives it, in words."""
    if status is not None and status > 128:
        name = signal.Signals(status - 128).name
        return f"{name}, perhaps for want of memory" if name == "SIGKILL" else name
    return f"exit status {status}"


def last_words(log: Path) -> str:
    """The line of a log that most likely says why the program ended: its last error, else its last line."""
    lines = [line for raw in _tail(log) if (line := _SOURCE.sub("", raw).strip())]
    errors = [number for number, line in enumerate(lines) if _ERROR.search(line)]
    causes = [number for number in errors if not any(phrase in lines[number] for phrase in _CONSEQUENCES)]
    if not lines:
        return "no word"
    chosen = (causes or errors or [len(lines) - 1])[-1]
    end = chosen + 2 if _CONTINUED.search(lines[chosen]) else chosen + 1
    return " ".join(lines[chosen:end])[:LINE_MAX]


def _tail(log: Path) -> Iterator[str]:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        yield from file.read().decode(errors="replace").splitlines()
