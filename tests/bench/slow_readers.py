"""Clients that read a byte a second, and the streams beside them, on a gateway in a process of its own.

python -m tests.bench.slow_readers [--slow 200] [--steady 64]
"""

import argparse
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import trio

from sluicegate.relay.splice import framed
from tests.engine_contract.raw import get, post
from tests.harness import CHAT
from tests.wire import daemons
from tests.wire.upstream import open_upstream

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TOKEN = framed(b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % (b"x" * 180))
QUESTION = {"model": "smollm2", "messages": [], "stream": True}
END = framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"

#: 1 MiB and more for each slow reader: far beyond what the kernel keeps for a client with a small window.
TOKENS = 5000

#: Pace of the streams beside them (seconds).
INTERVAL_S = 0.02


async def engine(stream: trio.SocketStream, body: bytes) -> None:
    """As fast as it goes for the slow, paced and with the time in each event for the steady."""
    await stream.send_all(HEAD)
    if b"slow" in body:
        for _ in range(TOKENS // 20):
            await stream.send_all(TOKEN * 20)
        await stream.send_all(END)
    else:
        while True:
            await stream.send_all(framed(b'data: {"choices":[],"at":%.6f}\n\n' % time.perf_counter()))
            await trio.sleep(INTERVAL_S)


class SlowReader:
    """Asks for a stream and reads a byte of it a second."""

    def __init__(self) -> None:
        self.read = 0
        self.cut = False

    async def run(self, port: int, done: trio.Event) -> None:
        """Until `done`; then see how the connection ended."""
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        with sock:
            await sock.connect(("127.0.0.1", port))
            await sock.send(post(CHAT, QUESTION | {"user": "slow"}))
            while not done.is_set():
                assert await sock.recv(1)
                self.read += 1
                with trio.move_on_after(1.0):
                    await done.wait()
            try:
                while await sock.recv(65_536):
                    pass
            except ConnectionResetError:
                self.cut = True


class Steady:
    """Streams at a reader's pace. `delays`: how long each event took through the gateway (seconds)."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self._ticks = trio.lowlevel.ParkingLot()

    async def read(self, port: int, done: trio.Event) -> None:
        """One of them, until `done`."""
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(post(CHAT, QUESTION))
            while not done.is_set():
                data = await stream.receive_some()
                now = time.perf_counter()
                assert b"[DONE]" not in data
                assert b"error" not in data
                self.delays += [now - float(part.split(b"}")[0]) for part in data.split(b'"at":')[1:]]
                self._ticks.unpark_all()

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Wait for something, by the clock of the events."""
        while not predicate():
            await self._ticks.park()

    async def last(self, seconds: float) -> None:
        """Let them run for so long."""
        end = time.monotonic() + seconds
        await self.until(lambda: time.monotonic() >= end)

    def p99(self) -> float:
        """Of the delays since this was last asked for."""
        delays, self.delays = sorted(self.delays), []
        return delays[len(delays) * 99 // 100]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", type=int, default=200)
    parser.add_argument("--steady", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    daemons.PATIENCE_S = 300.0
    with tempfile.TemporaryDirectory() as directory:
        trio.run(compare, Path(directory), options.slow, options.steady, options.rounds)


#: How long each stretch of a comparison is (seconds). client_stall_s is longer, so that all of them stall throughout.
STRETCH_S = 3.0


async def compare(directory: Path, slow: int, steady: int, rounds: int) -> None:
    """Print the steady streams' p99 alone and beside stalled readers, in turn, and what the gateway's memory did."""
    text = f"[engine]\nprobe_interval_s = 0.1\n[timeouts]\nclient_stall_s = {STRETCH_S + 2}\n"
    environ = {"MAX_ACTIVE": str(slow + steady)}
    async with open_upstream(directory / "engine.sock") as upstream:
        upstream.script, upstream.one_by_one = engine, False
        async with daemons.run(upstream.base_url, directory / "gate.toml", text, environ) as daemon:
            port = int((await daemon.logged("listening"))[0]["detail"].partition(",")[0].rpartition(":")[2])
            await daemon.logged("engine_up")
            streams, end = Steady(), trio.Event()
            async with trio.open_nursery() as nursery:
                for _ in range(steady):
                    nursery.start_soon(streams.read, port, end)
                await streams.last(1.0)
                for _ in range(rounds):
                    streams.p99()
                    await streams.last(STRETCH_S)
                    alone, before = streams.p99(), daemon.resident_kib
                    done, asked = trio.Event(), len(upstream.asked)
                    cut = await stalled(daemon)
                    started = time.monotonic()
                    async with trio.open_nursery() as readers:
                        for _ in range(slow):
                            readers.start_soon(SlowReader().run, port, done)
                        await streams.until(lambda asked=asked: len(upstream.asked) == asked + slow)  # type: ignore[misc]
                        streams.p99()
                        await streams.last(STRETCH_S)
                        beside, after = streams.p99(), daemon.resident_kib
                        while await stalled(daemon) < cut + slow:
                            await streams.last(0.1)
                        seconds = time.monotonic() - started
                        done.set()
                    print(f"{steady} streams: p99 {alone * 1e3:.2f} ms alone, {beside * 1e3:.2f} ms", end=" ")
                    print(f"beside {slow} stalled; {(after - before) / 1024:.1f} MiB more;", end=" ")
                    print(f"all cut after {seconds:.1f} s ({STRETCH_S + 2:g} allowed)")
                end.set()


async def stalled(daemon: daemons.Daemon) -> int:
    """How many clients it has given up so far: its log would drop lines rather than wait for us to read them."""
    body = (await daemon.ask(get("/metrics"))).body.decode()
    return sum(int(float(line.split()[1])) for line in body.splitlines() if 'outcome="client_stalled"' in line)


if __name__ == "__main__":
    main()
