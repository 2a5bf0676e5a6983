"""Our own shortage of descriptors: a 503 for whom it concerns, everybody else is served, the engine stays up."""

import errno
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from sluicegate.engines.engine import EngineState
from sluicegate.outcome import Outcome
from tests.engine_contract.raw import RawClient, get, post
from tests.fakes.engine import open_engine
from tests.harness import CHAT, question
from tests.wire.daemons import TOML, Daemon, run
from tests.wire.visitors import assert_refused, at_rest, gate, visit

LIMIT = 256

#: More than the limit, idle.
CROWD = 300


async def _metrics(client: RawClient) -> str:
    return (await client.ask(get("/metrics"))).body.decode()


async def _probed(daemon: Daemon, engine: Any) -> None:
    """Wait for two more probes."""
    before = len(engine.seen)
    await engine.until(lambda: len(engine.seen) > before + 4)


@pytest.mark.parametrize("slow", [False, True], ids=["idle", "slow path"])
async def test_a_crowd(tmp_path: Path, slow: bool) -> None:
    """`ulimit -n 256` and 300 clients. On the slow path each takes one more descriptor."""
    async with (
        open_engine() as engine,
        run(await engine.listen_tcp(), tmp_path / "a.toml", TOML, nofile=(LIMIT, LIMIT)) as daemon,
        AsyncExitStack() as stack,
    ):
        await daemon.logged("engine_up")
        (warned,) = daemon.lines("few_descriptors")
        assert f"the limit is {LIMIT}" in warned["detail"]
        first = await stack.enter_async_context(await daemon.dial())
        assert (await first.ask(post(CHAT, question()))).status == 200
        statuses = Counter[int]()
        for _ in range(CROWD):
            client = await stack.enter_async_context(await daemon.dial())
            if slow:
                answer = await client.ask(get("/health"))
                statuses[answer.status] += 1
                assert answer.status == 200 or answer.header("x-sluicegate-outcome") == "shed_exhausted"
        assert statuses[200] >= 60 * slow
        await daemon.logged("request", 1 + CROWD - LIMIT)
        for _ in range(3):
            assert (await first.ask(post(CHAT, question(stream=True)))).body.endswith(b"}\n\n")
            assert (await first.ask(post(CHAT, question()))).status == 200
        await _probed(daemon, engine)
        assert [line for line in daemon.lines("request") if line["outcome"].startswith("engine")] == []
        assert daemon.lines("engine_down") == daemon.lines("engine_degraded") == daemon.lines("crashed") == []
        assert len(daemon.lines("engine_up")) == 1
        refused = [line for line in daemon.lines("request") if line["outcome"] == "shed_exhausted"]
        assert {(line["status"], line["level"]) for line in refused} == {(503, "warning")}
        assert "file descriptors" in refused[0]["detail"]


async def test_the_soft_limit_is_raised(tmp_path: Path) -> None:
    text = TOML + "[limits]\nconnections_max = 400\n"
    async with open_engine() as engine:
        url = await engine.listen_tcp()
        async with run(url, tmp_path / "a.toml", text, nofile=(64, 1024)) as daemon:
            await daemon.logged("engine_up")
            async with await daemon.dial() as client:
                assert "process_max_fds 1024.0" in await _metrics(client)
            assert daemon.lines("few_descriptors") == []
            await daemon.reload(tmp_path / "a.toml", TOML)
            assert "limits.connections_max = 4096" in (await daemon.logged("few_descriptors"))[0]["detail"]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL])
async def test_no_connection_to_the_engine_for_want_of_ours(number: int) -> None:
    async with gate() as (_, running):

        async def dial() -> Any:
            raise OSError(number, errno.errorcode[number])

        running.gateway.engines.default.connections.dial = dial
        answer = await visit("fast", running)
        message = await assert_refused(running, answer, Outcome.SHED_EXHAUSTED, 503)
        assert message.startswith("The gateway has no ")
        assert running.gateway.engines.state is EngineState.UP
        assert running.log_lines("engine_down") == []
        await at_rest(running)
