"""Clients that do not read: they hold no slot past client_stall_s, and no shutdown past its deadline."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from h2.settings import SettingCodes
from trio.testing import wait_all_tasks_blocked

from sluicegate import gateway
from tests.fakes.script import Behaviour, Fault, Kind
from tests.harness import CHAT, Running, question
from tests.wire.visitors import WAYS, Http2Visitor, Visitor, at_rest, come, dial_deaf, gate, visit

#: More than the sockets' buffers on both sides hold: what is left over stalls.
TOO_MUCH = 6 << 20

#: A client that does not read for this long is given up (seconds).
STALL_S = 0.3

#: Far below the default of client_stall_s, and far above STALL_S on a busy machine (seconds).
SOON_S = 5.0

#: The drain and the last words of a test, and time to spare; below LAST_WORDS_S as it is outside of it (seconds).
END_S = 1.8

every_way = pytest.mark.parametrize("way", WAYS)

#: An answer of TOO_MUCH bytes: one event of a stream, and one document that is repeated.
STREAM = (CHAT, question(stream=True))
WHOLE = ("/v1/rerank", {"model": "fake-model", "query": "x", "documents": ["x" * TOO_MUCH]})
both_kinds = pytest.mark.parametrize(("path", "body"), [STREAM, WHOLE], ids=["stream", "whole"])


@asynccontextmanager
async def stalled(way: str, running: Running, path: str, body: Any) -> AsyncIterator[Visitor]:
    """A client that has asked and does not read."""
    async with WAYS[way](await dial_deaf(running, way)) as visitor:
        if isinstance(visitor, Http2Visitor):  # a large window, so that it is the socket that stalls
            visitor.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: TOO_MUCH * 2})
            visitor.h2.increment_flow_control_window(TOO_MUCH * 2)
        await visitor.send(path, body)
        yield visitor


@every_way
@both_kinds
async def test_stalled_client_is_cut(way: str, path: str, body: Any) -> None:
    """A client that does not read is cut, and the next request gets its slot."""
    async with gate(max_active=1, client_stall_s=STALL_S, idle_s=60.0) as (engine, running):
        engine.script.next(Behaviour(fault=Fault(Kind.HUGE_EVENT, 2, size=TOO_MUCH)))
        async with stalled(way, running, path, body) as visitor:
            await engine.until(lambda: len(engine.posts()) == 1)
            with trio.fail_after(SOON_S):
                assert (await visit("fast", running)).status == 200, "it is queued, and gets the slot"
            assert running.outcomes() == {"client_stalled": 1, "served": 1}
            await engine.until(lambda: engine.running == 0)
            await assert_cut(running, visitor)
        await at_rest(running)


async def assert_cut(running: Running, visitor: Visitor) -> None:
    """The connection is closed, and what the client then reads is not a whole answer."""
    with trio.fail_after(SOON_S):
        while running.gateway.listening.connections:
            await wait_all_tasks_blocked(0.001)
        with contextlib.suppress(EOFError, ConnectionResetError, trio.BrokenResourceError):
            assert not (await visitor.answer()).complete


@every_way
@both_kinds
async def test_stalled_client_does_not_delay_the_end(
    way: str, path: str, body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it may still be told is bounded: by LAST_WORDS_S, and by nothing else here."""
    assert gateway.LAST_WORDS_S > END_S, "else this would pass without the patch"
    monkeypatch.setattr(gateway, "LAST_WORDS_S", 0.1)
    async with gate(max_active=1, client_stall_s=600.0, drain_s=0.05) as (engine, running):
        engine.script.next(Behaviour(fault=Fault(Kind.HUGE_EVENT, 2, size=TOO_MUCH)))
        async with stalled(way, running, path, body):
            await engine.until(lambda: len(engine.posts()) == 1)
            running.gateway.stop()
            with trio.fail_after(END_S):
                await running.gateway.stopped.wait()
        assert sum(running.outcomes().values()) == 1
        await at_rest(running)


async def test_http2s_flow_control_stalls_like_a_socket() -> None:
    """A client whose connection is well, but which opens no window for its stream; the engine has more to say."""
    async with gate(max_active=1, client_stall_s=STALL_S) as (engine, running):
        huge = Fault(Kind.HUGE_EVENT, 2, size=TOO_MUCH)
        engine.script.next(Behaviour(fault=huge, hold=trio.Event(), hold_at=4))
        async with await come("http2", running) as visitor:
            await visitor.send(*STREAM)
            await engine.until(lambda: engine.generation_tokens == 4)
            with trio.fail_after(5 * STALL_S):
                assert (await visit("fast", running)).status == 200
            assert running.outcomes() == {"client_stalled": 1, "served": 1}
        await at_rest(running)


async def test_stalled_clients_hold_up_nobody_else() -> None:
    async with (
        gate(max_active=3 * len(WAYS), client_stall_s=600.0) as (engine, running),
        contextlib.AsyncExitStack() as stack,
    ):
        for way in WAYS:
            for path, body in (STREAM, WHOLE):
                engine.script.next(Behaviour(fault=Fault(Kind.HUGE_EVENT, 2, size=TOO_MUCH)))
                before = len(engine.posts())
                await stack.enter_async_context(stalled(way, running, path, body))
                await engine.until(lambda before=before: len(engine.posts()) > before)  # type: ignore[misc]
        with trio.fail_after(SOON_S):
            for way in WAYS:
                answer = await visit(way, running, CHAT, question(stream=True))
                assert (answer.status, answer.complete) == (200, True)
        assert running.gateway.admission.active == 2 * len(WAYS), "they are still there"
