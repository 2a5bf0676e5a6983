"""The engine is killed in the middle of streams and started again."""

import pytest
import trio

from sluicegate.engines.engine import EngineState
from sluicegate.outcome import Outcome
from tests.engine_contract.raw import get
from tests.fakes.script import Behaviour
from tests.harness import QUESTIONS, question
from tests.wire.visitors import WAYS, ask, assert_refused, at_rest, come, gate, log_line, visit

#: From the engine's being ready to the first answer, as the issue demands (seconds).
SERVED_AGAIN_S = 2.0


@pytest.mark.parametrize("path", QUESTIONS)
@pytest.mark.parametrize("way", WAYS)
async def test_killed_within_a_stream(way: str, path: str) -> None:
    """The stream ends with an error event, and the restarted engine serves again."""
    async with gate(max_active=1, probe_interval_s=1.0) as (engine, running):
        async with await come(way, running) as visitor:
            engine.script.next(Behaviour(hold=trio.Event(), hold_at=3))
            await visitor.send(path, question(path, stream=True))
            await visitor.until_events(3)
            engine.kill()
            answer = await visitor.answer()
        assert (answer.status, answer.complete) == (200, True), "the client's framing ends properly"
        assert answer.body.endswith(b"\n\n")
        last = answer.events()[-1]
        if path == "/v1/messages":
            assert last.startswith(b'event: error\ndata: {"type":"error"')
        else:
            assert b'"code":"engine_truncated"' in last
        assert b"[DONE]" not in answer.body
        line = await log_line(running, answer.header("x-request-id"))
        assert (line["outcome"], line["status"], line["level"]) == ("engine_truncated", 200, "warning")

        await running.engine_state(EngineState.DOWN)
        refused = await visit(way, running, path)
        await assert_refused(running, refused, Outcome.ENGINE_UNAVAILABLE, 503, path=path)
        assert (await ask(running, get("/ready"))).status == 503

        engine.revive()
        with trio.fail_after(SERVED_AGAIN_S):
            await running.engine_state(EngineState.UP)
            assert (await visit(way, running, path, question(path, stream=True))).status == 200
        await at_rest(running)
        assert running.outcomes() == {"engine_truncated": 1, "engine_unavailable": 1, "served": 1}
