"""What streams suffer from what goes on beside them: idle connections, and requests that are no streams.

    python -m tests.bench.beside [--rounds N]

Each comparison alternates between "alone" and "beside" for N rounds and reports the medians, since a machine drifts.
"""

import argparse
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.gateways import ours
from tests.bench.measure import Engine, build_tools, cpu_s, load, ready, started

_JSON = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":8}'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    os.sched_setaffinity(0, {1})  # as the engine and the load
    gateway = ours()
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile("w+") as log, started(gateway, log) as pid:
        tools = build_tools(Path(directory))
        engine = Engine(tools)
        engine.start(events=300, interval_us=20_000)
        try:
            ready(gateway.port, log)

            def streams(count: int) -> dict[str, Any]:
                before = cpu_s(pid)
                run = load(tools, gateway.port, count, count, "stream")
                return {
                    "us": (cpu_s(pid) - before) * 1e6 / run["events"],
                    "p99": run["relay_us"]["p99"],
                    "err": run["err"],
                }

            alone, beside = [], []
            for _ in range(rounds):
                alone.append(streams(64))
                with idle_connections(gateway.port, 1000):
                    beside.append(streams(64))
            print(f"64 streams: {_median(alone, 'us'):.1f} µs of CPU per event alone,", end=" ")
            print(f"{_median(beside, 'us'):.1f} beside 1,000 idle connections")

            alone, beside = [], []
            for _ in range(rounds):
                alone.append(streams(256))
                with requests_beside(gateway.port, 100) as done:
                    beside.append(streams(256))
                print(f"  ({len(done)} requests beside, slowest {max(done) * 1e3:.0f} ms)", file=sys.stderr)
            print(f"256 streams: relay p99 {_median(alone, 'p99') / 1e3:.2f} ms alone,", end=" ")
            print(f"{_median(beside, 'p99') / 1e3:.2f} ms beside 100 JSON requests a second")
        finally:
            engine.stop()
    return 0


@contextmanager
def idle_connections(port: int, count: int) -> Iterator[None]:
    """`count` connections, each of which has been served once and then does nothing."""
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    try:
        for connection in connections:
            _ask(connection)
        yield
    finally:
        for connection in connections:
            connection.close()


@contextmanager
def requests_beside(port: int, per_s: int) -> Iterator[list[float]]:
    """`per_s` requests a second over 8 connections, evenly spaced, until the block ends; their times (seconds)."""
    times: list[float] = []
    stop = threading.Event()
    start = time.monotonic()

    def ask_on(rank: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            due = start + rank / per_s
            while not stop.wait(max(0.0, due - time.monotonic())):
                asked = time.monotonic()
                _ask(connection)
                times.append(time.monotonic() - asked)
                due += 8 / per_s

    threads = [threading.Thread(target=ask_on, args=(rank,)) for rank in range(8)]
    for thread in threads:
        thread.start()
    try:
        yield times
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _ask(connection: socket.socket) -> None:
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    )
    connection.sendall(head % len(_JSON) + _JSON)
    answer = b""
    while b"\r\n\r\n" not in answer or not answer.endswith(b"}"):
        data = connection.recv(65536)
        if not data:
            raise ConnectionError("the gateway closed a connection")
        answer += data


def _median(rows: list[dict[str, Any]], key: str) -> float:
    return float(statistics.median(row[key] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
