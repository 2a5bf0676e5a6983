"""An engine that comes, goes, breaks and lies; and what its clients see of that."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sluicegate.config.schema import TcpAddress
from sluicegate.engines.engine import Engine, EngineState
from sluicegate.outcome import Outcome
from sluicegate.relay.pool import Pool
from tests.fakes.engine import FakeEngine, open_engine
from tests.fakes.script import BEFORE_HEAD, ON_ACCEPT, Behaviour, Fault, Kind
from tests.harness import Running, memory_dial, question, simulate
from tests.simulation.visiting import Visitor, answer_with, arrive, visit


async def test_it_is_served_as_soon_as_it_is_there(autojump_clock: MockClock) -> None:
    async with open_engine() as engine:
        engine.refusing = True
        async with simulate(engine, probe_interval_s=30.0) as running:
            await wait_all_tasks_blocked()
            assert running.gateway.health == "starting"
            engine.revive()
            began = trio.current_time()
            await running.engine_state(EngineState.UP)
            assert trio.current_time() - began <= 0.5
            assert (await visit(running, question())).outcome == "served"
            assert running.metric("api_engine_up") == 1


async def test_dead_engine_is_found_by_a_request(autojump_clock: MockClock) -> None:
    """The first request finds a dead engine before the next probe does, and wakes the prober."""
    async with open_engine() as engine, simulate(engine, probe_interval_s=1000.0) as running:
        await visit(running, question())
        engine.kill()
        assert running.gateway.health == "ok", "the next probe is far away"
        first = await visit(running, question())
        assert first.refused(Outcome.ENGINE_UNAVAILABLE, 503)
        assert first.retry_after == b"5"
        second = await visit(running, question())
        assert second.refused(Outcome.ENGINE_UNAVAILABLE, 503)
        assert running.gateway.health == "down"
        assert [line["event"] for line in running.log_lines() if line["event"].startswith("engine_")] == [
            "engine_up",
            "engine_down",
        ]
        engine.revive()
        await running.engine_state(EngineState.UP)
        assert (await visit(running, question())).outcome == "served"
        running.assert_at_rest()


async def test_gone_engine_loses_its_kept_connections(autojump_clock: MockClock) -> None:
    """The gateway closes the kept connections of an engine that is gone."""
    async with open_engine() as engine, simulate(engine, max_active=3, probe_interval_s=1000.0) as running:
        engine.script.default = Behaviour(prefill_s=1.0)
        async with trio.open_nursery() as nursery:
            await arrive(nursery, *[Visitor(running, question()) for _ in range(3)])
        pool = running.gateway.engines.default.connections
        assert pool.idle == 3
        engine.kill()
        await visit(running, question())
        assert pool.idle == 0


async def test_queued_requests_of_a_dead_engine(autojump_clock: MockClock) -> None:
    """Queued requests are answered when their turn comes after the engine died."""
    async with open_engine() as engine, simulate(engine, max_active=1, probe_interval_s=1000.0) as running:
        engine.script.default = Behaviour(prefill_s=5.0)
        async with trio.open_nursery() as nursery:
            visitors = [Visitor(running, question()) for _ in range(3)]
            await arrive(nursery, *visitors)
            await trio.sleep(2.0)
            engine.kill()
        assert visitors[0].refused(Outcome.ENGINE_ERROR, 502)
        assert {visitor.outcome for visitor in visitors[1:]} == {"engine_unavailable"}
        assert max(visitor.took_s for visitor in visitors) == pytest.approx(2.0)
        running.assert_at_rest()


async def test_dead_kept_connection_is_replaced(autojump_clock: MockClock) -> None:
    """A kept connection that died while idle is replaced, and the client does not notice."""
    async with open_engine() as engine, simulate(engine) as running:
        engine.script.next(Behaviour(close=True))
        await visit(running, question())
        await engine.until(lambda: engine.connections == 0)
        pool = running.gateway.engines.default.connections
        assert pool.idle == 1, "the gateway has not noticed yet"
        visitor = await visit(running, question(stream=True))
        assert visitor.outcome == "served"
        assert engine.accepted == 2
        assert len(engine.posts()) == 2
        assert pool.idle == 1


async def test_no_retry_after_the_first_byte(autojump_clock: MockClock) -> None:
    """A request is sent again only if no byte of an answer came."""
    async with open_engine() as engine, simulate(engine) as running:
        await visit(running, question())
        engine.script.next(Behaviour(fault=Fault(Kind.CLOSE, at_byte=1)))
        visitor = await visit(running, question())
        assert visitor.refused(Outcome.ENGINE_ERROR, 502)
        assert len(engine.posts()) == 2


async def test_a_request_is_sent_once_more_only_once(autojump_clock: MockClock) -> None:
    async with open_engine() as engine, simulate(engine) as running:
        await visit(running, question())
        engine.script.next(*[Behaviour(fault=Fault(Kind.CLOSE, BEFORE_HEAD))] * 5)
        visitor = await visit(running, question())
        assert visitor.refused(Outcome.ENGINE_ERROR, 502)
        assert len(engine.posts()) == 3, "the first one, on the kept connection, on a fresh one"


async def test_streamed_body_needs_a_fresh_connection(autojump_clock: MockClock) -> None:
    """A body that is read as it is sent cannot be sent again, so it never uses a kept connection."""
    async with open_engine() as engine, simulate(engine) as running:
        await visit(running, question())
        await visit(running, b"opaque", "/v1/audio/transcriptions")
        first, second = engine.posts()
        assert (first.connection, second.connection) == (1, 2)


@pytest.mark.parametrize("at", [ON_ACCEPT, BEFORE_HEAD])
async def test_an_opaque_body_that_is_spent_is_not_sent_again(autojump_clock: MockClock, at: int) -> None:
    async with open_engine() as engine, simulate(engine) as running:
        engine.script.next(Behaviour(fault=Fault(Kind.RESET, at)))
        visitor = await visit(running, b"opaque", "/v1/audio/transcriptions")
        assert visitor.refused(Outcome.ENGINE_ERROR, 502)
        running.assert_at_rest()


async def test_a_large_body_arrives_whole(autojump_clock: MockClock) -> None:
    async with open_engine(max_model_len=10_000_000) as engine, simulate(engine) as running:
        text = "x" * 1_000_000
        visitor = await visit(running, question(messages=[{"role": "user", "content": text}]))
        assert visitor.outcome == "served"
        assert text.encode() in engine.posts()[-1].body


@pytest.mark.parametrize("kind", [Kind.CLOSE, Kind.RESET])
async def test_an_answer_in_one_piece_that_breaks_off_is_a_502(autojump_clock: MockClock, kind: Kind) -> None:
    async with open_engine() as engine, simulate(engine) as running:
        engine.script.next(Behaviour(fault=Fault(kind, 3)))
        visitor = await visit(running, question())
        assert visitor.refused(Outcome.ENGINE_ERROR, 502), "nothing of the broken answer has gone out"
        assert (await visit(running, question())).outcome == "served"


@pytest.mark.parametrize("pieces", [1, 2])
async def test_an_answer_larger_than_we_take_is_a_502(autojump_clock: MockClock, pieces: int) -> None:
    """The limit is named, in the log too, and no SDK asks again: the engine is well, and would answer the same."""
    body = b" " * 2000
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    cut = len(answer) if pieces == 1 else len(answer) - 500
    async with open_engine() as engine, simulate(engine, answer_max_bytes=1024) as running:
        answer_with(running, answer[:cut], answer[cut:])
        visitor = await visit(running, question())
        assert visitor.refused(Outcome.TOO_LARGE, 502)
        error = visitor.json["error"]
        assert error["code"] == "answer_too_large"
        assert (
            error["message"]
            == visitor.log["detail"]
            == "The answer is larger than 1024 bytes (limits.answer_max_bytes). Ask for less at a time."
        )
        assert (visitor.client.header(b"x-should-retry"), visitor.retry_after) == (b"false", None)
        running.assert_at_rest()


BROKEN: dict[str, tuple[list[bytes | Exception], str]] = {
    "closed": ([], "the engine closed the connection without an answer"),
    "reset": (
        [ConnectionResetError(104, "Connection reset by peer")],
        "the connection to the engine broke ([Errno 104] Connection reset by peer)",
    ),
    "not HTTP": ([b"SSH-2.0-OpenSSH"], "the engine's answer is not HTTP"),
    "not quite HTTP": ([b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"], "the engine's answer is not HTTP ("),
    "another protocol": (
        [b"HTTP/1.1 101 Up\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"],
        "the engine wants to change the protocol",
    ),
    "cut short": (
        [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"],
        "the engine closed the connection in the middle of its answer",
    ),
}


@pytest.mark.parametrize(("parts", "why"), BROKEN.values(), ids=BROKEN)
async def test_the_log_says_why_an_exchange_broke(
    autojump_clock: MockClock, parts: list[bytes | Exception], why: str
) -> None:
    async with open_engine() as engine, simulate(engine) as running:
        answer_with(running, *parts)
        visitor = await visit(running, question())
        assert visitor.refused(Outcome.ENGINE_ERROR, 502)
        assert visitor.log["detail"].startswith(f"The engine broke off before it answered: {why}")
        assert visitor.json["error"]["message"] == "The engine broke off before it answered. Retry."


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TRUNCATED: dict[str, tuple[bytes | Exception, str]] = {
    "closed": (b"", "the engine closed the connection in the middle of its answer"),
    "reset": (ConnectionResetError("reset by peer"), "the connection to the engine broke (reset by peer)"),
    "not HTTP": (b"zz\r\n", "the engine's answer is not HTTP ("),
    "ended": (b"0\r\n\r\n", "the engine ended its stream before the end of the answer"),
}


@pytest.mark.parametrize(("part", "why"), TRUNCATED.values(), ids=TRUNCATED)
async def test_the_log_says_why_a_stream_broke(autojump_clock: MockClock, part: bytes | Exception, why: str) -> None:
    async with open_engine() as engine, simulate(engine) as running:
        answer_with(running, STREAM, b'10\r\ndata: {"x": 1}\n\n\r\n', part)
        visitor = await visit(running, question(stream=True))
        assert visitor.outcome == "engine_truncated"
        assert visitor.log["detail"].startswith(f"The engine broke off in the middle of its answer: {why}")
        assert visitor.data()[-1]["error"]["message"] == "The engine broke off in the middle of its answer. Retry."


async def test_a_head_larger_than_we_take_is_a_502(autojump_clock: MockClock) -> None:
    async with open_engine() as engine, simulate(engine) as running:
        answer_with(running, b"HTTP/1.1 200 OK\r\nx: ", b"x" * 70_000)
        visitor = await visit(running, question())
        assert visitor.refused(Outcome.ENGINE_ERROR, 502)
        said = "The head of the engine's answer is larger than 65536 bytes."
        assert visitor.json["error"]["message"] == visitor.log["detail"] == said
        assert visitor.client.header(b"x-should-retry") == b"false"


async def test_an_answer_as_large_as_we_take_is_passed_on(autojump_clock: MockClock) -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1024\r\nx-engine: 1\r\nserver: uvicorn\r\n\r\n" + b" " * 1024
    async with open_engine() as engine, simulate(engine, answer_max_bytes=1024) as running:
        answer_with(running, answer)
        visitor = await visit(running, question())
        assert (visitor.outcome, visitor.client.body) == ("served", b" " * 1024)
        assert visitor.client.headers == [(b"x-engine", b"1")]


async def test_stream_with_an_error_status_is_an_answer(autojump_clock: MockClock) -> None:
    """An event stream with another status than 200 passes as an ordinary answer."""
    async with open_engine() as engine, simulate(engine) as running:
        answer_with(running, b"HTTP/1.1 400 Bad\r\ncontent-type: text/event-stream\r\ncontent-length: 2\r\n\r\nno")
        visitor = await visit(running, question(stream=True))
        assert (visitor.outcome, visitor.client.status, visitor.client.body) == ("invalid", 400, b"no")


# Two engines: the configuration names one for now, but the pipeline tries each that is up.


@asynccontextmanager
async def two_engines() -> AsyncIterator[tuple[FakeEngine, FakeEngine, Running]]:
    async with open_engine() as first, open_engine() as second, simulate(first, probe_interval_s=1000.0) as running:
        gateway = running.gateway
        address = TcpAddress("127.0.0.1", 2)
        other = Engine("second", address, Pool(memory_dial(second, address, 1.0)), trio.CapacityLimiter(1))
        other.ready(("fake-model",), b"{}")
        gateway.engines.all += (other,)
        yield first, second, running


async def test_before_the_first_byte_another_engine_is_tried(autojump_clock: MockClock) -> None:
    async with two_engines() as (first, second, running):
        first.script.next(Behaviour(fault=Fault(Kind.RESET, BEFORE_HEAD)))
        assert (await visit(running, question())).outcome == "served"
        assert (len(first.posts()), len(second.posts())) == (1, 1)
        first.kill()
        assert (await visit(running, question(stream=True))).outcome == "served"
        assert len(second.posts()) == 2
        running.assert_at_rest()


async def test_last_engine_decides_the_outcome(autojump_clock: MockClock) -> None:
    """When every engine breaks, the outcome is that of the last attempt."""
    async with two_engines() as (first, second, running):
        for engine in (first, second):
            engine.script.next(Behaviour(fault=Fault(Kind.RESET, BEFORE_HEAD)))
        assert (await visit(running, question())).refused(Outcome.ENGINE_ERROR, 502)
        first.kill()
        second.kill()
        assert (await visit(running, question())).refused(Outcome.ENGINE_UNAVAILABLE, 503)
        running.assert_at_rest()


async def test_a_body_that_is_spent_goes_to_no_other_engine(autojump_clock: MockClock) -> None:
    async with two_engines() as (first, second, running):
        first.script.next(Behaviour(fault=Fault(Kind.RESET, BEFORE_HEAD)))
        visitor = await visit(running, b"opaque", "/v1/audio/transcriptions")
        assert visitor.refused(Outcome.ENGINE_ERROR, 502)
        assert second.posts() == []


async def test_after_the_first_byte_no_other_engine_is_tried(autojump_clock: MockClock) -> None:
    async with two_engines() as (first, second, running):
        first.script.next(Behaviour(token_interval_s=0.1, fault=Fault(Kind.RESET, 3)))
        visitor = await visit(running, question(stream=True))
        assert visitor.outcome == "engine_truncated"
        assert second.posts() == []
