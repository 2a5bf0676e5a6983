"""One connection and what a client may do on it: keep it, pipeline, ask beforehand, upgrade, speak an older HTTP."""

import contextlib
from typing import Any

import pytest
import trio
import trio.testing

from sluicegate.accept import registry
from sluicegate.outcome import Outcome
from tests.engine_contract.raw import RawAnswer, get, parse, post
from tests.fakes.script import Behaviour
from tests.harness import CHAT, Running, question
from tests.wire.visitors import (
    WAYS,
    FastVisitor,
    Http2Visitor,
    Visitor,
    ask,
    at_rest,
    chunked,
    come,
    dial,
    gate,
    log_line,
    raw,
    visit,
)

ASK = question(max_tokens=3)
ODD_IDS = ["", "a b", "a\tb", '"', "x" * 129, "{}", "é", "../../etc", "a,b", "%0a"]


async def _answers(stream: trio.abc.Stream, count: int) -> list[int]:
    """The statuses of so many answers, in the order in which they come."""
    received, statuses = b"", list[int]()
    while len(statuses) < count:
        answer = parse(received) if received else None
        if answer is not None and answer.complete:
            statuses.append(answer.status)
            head, _, _ = received.partition(b"\r\n\r\n")
            received = received[len(head) + 4 + len(answer.body) :]
            continue
        data = await stream.receive_some()
        assert data, (statuses, received)
        received += data
    assert received == b""
    return statuses


@pytest.mark.parametrize("count", [2, 50])
async def test_requests_in_one_write(count: int) -> None:
    """Requests in one write are answered one after the other, in order."""
    async with gate(max_active=1) as (engine, running), await raw(running) as client:
        requests = [post(CHAT, ASK, f"x-request-id: number-{rank}") for rank in range(count)]
        await client.stream.send_all(b"".join(requests))
        assert await _answers(client.stream, count) == [200] * count
        assert [seen.header("x-request-id") for seen in engine.posts()] == [f"number-{rank}" for rank in range(count)]
        assert running.outcomes() == {"served": count}
        await at_rest(running)


async def test_pipelined_requests_keep_their_order() -> None:
    """Requests for the gate and for Quart's routes keep their order on one connection."""
    async with gate() as (_, running), await raw(running) as client:
        mixed = [post(CHAT, ASK), get("/health"), post(CHAT, ASK), get("/nowhere"), post("/v1/completions", {})]
        await client.stream.send_all(b"".join(mixed))
        assert await _answers(client.stream, len(mixed)) == [200, 200, 200, 404, 400]
        await at_rest(running)


async def test_one_connection_serves_every_kind_of_route() -> None:
    async with gate() as (_, running), await raw(running) as client:
        for request in (post(CHAT, ASK), get("/health"), post(CHAT, ASK), chunked(CHAT, ASK), get("/metrics")):
            assert (await client.ask(request)).status == 200
        assert running.gateway.listening.connections == 1
    async with gate() as (_, running), await raw(running) as client:
        for request in (get("/health"), post(CHAT, ASK | {"stream": True}), get("/ready"), post(CHAT, ASK)):
            answer = await client.ask(request)
            assert (answer.status, answer.complete) == (200, True)
        await at_rest(running)


#: What clients send between their requests, and what only some of them send: none may cost a connection its fast way.
BETWEEN = {
    "models": get("/v1/models"),
    "unknown route": get("/nowhere"),
    "another method": get(CHAT),
    "preflight": get(CHAT, "OPTIONS"),
    "chunked": chunked(CHAT, ASK),
    "no JSON": chunked(CHAT, b"?"),
    "stream": chunked(CHAT, ASK | {"stream": True}),
    "URL as the target": post(CHAT, ASK).replace(b"/", b"http://gate/", 1),
    "empty line before": b"\r\n" + post(CHAT, ASK),
    "percent-encoded": post("/v1/chat%2fcompletions", ASK),
}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN.keys())
async def test_a_slow_request_does_not_demote_its_connection(between: bytes) -> None:
    """Hypercorn serves what is not for the fast way, and gives the connection back with the next request that is."""
    async with gate() as (engine, running), await raw(running) as client:
        for rank in range(3):
            assert (await client.ask(between)).complete
            assert (await client.ask(post(CHAT, ASK, f"x-request-id: fast-{rank}"))).status == 200
            assert running.gateway.listening.ordinary == 0
        ids = [seen.header("x-request-id") or "" for seen in engine.posts()]
        assert [one for one in ids if one.startswith("fast-")] == ["fast-0", "fast-1", "fast-2"]
        # ... also where the next one comes before the answer to the slow one
        await client.stream.send_all(between)
        await client.stream.send_all(post(CHAT, ASK, "x-request-id: last"))
        while not any(seen.header("x-request-id") == "last" for seen in engine.posts()):
            await client.stream.receive_some()
        await at_rest(running)
    await _connections(running, 0)


