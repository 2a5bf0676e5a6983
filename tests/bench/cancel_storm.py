"""The whole cancel storm, on a gateway in a process of its own: what it leaves behind, and how long it took.

python -m tests.bench.cancel_storm [--streams 20000]
"""

import argparse
import os
import re
import tempfile
import time
from pathlib import Path

import trio

from tests.bench.storm import AT_ONCE, QUEUE, SLOTS, Storm, engine
from tests.engine_contract.raw import get
from tests.wire import daemons
from tests.wire.upstream import open_upstream

#: The longest that a storm may last (seconds).
PATIENCE_S = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=20_000)
    daemons.PATIENCE_S = PATIENCE_S
    with tempfile.TemporaryDirectory() as directory:
        trio.run(storm, Path(directory), parser.parse_args().streams)


async def storm(directory: Path, count: int) -> None:
    """Run it, print what was counted, and fail if anything is left."""
    settings = {"MAX_ACTIVE": str(SLOTS), "QUEUE_MAX": str(QUEUE)}
    async with open_upstream(directory / "engine.sock") as upstream:
        upstream.script, upstream.one_by_one = engine, False
        config = directory / "sluicegate.toml"
        async with daemons.run(upstream.base_url, config, environ=settings) as daemon:
            port = int((await daemon.logged("listening"))[0]["detail"].partition(",")[0].rpartition(":")[2])
            await daemon.logged("engine_up")

            async def connect() -> trio.socket.SocketType:
                sock = trio.socket.socket()
                await sock.connect(("127.0.0.1", port))
                return sock

            await Storm(connect, AT_ONCE, seed=0).run()
            before = await at_rest(daemon)
            started = time.monotonic()
            run = Storm(connect, count, seed=1)
            await run.run()
            seconds = time.monotonic() - started
            after = await at_rest(daemon)

            print(f"{count} streams in {seconds:.1f} s, {count / seconds:.0f}/s; {run.complete} read to their end")
            for where, number in sorted(run.left.items()):
                print(f"  left {where}: {number}")
            print("outcomes:", {name: int(number) for name, number in after.outcomes.items() if number})
            print(f"descriptors: {before.fds} before, {after.fds} after (kept connections left out)")
            print(f"resident: {before.resident_mib:.1f} MiB before, {after.resident_mib:.1f} MiB after")
            assert after.fds == before.fds
            assert upstream.busy == 0
            assert after.requests == sum(after.outcomes.values())
            assert len(daemon.lines("request")) == after.requests


class Rest:
    """A gateway at rest by its own metrics: no request active, none queued."""

    def __init__(self, metrics: str, daemon: daemons.Daemon) -> None:
        self.active = _total(metrics, "api_active_requests") + _total(metrics, "api_queue_depth")
        self.busy = _total(metrics, 'api_engine_connections{state="busy"}')
        self.clients = _total(metrics, "api_client_connections")
        self.requests = _total(metrics, "api_requests_total")
        pairs = re.findall(r'^api_outcomes_total\{outcome="(\w+)"\} (\S+)$', metrics, re.MULTILINE)
        self.outcomes = {name: float(value) for name, value in pairs}
        kept = _total(metrics, 'api_engine_connections{state="idle"}')
        self.fds = len(os.listdir(f"/proc/{daemon.process.pid}/fd")) - int(kept)
        self.resident_mib = daemon.resident_kib / 1024


async def at_rest(daemon: daemons.Daemon) -> Rest:
    """Ask until nothing is going on but the asking."""
    async with await daemon.dial() as client:
        with trio.fail_after(10):
            while True:
                rest = Rest((await client.ask(get("/metrics"))).body.decode(), daemon)
                if rest.active == rest.busy == 0 and rest.clients == 1:
                    return rest


def _total(metrics: str, name: str) -> float:
    """A metric over its labels, or one of its samples."""
    rows = [line.rpartition(" ") for line in metrics.splitlines()]
    return sum(float(value) for sample, _, value in rows if sample == name or sample.startswith(name + "{"))


if __name__ == "__main__":
    main()
