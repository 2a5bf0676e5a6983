"""Two hundred clients that read a byte a second: their slots, the memory, and the streams beside them."""

import resource

import trio

from tests.bench.slow_readers import SlowReader, Steady, engine
from tests.harness import configuration, open_gateway
from tests.wire.upstream import open_upstream

SLOW, STEADY = 200, 8

#: A client that takes less than it gets is cut after this long (seconds).
STALL_S = 1.0

#: Sluicegate's memory may grow by a read and an event for each slow reader, and what goes with them (bytes).
GROWTH_MAX = SLOW * 200_000


def rss() -> int:
    """Resident memory of this process: the gateway, the engine and all clients (bytes)."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


async def test_slow_readers_hold_nobody_up() -> None:
    """Slow readers lose their slots after stall_s, use little memory and do not delay others."""
    async with open_upstream(None) as upstream:
        upstream.script = engine
        config = configuration(upstream.base_url, max_active=SLOW + STEADY, queue_max=0, client_stall_s=STALL_S)
        async with open_gateway(config) as running, trio.open_nursery() as nursery:
            admission, port = running.gateway.admission, int(running.base_url.rpartition(":")[2])
            steady = Steady()
            done = trio.Event()
            for _ in range(STEADY):
                nursery.start_soon(steady.read, port, done)
            await steady.until(lambda: len(steady.delays) >= STEADY * 25)
            alone, before = steady.p99(), rss()

            readers = [SlowReader() for _ in range(SLOW)]
            async with trio.open_nursery() as slow:
                for reader in readers:
                    slow.start_soon(reader.run, port, done)
                await steady.until(lambda: len(upstream.asked) == SLOW + STEADY)
                coming = steady.p99()
                with trio.fail_after(STALL_S + 10):
                    await steady.until(lambda: admission.active == STEADY)
                growth, beside = rss() - before, steady.p99()
                cut = [line for line in running.log_lines("request") if line["outcome"] == "client_stalled"]
                done.set()

        print(f"p99 {alone * 1e3:.1f} ms alone, {coming * 1e3:.1f} ms while the slow readers come,", end=" ")
        print(f"{beside * 1e3:.1f} ms while they stall; {growth / 2**20:.1f} MiB more")
        assert beside < STALL_S / 4, "other clients waited for the slow readers"
        assert growth < GROWTH_MAX
        assert all(reader.cut for reader in readers), "a client that was given up must learn it"
        assert all(reader.read for reader in readers), "they read slowly, but they read"
        assert len(cut) == SLOW
        assert max(line["total_s"] for line in cut) < STALL_S + 3