#: What real clients send with every request: Claude Code, Azure's SDK, Java's client.
ALWAYS = {
    "Claude Code": post("/v1/messages?beta=true", question("/v1/messages")),
    "Azure": post(CHAT + "?api-version=2024-10-21", ASK),
    "Java": post(CHAT, ASK, "connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMA", "upgrade: h2c"),
}


@pytest.mark.parametrize("request_", ALWAYS.values(), ids=ALWAYS.keys())
async def test_what_clients_always_send_goes_the_fast_way(request_: bytes) -> None:
    async with gate() as (_, running), await raw(running) as client:
        for _ in range(2):
            assert (await client.ask(request_)).status == 200
            assert running.gateway.listening.ordinary == 0


@pytest.mark.parametrize("way", WAYS)
async def test_the_engine_gets_the_query(way: str) -> None:
    async with gate() as (engine, running):
        answer = await visit(way, running, CHAT + "?api-version=1&x=%20+?/#", ASK)
        assert answer.status == 200
        assert engine.posts()[0].target == CHAT + "?api-version=1&x=%20+?/#"
        assert (await visit(way, running, CHAT + "?", ASK)).status == 200
        assert (await visit(way, running, CHAT, ASK)).status == 200
        assert [seen.target.rstrip("?") for seen in engine.posts()[1:]] == [CHAT, CHAT]


async def test_a_query_cannot_break_the_request_line() -> None:
    """HTTP/2 lets spaces and bytes that are not ASCII through."""
    async with gate() as (engine, running):
        assert (await visit("http2", running, CHAT + "?a b\te", ASK)).status == 200
        assert engine.posts()[0].target == CHAT + "?a%20b%09e"


KINDS = {"fast": post(CHAT, ASK), "asgi": chunked(CHAT, ASK), "quart": get("/health"), "unknown": get("/nowhere")}


