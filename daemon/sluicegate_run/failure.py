"""What `sluicegate run` says when it cannot go on: one sentence, with the reason out of a program's status and log."""

import re
import signal
from pathlib import Path

# A traceback of vLLM with its configuration in it has 20 kB; the causes are in the last few tracebacks.
TAIL_BYTES = 100_000
LINE_MAX = 300

# "(EngineCore pid=7) ERROR 11-22 16:47:42 [core.py:402] ValueError: ..." and a bare "ValueError: ..." mean the same.
_SOURCE = re.compile(r"^(?:\([^)]* pid=\d+\) ?)?(?:[A-Z]+ \S+ \S+ \[\S+\] ?)?")
_ERROR = re.compile(r"^(?:[\w.]*(?:Error|Exception|Exit)|(?:\S+: )?error): \S")
# vLLM's API server says this when its engine core has died of another error, which stands before it, if anywhere.
_CONSEQUENCES = ("Engine core initialization failed", "EngineDeadError", "WorkerProc initialization failed")
# pydantic says on the next line what is wrong.
_CONTINUED = re.compile(r"\d+ validation errors? for \S+$")


class RunError(Exception):
    """What happened and what to do next, in one sentence, ready to be printed.

    `sluicegate run` prints no traceback for it; a traceback means a bug in Sluicegate itself.
    """


def ended(program: str, when: str, status: int | None, log: Path) -> RunError:
    """This program has ended although it should not have; `when` completes the sentence."""
    words = last_words(log)
    last = f"“{words}”" if words else "its log is empty"
    return RunError(f"{program} ended {when} ({how_it_ended(status)}, {last}): read {log} and run it again.")


def how_it_ended(status: int | None) -> str:
    """An exit status as Guarded gives it (128 + the number for a signal), in words."""
    if status is not None and status > 128:
        name = signal.Signals(status - 128).name
        return f"{name}, perhaps for lack of memory" if name == "SIGKILL" else name
    return f"exit status {status}"


def last_words(log: Path) -> str:
    """The line of a log that most likely says why the program ended: its last error, else its last line, or ""."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        tail = file.read().decode(errors="replace").splitlines()
    lines = [line for raw in tail if (line := _SOURCE.sub("", raw).strip())]
    if not lines:
        return ""
    errors = [number for number, line in enumerate(lines) if _ERROR.search(line)]
    causes = [number for number in errors if not any(phrase in lines[number] for phrase in _CONSEQUENCES)]
    chosen = (causes or errors or [len(lines) - 1])[-1]
    end = chosen + 2 if _CONTINUED.search(lines[chosen]) else chosen + 1
    return " ".join(lines[chosen:end])[:LINE_MAX]
