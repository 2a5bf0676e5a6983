"""The cancel storm, as far as CI has time for it: 2,000 streams. `python -m tests.bench.cancel_storm` runs 20,000."""

from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio

from tests.bench.storm import QUEUE, SLOTS, Storm, engine
from tests.harness import Running, configuration, open_gateway
from tests.unit.relay.flows import open_fds
from tests.wire.upstream import open_upstream

STREAMS = 1000

#: What a request in the storm may come to, and nothing else.
OUTCOMES = {"served", "client_gone_active", "client_gone_queued", "shed_queue_full"}


def total(running: Running, name: str) -> float:
    """A counter's value over all its labels."""
    samples = (sample for family in running.gateway.metrics.registry.collect() for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == name)


async def until(predicate: Any) -> None:
    """Wait for what other tasks do."""
    while not predicate():
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("wire", ["unix", "tcp"])
async def test_a_cancel_storm_leaves_nothing_behind(wire: str, tmp_path: Path) -> None:
    async with open_upstream(tmp_path / "engine.sock" if wire == "unix" else None) as upstream:
        upstream.script, upstream.one_by_one = engine, False
        config = configuration(upstream.base_url, max_active=SLOTS, queue_max=QUEUE)
        async with open_gateway(config) as running:
            address = urlsplit(running.base_url)

            async def connect() -> trio.socket.SocketType:
                sock = trio.socket.socket()
                await sock.connect((address.hostname, address.port))
                return sock

            gateway = running.gateway

            def held() -> int:
                """Descriptors without those of kept connections to the engine, whose two ends are in this process."""
                return open_fds() - sum(engine.connections.idle for engine in gateway.engines.all) * 2

            await Storm(connect, 50, seed=0).run()
            await until(lambda: gateway.listening.connections == 0 and upstream.busy == 0)
            before = held()
            storm = Storm(connect, STREAMS, seed=1)
            await storm.run()

            await running.settled()
            running.assert_at_rest()
            await until(lambda: gateway.listening.connections == 0)
            await until(lambda: upstream.busy == 0)
            assert gateway.pump is not None
            assert gateway.pump.flows == 0
            with trio.fail_after(30):  # the engine's end of a connection that the gateway gave up closes a turn later
                await until(lambda: held() <= before)

            outcomes = running.outcomes()
            ended = sum(outcomes.values())
            assert set(outcomes) <= OUTCOMES
            assert {"served", "client_gone_active"} <= set(outcomes)
            assert gateway.ledger.opened == gateway.ledger.settled == ended
            assert total(running, "api_requests_total") == total(running, "api_outcomes_total") == ended
            lines = running.log_lines("request")
            assert Counter(line["outcome"] for line in lines) == outcomes
            assert len({line["request_id"] for line in lines}) == ended, "one line each"
            assert storm.complete <= outcomes["served"] <= ended <= STREAMS + 50
            assert len(upstream.asked) <= ended - outcomes.get("shed_queue_full", 0)
