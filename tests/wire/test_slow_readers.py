"""Two hundred clients that read a byte a second: their slots, the memory, and the streams beside them."""

import resource
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import trio

from sluicegate.relay.splice import framed
from tests.contract.raw import post
from tests.harness import CHAT, Running, configuration, open_gateway
from tests.wire.upstream import open_upstream
from tests.wire.visitors import dial, question

SLOW, STEADY = 200, 8

#: A client that takes less than it gets is cut after this long (seconds).
STALL_S = 1.0

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TOKEN = framed(b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % (b"x" * 180))
END = framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"

#: 1 MiB and more for each slow reader: far beyond what the kernel keeps for a client with a small window.
TOKENS = 5000

#: Pace of the streams beside them (seconds).
INTERVAL_S = 0.02

#: Sluicegate's memory may grow by a read and an event for each slow reader, and what goes with them (bytes).
GROWTH_MAX = SLOW * 200_000


def rss() -> int:
    """Resident memory of this process: the gateway, the engine and all clients (bytes)."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


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

    async def run(self, running: Running, done: trio.Event) -> None:
        url = urlsplit(running.base_url)
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        with sock:
            await sock.connect((url.hostname, url.port))
            await sock.send(post(CHAT, question(stream=True, user="slow")))
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

    async def read(self, running: Running, done: trio.Event) -> None:
        """One of them, until `done`."""
        async with await dial(running) as stream:
            await stream.send_all(post(CHAT, question(stream=True)))
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

    def p99(self) -> float:
        """Of the delays since this was last asked for."""
        delays, self.delays = sorted(self.delays), []
        return delays[len(delays) * 99 // 100]


async def test_slow_readers_hold_no_slot_and_no_memory_and_nobody_up() -> None:
    async with open_upstream(None) as upstream:
        upstream.script = engine
        config = configuration(upstream.base_url, max_active=SLOW + STEADY, queue_max=0, client_stall_s=STALL_S)
        async with open_gateway(config) as running, trio.open_nursery() as nursery:
            admission = running.gateway.admission
            steady = Steady()
            done = trio.Event()
            for _ in range(STEADY):
                nursery.start_soon(steady.read, running, done)
            await steady.until(lambda: len(steady.delays) >= STEADY * 25)
            alone, before = steady.p99(), rss()

            readers = [SlowReader() for _ in range(SLOW)]
            async with trio.open_nursery() as slow:
                for reader in readers:
                    slow.start_soon(reader.run, running, done)
                await steady.until(lambda: len(upstream.asked) == SLOW + STEADY)
                coming = steady.p99()
                with trio.fail_after(STALL_S + 10):
                    await steady.until(lambda: admission.active == STEADY)
                growth, beside = rss() - before, steady.p99()
                cut = [line for line in running.log_lines("request") if line["outcome"] == "client_stalled"]
                done.set()

        print(f"p99 {alone * 1e3:.1f} ms alone, {coming * 1e3:.1f} ms while the slow readers come,", end=" ")
        print(f"{beside * 1e3:.1f} ms while they stall; {growth / 2**20:.1f} MiB more")
        assert beside < STALL_S / 4, "somebody waited for the slow readers"
        assert growth < GROWTH_MAX
        assert all(reader.cut for reader in readers), "a client that was given up must learn it"
        assert all(reader.read for reader in readers), "they are slow, not deaf"
        assert len(cut) == SLOW
        assert max(line["total_s"] for line in cut) < STALL_S + 3
