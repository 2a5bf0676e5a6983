"""Streams over real sockets: the engine's every form is the same to the client, and its every break is told."""

import re
from pathlib import Path

import pytest
import trio

from tests.engine_contract.raw import RawAnswer
from tests.fakes.engine import FakeEngine, open_engine
from tests.fakes.script import AT_END, BEFORE_FIRST_EVENT, BEFORE_HEAD, Behaviour, Fault, Framing, Kind, Wire, Writes
from tests.harness import CHAT, QUESTIONS, Running, configuration, open_gateway, question
from tests.wire.visitors import WAYS, at_rest, gate, log_line, visit

every_way = pytest.mark.parametrize("way", WAYS)
#: Generated slowly enough that events come one by one, so that all but the first pass through the pump.
ONE_BY_ONE = Behaviour(token_interval_s=0.005)

FORMS = [
    Wire(),
    Wire(writes=Writes.BYTES),
    Wire(writes=Writes.ALL),
    Wire(writes=Writes.BURST),
    Wire(events_per_chunk=3),
    Wire(chunk_bytes=1),
    Wire(chunk_bytes=100),
    Wire(framing=Framing.LENGTH),
    Wire(framing=Framing.UNTIL_CLOSE),
    Wire(chunk_extension=";a=b", trailers=(("x-checksum", "1"),)),
    Wire(comments=True),
]


async def stream(way: str, running: Running, path: str = CHAT) -> RawAnswer:
    return await visit(way, running, path, question(path, stream=True))


def without_additions(answer: RawAnswer) -> list[bytes]:
    """The events but for comments (the gateway's last frame, an engine's keep-alive), ids aside."""
    name = (answer.header("x-request-id") or "").encode()
    return [event.replace(name, b"ID") for event in answer.events() if not event.startswith(b":")]


async def assert_broken(running: Running, answer: RawAnswer, outcome: str, path: str = CHAT) -> None:
    """The client's framing ends properly, with the dialect's error event, and log and metrics have the outcome."""
    assert (answer.status, answer.complete) == (200, True)
    assert answer.body.endswith(b"\n\n")
    *before, last = answer.events()
    assert not any(b'"error":{' in event or event.startswith((b"event: error", b": sluicegate")) for event in before)
    if path == "/v1/messages":
        assert last.startswith(b'event: error\ndata: {"type":"error"')
    else:
        assert b'"code":"%s"' % outcome.encode() in last
    assert b"[DONE]" not in answer.body
    assert (await log_line(running, answer.header("x-request-id")))["outcome"] == outcome
    await at_rest(running)


@every_way
@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
async def test_stream_is_the_same_in_every_wire_form(way: str, path: str) -> None:
    """The client's stream does not depend on how the engine frames and splits it."""
    async with gate() as (engine, running):
        few = Behaviour(token_interval_s=0.002, tokens=3)
        engine.script.next(few)
        plain = await stream(way, running, path)
        assert plain.body.count(b": sluicegate {") == 1
        for form in FORMS:
            engine.script.next(few.but(wire=form))
            answer = await stream(way, running, path)
            assert (answer.status, answer.complete) == (200, True), form
            assert without_additions(answer) == without_additions(plain), form
            assert answer.events()[-1].startswith(b": sluicegate {")
        await at_rest(running)
        assert running.outcomes() == {"served": 1 + len(FORMS)}


@every_way
@pytest.mark.parametrize("kind", [Kind.CLOSE, Kind.RESET, Kind.TRUNCATE, Kind.GARBAGE, Kind.HALF_CLOSE])
async def test_an_engine_that_breaks_off_within_its_stream(way: str, kind: Kind) -> None:
    async with gate() as (engine, running):
        for path in QUESTIONS:
            for at in (4,) if kind is Kind.GARBAGE else (1, 4):
                engine.script.next(ONE_BY_ONE.but(fault=Fault(kind, at)))
                answer = await stream(way, running, path)
                await assert_broken(running, answer, "engine_truncated", path)
                if path == "/v1/responses":
                    numbers = [int(number) for number in re.findall(rb'"sequence_number":(\d+)', answer.body)]
                    assert numbers == list(range(len(numbers))), "the error event continues the stream's"
        assert (await visit(way, running)).status == 200


@every_way
async def test_an_engine_that_breaks_off_at_any_byte(way: str) -> None:
    """Nothing but whole events goes out, whichever byte of the engine's is the last one."""
    async with gate() as (engine, running):
        behaviour = Behaviour(tokens=2)
        engine.script.next(behaviour)
        whole = without_additions(await stream(way, running))
        served = False
        for at in range(1, 2000, 41):
            engine.script.next(behaviour.but(fault=Fault(Kind.CLOSE, at_byte=at)))
            answer = await stream(way, running)
            line = await log_line(running, answer.header("x-request-id"))
            if answer.status != 200:
                assert (answer.status, line["outcome"]) == (502, "engine_error")
                continue
            served = line["outcome"] == "served"
            events = without_additions(answer)
            if served:
                assert events == whole
                break
            assert line["outcome"] == "engine_truncated"
            assert events[:-1] == whole[: len(events) - 1]
        assert served, "the whole answer is longer than that"
        await at_rest(running)


