"""Streams that wait are pinged where that was asked for, and errors come as events from then on. On virtual time."""

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from sluicegate.exchange import ClientGone, ClientStalled, Headers
from tests.fakes.engine import open_engine
from tests.fakes.script import BEFORE_FIRST_EVENT, BEFORE_HEAD, Behaviour, Fault, Kind
from tests.harness import CHAT, QUESTIONS, SimClient, question, simulate
from tests.simulation.test_dialects import check_error_event
from tests.simulation.visiting import Visitor, answer_with, arrive, visit

PING = dict.fromkeys(QUESTIONS, b": ping") | {"/v1/messages": b'event: ping\ndata: {"type": "ping"}'}
ASKED: Headers = [(b"x-sluicegate-ping-s", b"5")]
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class Stamped(SimClient):
    """Notes when it got what."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[tuple[float, bytes]] = []

    async def send(self, data: bytes) -> None:
        self.got.append((trio.current_time(), data))
        await super().send(data)

    def when(self, event: bytes) -> list[float]:
        return [at for at, data in self.got if data == event + b"\n\n"]


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("path", QUESTIONS)
async def test_pings_in_queue_and_prefill(autojump_clock: MockClock, path: str, asked: bool) -> None:
    """A ping every 5 s until the first output, by the setting or by the header; the stream is what it was."""
    setting = {} if asked else {"ping_s": 5.0}
    async with open_engine() as engine, simulate(engine, max_active=1, **setting) as running:
        usual = await visit(running, question(path, stream=True), path)
        engine.script.next(Behaviour(prefill_s=12.0), Behaviour(prefill_s=9.0, token_interval_s=6.0))
        first, second = (Visitor(running, question(path, stream=True), path, Stamped(), ASKED) for _ in range(2))
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            await arrive(nursery, first, second)
        ping = PING[path]
        assert isinstance(first.client, Stamped)
        assert isinstance(second.client, Stamped)
        assert [at - began for at in first.client.when(ping)] == pytest.approx([5.0, 10.0])
        # From the queue (12 s) into prefill (9 s). What Responses sends at its beginning is no output, and counts.
        expected = [5.0, 10.0, 17.0] if path == "/v1/responses" else [5.0, 10.0, 15.0, 20.0]
        assert [at - began for at in second.client.when(ping)] == pytest.approx(expected)
        for visitor in (first, second):
            head = dict(visitor.client.headers)
            assert (visitor.client.status, head[b"content-type"]) == (200, b"text/event-stream; charset=utf-8")
            assert (head[b"cache-control"], head[b"x-accel-buffering"]) == (b"no-cache", b"no")
            assert (visitor.outcome, visitor.log["status"], visitor.client.finished) == ("served", 200, True)
            events = [event for event in visitor.events if event != ping]
            assert len(events) == len(usual.events)
            assert events[-1].startswith(b": sluicegate {")
        assert second.log["ttft_s"] == pytest.approx(21.0)
        running.assert_at_rest()


@pytest.mark.parametrize(
    ("members", "headers", "setting"),
    [({"stream": True}, [], 0.0), ({"stream": True}, [(b"x-sluicegate-ping-s", b"0")], 5.0), ({}, ASKED, 5.0)],
    ids=["nobody asked", "switched off", "no stream"],
)
async def test_no_pings(autojump_clock: MockClock, members: dict[str, Any], headers: Headers, setting: float) -> None:
    async with open_engine() as engine, simulate(engine, ping_s=setting, first_token_s=20.0, request_s=20.0) as running:
        engine.script.next(Behaviour(prefill_s=30.0))
        visitor = await visit(running, question(**members), headers=headers)
        assert visitor.client.status == 504
        assert visitor.took_s == pytest.approx(20.0)


LATE = Behaviour(delay_s=12.0)
#: What goes wrong 12 s after the slot: the behaviour, the outcome, the error's type at OpenAI, and a word of it.
TROUBLE: dict[str, tuple[Behaviour, str, str, str]] = {
    "first token": (Behaviour(prefill_s=99.0), "timeout_first_token", "server_error", "within 15 s"),
    "closed": (LATE.but(fault=Fault(Kind.CLOSE, BEFORE_HEAD)), "engine_error", "server_error", "before it answered"),
    "no event": (
        LATE.but(fault=Fault(Kind.CLOSE, BEFORE_FIRST_EVENT)),
        "engine_error",
        "server_error",
        "before it answered",
    ),
    "500": (LATE.but(fault=Fault(Kind.STATUS, status=500)), "engine_error", "server_error", "status 500"),
    "400": (LATE.but(fault=Fault(Kind.STATUS, status=400)), "invalid", "invalid_request_error", ""),
}


@pytest.mark.parametrize("name", TROUBLE)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/messages"])
async def test_errors_after_a_ping_are_events(autojump_clock: MockClock, path: str, name: str) -> None:
    """Under the 200 that the ping began; the outcome is what it would have been."""
    behaviour, outcome, kind, words = TROUBLE[name]
    async with open_engine() as engine, simulate(engine, ping_s=5.0, first_token_s=15.0) as running:
        engine.script.default = behaviour
        visitor = await visit(running, question(path, stream=True), path)
        check(visitor, path, outcome, words)
        if path != "/v1/messages":
            assert visitor.data()[-1]["error"]["type"] == kind
        running.assert_at_rest()


@pytest.mark.parametrize("path", QUESTIONS)
async def test_a_queue_timeout_after_a_ping(autojump_clock: MockClock, path: str) -> None:
    async with open_engine() as engine, simulate(engine, max_active=1, ping_s=5.0, queue_timeout_s=12.0) as running:
        engine.script.default = Behaviour(prefill_s=30.0)
        visitors = [Visitor(running, question(path, stream=True), path) for _ in range(2)]
        async with trio.open_nursery() as nursery:
            await arrive(nursery, *visitors)
        assert visitors[0].outcome == "served"
        check(visitors[1], path, "shed_queue_timeout", "No slot")


@pytest.mark.parametrize("path", QUESTIONS)
async def test_a_break_after_output_is_truncated(autojump_clock: MockClock, path: str) -> None:
    async with open_engine() as engine, simulate(engine, ping_s=5.0) as running:
        engine.script.next(Behaviour(prefill_s=12.0, token_interval_s=0.1, fault=Fault(Kind.CLOSE, 5)))
        visitor = await visit(running, question(path, stream=True), path)
        assert (visitor.outcome, visitor.client.status) == ("engine_truncated", 200)
        check_error_event(path, visitor.events[-1], visitor.data()[-1], "engine_truncated")


async def test_an_answer_in_one_piece_after_a_ping(autojump_clock: MockClock) -> None:
    """The engine did not heed `stream`, and the client already reads one."""
    async with open_engine() as engine, simulate(engine, ping_s=5.0, max_active=1) as running:
        engine.script.next(Behaviour(prefill_s=12.0))
        first, second = (Visitor(running, question(stream=True)) for _ in range(2))
        async with trio.open_nursery() as nursery:
            await arrive(nursery, first)
            answer_with(running, WHOLE)
            await arrive(nursery, second)
        check(second, CHAT, "engine_error", "did not answer with a stream")


async def test_refused_at_once_by_a_status(autojump_clock: MockClock) -> None:
    """Before the first ping a status is possible, and comes."""
    async with open_engine() as engine, simulate(engine, ping_s=5.0, max_active=1, queue_max=0) as running:
        engine.script.default = Behaviour(prefill_s=30.0)
        first, second = (Visitor(running, question(stream=True)) for _ in range(2))
        async with trio.open_nursery() as nursery:
            await arrive(nursery, first, second)
        assert (second.outcome, second.client.status, second.took_s) == ("shed_queue_full", 429, 0.0)


@pytest.mark.parametrize("where", ["queue", "prefill"])
@pytest.mark.parametrize("how", [ClientGone, ClientStalled, None])
async def test_a_client_that_disconnects(autojump_clock: MockClock, where: str, how: type[Exception] | None) -> None:
    """Found by a ping that cannot be sent, or told by the kernel (None): slot and place in the queue are released."""
    async with open_engine() as engine, simulate(engine, ping_s=5.0, max_active=1) as running:
        engine.script.default = Behaviour(prefill_s=100.0)
        first, second = (Visitor(running, question(stream=True)) for _ in range(2))
        leaver = second if where == "queue" else first
        async with trio.open_nursery() as nursery:
            await arrive(nursery, first, second)
            await trio.sleep(7.0)
            if how is None:
                leaver.leave()
            leaver.client.gone, leaver.client.stalled = how is ClientGone, how is ClientStalled
            await trio.sleep(3.5 if how is ClientGone else 19.0)
            active = "client_gone_active" if where == "prefill" else "client_gone_queued"
            assert leaver.outcome == ("client_stalled" if how is ClientStalled else active)
            assert (running.gateway.admission.active, running.gateway.admission.queued) == (1, 0)
        running.assert_at_rest()


def check(visitor: Visitor, path: str, outcome: str, words: str) -> None:
    """Pinged twice, then one error event of the dialect, and that is all."""
    assert (visitor.outcome, visitor.client.status, visitor.log["status"]) == (outcome, 200, 200)
    assert visitor.client.finished
    events: Sequence[bytes] = [event for event in visitor.events if event != PING[path]]
    assert len(visitor.events) - len(events) >= 2
    if path == "/v1/responses":
        events = events[-1:]  # it may have begun
    assert len(events) == 1, events
    assert visitor.data()[-1].get("type") == "error" or set(visitor.data()[-1]) == {"error"}
    assert words in events[0].decode()
