"""Far more than the gate lets in: every request is answered, all of it adds up, and the memory stays flat."""

from collections import Counter
from pathlib import Path

import trio

from tests.engine_contract.raw import get, post
from tests.fakes.engine import open_engine
from tests.fakes.script import Behaviour
from tests.harness import CHAT, question
from tests.wire.daemons import TOML, Daemon, run

REQUESTS = 2000
AT_A_TIME = 64
MAX_ACTIVE = 2

#: A gateway that kept 1 KiB of each request would grow by 1.5 MiB from the 500th to the last. Python's allocator moves
#: by arenas of 256 KiB to 1 MiB, so the bound is two of them (KiB).
GROWTH_KIB = 2048


class Crowd:
    """Clients that ask again as soon as they are answered, every other time for a stream."""

    def __init__(self, daemon: Daemon) -> None:
        self.answered: Counter[int] = Counter()
        self._daemon = daemon
        self._left = REQUESTS
        #: Resident memory after 500 requests (KiB).
        self.resident_at_500 = 0

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(AT_A_TIME):
                nursery.start_soon(self._one)

    async def _one(self) -> None:
        async with await self._daemon.dial() as client:
            while self._left:
                self._left -= 1
                stream = self._left % 2 == 0
                answer = await client.ask(post(CHAT, question(stream=stream)))
                assert answer.complete
                assert (answer.status == 200) == (answer.header("x-sluicegate-outcome") is None)
                if answer.status == 200 and stream:
                    assert b"data: [DONE]" in answer.events()
                self.answered[answer.status] += 1
                if self.answered.total() == 500:
                    self.resident_at_500 = self._daemon.resident_kib


def _samples(exposition: bytes, name: str) -> dict[str, float]:
    """The samples of `name` by their labels, as they are written."""
    lines = [line for line in exposition.decode().splitlines() if line.startswith(name + "{")]
    return {line.partition("{")[2].partition("}")[0]: float(line.rpartition(" ")[2]) for line in lines}


async def test_2000_requests_are_all_accounted_for(tmp_path: Path) -> None:
    """With 64 requests at a time, each is answered and counted once."""
    environ = {"MAX_ACTIVE": str(MAX_ACTIVE), "QUEUE_MAX": "10", "QUEUE_TIMEOUT_S": "2"}
    async with open_engine() as engine:
        engine.script.default = Behaviour(prefill_s=0.002, token_interval_s=0.001, tokens=4)
        async with run(await engine.listen_tcp(), tmp_path / "f.toml", TOML, environ) as daemon:
            await daemon.logged("engine_up")
            crowd = Crowd(daemon)
            await crowd.run()
            resident = daemon.resident_kib
            exposition = (await daemon.ask(get("/metrics"))).body
            lines = await daemon.logged("request", REQUESTS)

    assert crowd.answered.total() == REQUESTS
    assert crowd.answered.keys() <= {200, 429, 503}
    assert min(crowd.answered[200], crowd.answered[429]) > 0, "no overload"
    assert engine.most_running == MAX_ACTIVE, "never more at the engine, and never idle"
    by_status = _samples(exposition, "api_requests_total")
    assert by_status == {f'endpoint="{CHAT}",status="{status}"': count for status, count in crowd.answered.items()}
    by_outcome = {name: count for name, count in _samples(exposition, "api_outcomes_total").items() if count}
    assert sum(by_outcome.values()) == REQUESTS
    assert by_outcome['outcome="served"'] == crowd.answered[200]
    assert by_outcome['outcome="shed_queue_full"'] == crowd.answered[429]
    assert Counter(line["status"] for line in lines) == crowd.answered
    assert len({line["request_id"] for line in lines}) == REQUESTS
    assert b"api_active_requests 0.0" in exposition
    assert b"api_queue_depth 0.0" in exposition
    assert len(engine.posts()) == crowd.answered[200]
    assert resident - crowd.resident_at_500 < GROWTH_KIB, (crowd.resident_at_500, resident)