@every_way
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/messages"])
async def test_the_engines_own_error_is_passed_on_once(way: str, path: str) -> None:
    async with gate() as (engine, running):
        engine.script.next(ONE_BY_ONE.but(fault=Fault(Kind.ERROR_EVENT, 3)))
        answer = await stream(way, running, path)
        assert (answer.status, answer.complete) == (200, True)
        assert answer.body.count(b"nternal server error") == 1
        assert b"sluicegate" not in answer.body
        assert (await log_line(running, answer.header("x-request-id")))["outcome"] == "engine_error"
        await at_rest(running)


@every_way
@pytest.mark.parametrize("kind", [Kind.CLOSE, Kind.RESET, Kind.STALL])
async def test_what_breaks_behind_the_end_breaks_nothing(way: str, kind: Kind) -> None:
    async with gate(idle_s=0.2, max_active=len(QUESTIONS)) as (engine, running):
        engine.script.default = ONE_BY_ONE.but(fault=Fault(kind, AT_END))

        async def one(path: str) -> None:
            answer = await stream(way, running, path)
            assert (answer.status, answer.complete) == (200, True)
            assert answer.events()[-1].startswith(b": sluicegate {")
            assert (await log_line(running, answer.header("x-request-id")))["outcome"] == "served"

        async with trio.open_nursery() as nursery:
            for path in QUESTIONS:
                nursery.start_soon(one, path)
        await at_rest(running)


@every_way
async def test_an_engine_that_falls_silent_within_its_stream(way: str) -> None:
    async with gate(idle_s=0.15) as (engine, running):
        for path in QUESTIONS:
            engine.script.next(ONE_BY_ONE.but(fault=Fault(Kind.STALL, 4)))
            await assert_broken(running, await stream(way, running, path), "timeout_idle", path)
        await engine.until(lambda: (engine.running, engine.aborted) == (0, len(QUESTIONS)))


@every_way
@pytest.mark.parametrize("at", [BEFORE_HEAD, BEFORE_FIRST_EVENT])
async def test_an_engine_that_never_begins_its_stream_is_a_504(way: str, at: int) -> None:
    async with gate(first_token_s=0.15) as (engine, running):
        engine.script.next(Behaviour(fault=Fault(Kind.STALL, at)))
        answer = await stream(way, running)
        assert answer.status == 504
        assert answer.header("x-sluicegate-outcome") == "timeout_first_token"
        await engine.until(lambda: (engine.running, engine.aborted) == (0, 1))
        await at_rest(running)


@every_way
async def test_an_event_too_large_to_hold_passes(way: str) -> None:
    async with gate() as (engine, running):
        engine.script.next(ONE_BY_ONE.but(fault=Fault(Kind.HUGE_EVENT, 4, size=2 << 20)))
        answer = await stream(way, running)
        assert answer.complete
        assert max(map(len, answer.events())) > 2 << 20
        assert answer.data()[-1] == b"[DONE]"
        await at_rest(running)


async def _on_unix(tmp_path: Path, engine: FakeEngine) -> str:
    path = str(tmp_path / "engine.sock")
    await engine.listen_unix(path)
    return f"unix:{path}"


@every_way
async def test_engine_on_a_unix_socket(way: str, tmp_path: Path) -> None:
    """An engine on a Unix socket streams, breaks and falls silent as one on TCP does."""
    async with open_engine() as engine:
        config = configuration(await _on_unix(tmp_path, engine), idle_s=0.15)
        async with open_gateway(config) as running:
            engine.script.next(ONE_BY_ONE)
            answer = await stream(way, running)
            assert answer.events()[-1].startswith(b": sluicegate {")
            for kind, outcome in (
                (Kind.CLOSE, "engine_truncated"),
                (Kind.TRUNCATE, "engine_truncated"),
                (Kind.STALL, "timeout_idle"),
            ):
                engine.script.next(ONE_BY_ONE.but(fault=Fault(kind, 4)))
                await assert_broken(running, await stream(way, running), outcome)
            engine.script.next(ONE_BY_ONE.but(hold=trio.Event(), hold_at=3))
            async with trio.open_nursery() as nursery:

                async def die() -> None:
                    await engine.until(lambda: engine.generation_tokens % 8 == 3 and engine.running == 1)
                    engine.kill()

                nursery.start_soon(die)
                await assert_broken(running, await stream(way, running), "engine_truncated")


@every_way
async def test_a_cut_at_the_end_of_a_drain_is_told(way: str) -> None:
    async with gate(drain_s=0.1) as (engine, running):
        engine.script.next(ONE_BY_ONE.but(hold=trio.Event(), hold_at=3))
        async with trio.open_nursery() as nursery:

            async def stop() -> None:
                await engine.until(lambda: engine.generation_tokens == 3)
                running.gateway.stop()

            nursery.start_soon(stop)
            await assert_broken(running, await stream(way, running), "shed_draining")
        await running.gateway.stopped.wait()
