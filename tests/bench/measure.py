"""Measure gateways side by side, in one run, on one core each.

The gateway runs on CPU 0; the engine stand-in (sseup.c: an event carries the time it was written) and the load
(sseload.c: it reads that time back) on CPU 1. Both are one thread of C, so they are not what is measured. Absolute
figures drift with the machine: compare only rows of one run. Events are spread at random over their interval, as real
engines' are not in step with each other.
"""

import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.gateways import ENGINE_PORT, Gateway

_HERE = Path(__file__).resolve().parent
_TICK = os.sysconf("SC_CLK_TCK")
_PATH = "/v1/chat/completions"

#: How often a gateway's readiness is asked for, and for how long (seconds).
_POLL_S, _READY_S = 0.25, 60


def measure(gateway: Gateway, tools: Path, streams: Sequence[int], json_requests: int = 3000) -> dict[str, Any]:
    """One gateway's figures.

    cpu_us_per_event, cpu_us_per_json: CPU time of the whole process tree, user and system. relay_us: from the engine's
    write of an event to the client's read of it. ttft_ms: to the first event when idle, one request at a time.
    rss_mb: of the process tree while the streams run.
    """
    engine = Engine(tools)
    engine.start(events=100, interval_us=20_000)
    row: dict[str, Any] = {"gateway": gateway.name}
    with tempfile.TemporaryFile("w+") as log, started(gateway, log) as pid:
        try:
            ready(gateway.port, log)
            load(tools, gateway.port, 8, 16, "stream")
            engine.start(events=20, interval_us=2_000)
            ready(gateway.port, log)
            idle = load(tools, gateway.port, 1, 40, "stream")
            row["ttft_ms"] = {k: round(v / 1000, 2) for k, v in idle["ttft_us"].items()}
            for count in streams:
                engine.start(events=300, interval_us=20_000)
                ready(gateway.port, log)
                before = cpu_s(pid)
                run = load(tools, gateway.port, count, count, "stream")
                spent = cpu_s(pid) - before
                row[f"{count} streams"] = {
                    "ok": run["ok"],
                    "err": run["err"],
                    "events_per_s": run["events_per_s"],
                    "cpu_us_per_event": round(spent * 1e6 / max(1, run["events"]), 1),
                    "relay_us": run["relay_us"],
                }
                row["rss_mb"] = _rss_mb(pid)
            before = cpu_s(pid)
            run = load(tools, gateway.port, 32, json_requests, "json")
            row["cpu_us_per_json"] = round((cpu_s(pid) - before) * 1e6 / max(1, run["ok"]))
            row["json_rps"], row["json_err"] = run["rps"], run["err"]
            row["json_p50_us"] = load(tools, gateway.port, 1, 300, "json")["total_us"]["p50"]
        finally:
            engine.stop()
    return row


def build_tools(directory: Path) -> Path:
    """Compile the engine stand-in and the load into `directory`."""
    for name in ("sseup", "sseload"):
        subprocess.run(["gcc", "-O2", "-w", "-o", directory / name, _HERE / f"{name}.c"], check=True)
    return directory


class Engine:
    """sseup, started anew for each phase: every gateway must notice that its idle connections are gone."""

    def __init__(self, tools: Path) -> None:
        self._program = tools / "sseup"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, events: int, interval_us: int) -> None:
        self.stop()
        command = ["taskset", "-c", "1", str(self._program), str(ENGINE_PORT), str(events), str(interval_us)]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait()
            self._process = None


@contextmanager
def started(gateway: Gateway, log: Any) -> Iterator[int]:
    """The gateway on CPU 0 in a process group of its own; its process id."""
    environment = os.environ | gateway.environment
    command = ["taskset", "-c", "0", *gateway.command]
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ready(port: int, log: Any) -> None:
    """Wait until it answers; three times in a row, so that a health check that is due has been made."""
    end = time.monotonic() + _READY_S
    body = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
    request = urllib.request.Request(f"http://127.0.0.1:{port}{_PATH}", body, {"content-type": "application/json"})
    answered = 0
    while answered < 3:
        try:
            with urllib.request.urlopen(request, timeout=2) as answer:
                answered = answered + 1 if answer.status == 200 else 0
        except OSError:
            answered = 0
        if time.monotonic() > end:
            log.seek(0)
            raise RuntimeError(f"the gateway on port {port} is not ready: {log.read()[-500:]}")
        time.sleep(_POLL_S)


def load(tools: Path, port: int, concurrency: int, requests: int, kind: str) -> dict[str, Any]:
    command = ["taskset", "-c", "1", str(tools / "sseload"), "127.0.0.1", str(port), _PATH]
    command += [str(concurrency), str(requests), kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _tree(pid: int) -> list[int]:
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    return [pid, *(member for child in children for member in _tree(int(child)))]


def cpu_s(pid: int) -> float:
    """CPU seconds of the process tree so far, user and system."""
    ticks = 0
    for member in _tree(pid):
        fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICK


def _rss_mb(pid: int) -> int:
    kilobytes = 0
    for member in _tree(pid):
        for line in Path(f"/proc/{member}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                kilobytes += int(line.split()[1])
    return round(kilobytes / 1024)