@pytest.mark.parametrize("request_", KINDS.values(), ids=KINDS.keys())
async def test_connection_close_is_kept(request_: bytes) -> None:
    async with gate() as (_, running), await raw(running) as client:
        answer = await client.ask(request_.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
        assert answer.complete
        assert (answer.header("connection") or "").lower() == "close"
        assert await client.stream.receive_some() == b""


@pytest.mark.parametrize("request_", KINDS.values(), ids=KINDS.keys())
async def test_a_connection_that_falls_idle_again_is_closed(request_: bytes) -> None:
    async with gate(keep_alive_s=0.2) as (_, running), await raw(running) as client:
        for _ in range(2):
            assert (await client.ask(request_)).complete
        assert await client.stream.receive_some() == b""
        await _connections(running, 0)


async def test_expect_100_continue() -> None:
    async with gate() as (_, running), await raw(running) as client:
        head, _, body = post(CHAT, ASK, "expect: 100-continue").partition(b"\r\n\r\n")
        await client.stream.send_all(head + b"\r\n\r\n")
        interim = await client.stream.receive_some()
        assert interim.startswith(b"HTTP/1.1 100 ")
        assert interim.endswith(b"\r\n\r\n")
        assert (await client.ask(body)).status == 200
        await at_rest(running)


async def test_http_1_0_is_answered_and_closed() -> None:
    async with gate() as (_, running):
        for stream in (False, True):
            async with await raw(running) as client:
                request = post(CHAT, ASK | {"stream": stream}).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
                answer = await client.ask(request)
                assert answer.status == 200
                assert answer.header("transfer-encoding") is None
                assert answer.body
                assert await client.stream.receive_some() == b""
        await at_rest(running)


@pytest.mark.parametrize("way", [*WAYS, "HTTP/1.0", "HTTP/1.0 kept"])
async def test_a_stream_passes_proxies_as_it_comes(way: str) -> None:
    """Each event goes out at once, to HTTP/1.0 as well, and the head tells a proxy not to hold it."""
    hold = trio.Event()
    async with gate() as (engine, running):
        engine.script.next(Behaviour(tokens=8, hold=hold, hold_at=3))
        visitor: Visitor
        if way in WAYS:
            visitor = await come(way, running)
            await visitor.send(CHAT, question(stream=True))
        else:
            visitor = FastVisitor(await dial(running))
            fields = ["connection: keep-alive"] if "kept" in way else []
            request = post(CHAT, question(stream=True), *fields).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
            await visitor.stream.send_all(request)
        async with visitor:
            answer = await visitor.until_events(3)
            assert not answer.complete
            hold.set()
            answer = await visitor.answer()
        assert b"data: [DONE]" in answer.body
        named = [value for name, value in answer.headers if name in ("cache-control", "x-accel-buffering")]
        assert named == ["no-cache", "no"]
        await at_rest(running)


@pytest.mark.parametrize("path", ["/health", CHAT, "/v1/responses", "/v1/messages", "/nowhere"])
async def test_a_websocket_is_refused(path: str) -> None:
    """With 426, at which Codex goes on over HTTP at once; after a 403 it tries seven times."""
    upgrade = "upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: "
    async with gate() as (engine, running):
        fields = f"host: gate\r\nx-request-id: ws\r\n{upgrade}dGhlIHNhbXBsZSBub25jZQ=="
        async with await raw(running) as client:
            answer = await client.ask(f"GET {path}?key=secret HTTP/1.1\r\n{fields}\r\n\r\n".encode())
            assert await client.stream.receive_some() == b""
        assert (answer.status, answer.complete) == (426, True)
        assert answer.header("x-sluicegate-outcome") == "invalid"
        assert answer.header("upgrade") == "HTTP/1.1"
        assert set((answer.header("connection") or "").split(", ")) == {"close", "upgrade"}
        told: Any = answer.json()
        assert told["error"]["message"] == "There is no WebSocket here. Send the request over HTTP, without Upgrade."
        assert ("type" in told) == (path == "/v1/messages")
        line = await log_line(running, "ws")
        assert (line["outcome"], line["status"], line["method"], line["path"]) == ("invalid", 426, "GET", path)
        assert running.outcomes() == {"invalid": 1}
        assert running.metric("api_requests_total", endpoint="other", status="426") == 1
        assert engine.posts() == []
        await at_rest(running)


@pytest.mark.parametrize(
    "fields", ["", "sec-websocket-version: 13", "sec-websocket-version: 8\r\nsec-websocket-key: a"]
)
async def test_a_broken_handshake_is_refused(fields: str) -> None:
    async with gate() as (_, running), await raw(running) as client:
        upgrade = "upgrade: websocket\r\nconnection: upgrade\r\nhost: gate\r\n" + fields
        answer = await client.ask(f"GET {CHAT} HTTP/1.1\r\n{upgrade.strip()}\r\n\r\n".encode())
        assert (answer.status, answer.complete) == (400, True)
        assert b"not a valid WebSocket handshake" in answer.body
        assert (await log_line(running, answer.header("x-request-id")))["path"] == CHAT
        assert await client.stream.receive_some() == b""


async def test_an_upgrade_of_a_request_is_ignored() -> None:
    async with gate() as (_, running):
        fields = ("upgrade: h2c", "connection: upgrade, http2-settings", "http2-settings: AAMAAABkAAQAoAAAAAIAAAAA")
        assert (await ask(running, post(CHAT, ASK, *fields))).status == 200
        await at_rest(running)


@pytest.mark.parametrize("way", WAYS)
async def test_a_request_id_that_is_not_sane_is_replaced(way: str) -> None:
    odd = [one for one in ODD_IDS if way != "http2" or one.isascii()]
    async with gate() as (engine, running), await come(way, running) as visitor:
        for given in odd:
            answer = await visitor.ask(CHAT, ASK, f"x-request-id: {given}")
            got = answer.header("x-request-id") or ""
            assert len(got) == 32
            assert int(got, 16) >= 0
            assert engine.posts()[-1].header("x-request-id") == got
            assert (await log_line(running, got))["outcome"] == "served"
        ids = {line["request_id"] for line in running.log_lines("request")}
        assert len(ids) == len(odd)


async def test_two_request_ids_are_one() -> None:
    async with gate() as (engine, running):
        answer = await visit("fast", running, CHAT, ASK, "x-request-id: b d", "x-request-id: ok.1")
        assert answer.header("x-request-id") == "ok.1"
        assert [value for name, value in engine.posts()[0].headers if name == "x-request-id"] == ["ok.1"]


async def test_connections_over_the_limit_are_refused() -> None:
    """A connection over the limit gets a 503; the others are served."""
    async with gate(connections_max=2) as (_, running):
        first, second = await raw(running), await raw(running)
        async with first, second:
            assert (await first.ask(post(CHAT, ASK))).status == 200
            assert (await second.ask(get("/health"))).status == 200
            async with await raw(running) as third:
                answer = await third.answer()
                assert (answer.status, answer.header("retry-after")) == (503, "1")
                assert answer.header("x-sluicegate-outcome") == Outcome.SHED_BUSY.value
                error = answer.json()["error"]  # type: ignore[index]
                assert (error["type"], error["code"]) == ("service_unavailable_error", "shed_busy")
                assert await third.stream.receive_some() == b""
            assert (await second.ask(post(CHAT, ASK))).status == 200
            assert running.metric("api_client_connections_refused_total") == 1
            assert running.outcomes() == {"served": 2}, "it is no request"
        await _connections(running, 0)
        assert (await ask(running, post(CHAT, ASK))).status == 200


@pytest.mark.parametrize("body", [b"{}", b"x" * 200_000], ids=["small", "large"])
async def test_who_is_turned_away_gets_the_answer(body: bytes) -> None:
    """They have sent their requests already: a close with bytes unread would reset them under the answer."""
    async with gate(connections_max=1) as (_, running), await raw(running) as first:
        assert (await first.ask(post(CHAT, ASK))).status == 200
        answers = list[RawAnswer]()

        async def come_too() -> None:
            async with await raw(running) as client:
                await client.stream.send_all(post(CHAT, body))
                answers.append(await client.answer())
                assert await client.stream.receive_some() == b""

        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(come_too)
        assert [(answer.status, answer.complete) for answer in answers] == [(503, True)] * 40
        assert (await first.ask(post(CHAT, ASK))).status == 200


async def test_only_so_many_are_lingered_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused client that stays costs a descriptor for a moment: so many at one time, and no more."""
    monkeypatch.setattr(registry, "LINGERING_MAX", 1)
    async with gate(connections_max=1) as (_, running), await raw(running) as first:
        assert (await first.ask(post(CHAT, ASK))).status == 200
        async with await raw(running) as second, await raw(running) as third:
            for client in (second, third):
                assert (await client.ask(post(CHAT, ASK))).status == 503
            with contextlib.suppress(trio.BrokenResourceError):
                while True:
                    await third.stream.send_all(b"x")
                    await trio.testing.wait_all_tasks_blocked()
            await second.stream.send_all(b"x" * 100_000)


async def test_an_answer_before_a_close_arrives() -> None:
    """With "connection: close" and something behind the request that nobody reads."""
    async with gate() as (engine, running):
        for _ in range(5):
            async with await raw(running) as client:
                hold = trio.Event()
                engine.script.next(Behaviour(hold=hold, hold_at=0))
                await client.stream.send_all(post(CHAT, ASK, "connection: close"))
                await engine.until(lambda: engine.running > 0)
                await client.stream.send_all(b"\r\n" + b"x" * 100_000)
                hold.set()
                answer = await client.answer()
                assert (answer.status, answer.complete) == (200, True)
                assert await client.stream.receive_some() == b""


async def _connections(running: Running, count: int) -> None:
    while running.gateway.listening.connections != count:
        await trio.testing.wait_all_tasks_blocked()


async def test_streams_side_by_side_on_one_http2_connection() -> None:
    """Each has its own slot and its own answer, and one that is cancelled ends no other."""
    async with gate(max_active=3) as (engine, running), Http2Visitor(await dial(running)) as visitor:
        engine.script.next(Behaviour(hold=trio.Event(), hold_at=2))
        await visitor.send(CHAT, question(stream=True))
        await visitor.until_events(2)
        cancelled = visitor.current
        answer = await visitor.ask(CHAT, question(stream=True))
        assert answer.body.count(b"[DONE]") == 1
        visitor.h2.reset_stream(cancelled)
        await visitor.flush()
        await engine.until(lambda: engine.aborted == 1)
        assert (await visitor.ask(CHAT, ASK)).status == 200
        await at_rest(running)
        assert running.outcomes() == {"served": 2, "client_gone_active": 1}
