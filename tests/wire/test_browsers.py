"""What a page of another origin gets: on every kind of answer, on every way in. docs/browsers.md.

tests/clients/test_browser.py tries the same in a browser.
"""

import json
import re
from typing import Any

import pytest
import trio
import trio.testing

from tests.engine_contract.raw import RawAnswer, post
from tests.fakes.script import Behaviour
from tests.harness import CHAT, Running, configuration, open_gateway, question
from tests.wire.test_reload import reconfigure
from tests.wire.upstream import open_upstream
from tests.wire.visitors import WAYS, Http2Visitor, ask, at_rest, chunked, come, gate, raw

PAGE = "https://chat.example"
OTHER = "http://localhost:3000"
FOREIGN = "https://elsewhere.example"

#: What a program that runs in a page needs to read.
NEEDED = {
    "x-request-id",
    "retry-after",
    "x-should-retry",
    "server-timing",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-tokens",
}

ASK = question(max_tokens=3)
LARGE = question(messages=[{"role": "user", "content": "x" * 5000}])


async def _request(
    way: str, running: Running, path: str, body: Any = None, *fields: str, method: str = "POST"
) -> RawAnswer:
    """One request on a connection of its own; without a body if `body` is None."""
    async with await come(way, running) as visitor:
        if isinstance(visitor, Http2Visitor):
            await visitor.begin(path, *fields, method=method, end=body is None)
            if body is not None:
                await visitor.more(json.dumps(body).encode(), end=True)
        elif body is None:
            await visitor.stream.send_all(
                "\r\n".join([f"{method} {path} HTTP/1.1", "host: gate", *fields, "", ""]).encode()
            )
        else:
            await visitor.send(path, body, *fields)
        return await visitor.answer()


#: Kinds of answers: method, path, body, and the status.
KINDS: dict[str, tuple[str, str, Any, int]] = {
    "whole": ("POST", CHAT, ASK, 200),
    "stream": ("POST", CHAT, ASK | {"stream": True}, 200),
    "without a slot": ("POST", "/tokenize", {"prompt": "x"}, 200),
    "the engine's 404": ("POST", CHAT, ASK | {"model": "x"}, 404),
    "no JSON object": ("POST", CHAT, [], 400),
    "too large": ("POST", CHAT, LARGE, 413),
    "health": ("GET", "/health", None, 200),
    "models": ("GET", "/v1/models", None, 200),
    "metrics": ("GET", "/metrics", None, 200),
    "no such model": ("GET", "/v1/models/x", None, 404),
    "unknown route": ("GET", "/nowhere", None, 404),
    "wrong method": ("GET", CHAT, None, 405),
    "options": ("OPTIONS", CHAT, None, 204),
    "options of an unknown route": ("OPTIONS", "/nowhere", None, 404),
}


def _field(answer: RawAnswer, name: str) -> list[str]:
    return [value for key, value in answer.headers if key == name]


def _assert_open_to(answer: RawAnswer, origin: str) -> None:
    assert _field(answer, "access-control-allow-origin") == _field(answer, "timing-allow-origin") == [origin]
    (exposed,) = _field(answer, "access-control-expose-headers")
    assert set(exposed.split(", ")) >= NEEDED
    assert _varies(answer) == (origin != "*")
    assert answer.header("access-control-allow-credentials") is None


def _assert_closed(answer: RawAnswer) -> None:
    assert not [name for name, _ in answer.headers if name.startswith(("access-control-", "timing-allow-"))]


def _varies(answer: RawAnswer) -> bool:
    return "origin" in _field(answer, "vary")  # the fake engine's own is spelled otherwise


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("way", WAYS)
async def test_every_answer_says_who_may_read_it(way: str, kind: tuple[str, str, Any, int]) -> None:
    """By default nobody; the pages of cors.origins; everybody. A reload changes it on open connections."""
    method, path, body, status = kind
    async with gate(body_max_bytes=4000, probe_interval_s=60.0) as (engine, running):
        engine.script.default = Behaviour(tokens=3)

        async def answer(*fields: str) -> RawAnswer:
            got = await _request(way, running, path, body, *fields, method=method)
            assert (got.status, got.complete) == (status, True), got
            assert re.fullmatch(r"(\w+;dur=\d+\.\d, )*total;dur=\d+\.\d", got.header("server-timing") or ""), got
            assert got.header("x-request-id")
            assert "html" not in (got.header("content-type") or "")
            return got

        unconfigured = await answer(f"origin: {PAGE}")
        _assert_closed(unconfigured)
        assert not _varies(unconfigured)
        reconfigure(running, origins=(OTHER, PAGE))
        _assert_open_to(await answer(f"origin: {PAGE}"), PAGE)
        _assert_open_to(await answer(f"origin: {OTHER}"), OTHER)
        _assert_open_to(await answer(f"origin: {OTHER}", f"origin: {PAGE}"), OTHER)
        for fields in ((f"origin: {FOREIGN}",), ("origin: null",), (f"origin: {PAGE}/",), (f"origin: {PAGE}, x",), ()):
            closed = await answer(*fields)
            _assert_closed(closed)
            assert _varies(closed), "or a cache between gives one page the answer that another one got"
        reconfigure(running, origins=("*",))
        _assert_open_to(await answer(f"origin: {FOREIGN}"), "*")
        _assert_open_to(await answer(), "*")
        await at_rest(running)


#: Heads that are refused before they are read as a request: on the fast way, and by Hypercorn.
UNREAD = {
    "head too large": (f"POST {CHAT} HTTP/1.1\r\nhost: gate\r\norigin: {PAGE}\r\nx-long: {'x' * 2000}\r\n\r\n", 431),
    "the same, by Hypercorn": (f"GET / HTTP/1.1\r\nhost: gate\r\nOrigin:{PAGE} \r\nx-long: {'x' * 2000}\r\n\r\n", 431),
    "not HTTP": (f"GET / HTTP/1.1\r\nhost: gate\r\norigin: {PAGE}\r\nx y: z\r\n\r\n", 400),
    "head too slow": (f"POST {CHAT} HTTP/1.1\r\nhost: gate\r\norigin: {PAGE}\r\n", 408),
}


@pytest.mark.parametrize(("head", "status"), UNREAD.values(), ids=UNREAD.keys())
async def test_what_is_no_request_is_answered_readably(head: str, status: int) -> None:
    async with gate(origins=(PAGE,), header_max_bytes=1500, head_read_s=0.2) as (_, running):
        refused = await ask(running, head.encode())
        assert refused.status == status
        _assert_open_to(refused, PAGE)
        assert (refused.header("server-timing") or "").startswith("total;dur=")
        foreign = await ask(running, head.replace(PAGE, FOREIGN).encode())
        assert foreign.status == status
        _assert_closed(foreign)


@pytest.mark.parametrize(
    ("origins", "told"), [((PAGE,), PAGE), (("*",), "*"), ((PAGE, OTHER), None), ((), None)], ids=str
)
async def test_a_refused_connection_is_told_why(origins: tuple[str, ...], told: str | None) -> None:
    """Nobody has read which page asks: it can be told where there is only one, or any may."""
    async with gate(origins=origins, connections_max=1) as (_, running), await raw(running) as held:
        assert (await held.ask(post(CHAT, ASK))).status == 200
        refused = await ask(running, post(CHAT, ASK, f"origin: {PAGE}"))
        assert refused.status == 503
        assert refused.header("access-control-allow-origin") == told


def _preflight(path: str, *fields: str, origin: str = PAGE, method: str = "POST") -> bytes:
    head = [f"OPTIONS {path} HTTP/1.1", "host: gate", f"origin: {origin}", f"access-control-request-method: {method}"]
    return "\r\n".join([*head, *fields, "", ""]).encode()


#: What OpenAI's client asks for in a browser.
ASKED = "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-retry-count"


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/models", "/health", "/v1/responses/resp_1", "/nowhere"])
@pytest.mark.parametrize("origins", [(OTHER, PAGE), ("*",)], ids=str)
async def test_preflight(path: str, origins: tuple[str, ...]) -> None:
    """Answered with every slot taken and the engine down, and not counted: it is no request."""
    async with gate(origins=origins, max_active=1, queue_max=0) as (engine, running), await raw(running) as client:
        for down in (False, True):
            engine.refusing = down
            answer = await client.ask(_preflight(path, f"access-control-request-headers: {ASKED}"))
            assert (answer.status, answer.body) == (204, b"")
            assert _field(answer, "access-control-allow-origin") == ["*" if origins == ("*",) else PAGE]
            assert answer.header("access-control-allow-headers") == ASKED
            assert "POST" in (answer.header("access-control-allow-methods") or "")
            assert 0 < int(answer.header("access-control-max-age") or "") <= 7200
            assert answer.header("access-control-allow-private-network") is None
            assert answer.header("x-request-id")
            assert _varies(answer) == (origins != ("*",))
        assert engine.posts() == []
        assert running.outcomes() == {}


async def test_preflight_while_every_slot_is_taken() -> None:
    async with gate(origins=(PAGE,), max_active=1, queue_max=0) as (engine, running), await raw(running) as client:
        free = trio.Event()
        engine.script.default = Behaviour(hold=free)
        await client.stream.send_all(post(CHAT, ASK))
        while not running.gateway.admission.active:
            await trio.testing.wait_all_tasks_blocked()
        assert (await ask(running, _preflight(CHAT))).header("access-control-allow-origin") == PAGE
        busy = await ask(running, post(CHAT, ASK, f"origin: {PAGE}"))
        assert (busy.status, busy.header("retry-after")) == (429, "1")
        _assert_open_to(busy, PAGE)
        free.set()
        assert (await client.answer()).status == 200


@pytest.mark.parametrize(
    "names", ["x" * 2049, "x\x80y", 'x"y', "x;y", ""], ids=["long", "bytes", "quote", "semicolon", "none"]
)
async def test_preflight_for_odd_fields(names: str) -> None:
    async with gate(origins=(PAGE,)) as (_, running):
        answer = await ask(running, _preflight(CHAT, *([f"access-control-request-headers: {names}"] if names else [])))
        assert (answer.status, answer.header("access-control-allow-headers")) in ((204, None), (400, None))


async def test_preflight_of_a_private_network() -> None:
    async with gate(origins=(PAGE,)) as (_, running):
        answer = await ask(running, _preflight(CHAT, "access-control-request-private-network: true"))
        assert answer.header("access-control-allow-private-network") == "true"
        foreign = _preflight(CHAT, "access-control-request-private-network: true", origin=FOREIGN)
        assert (await ask(running, foreign)).header("access-control-allow-private-network") is None


@pytest.mark.parametrize("origins", [(), (OTHER,)], ids=str)
async def test_preflight_of_a_foreign_page(origins: tuple[str, ...]) -> None:
    """It is told what any OPTIONS is told, and its browser goes no further."""
    async with gate(origins=origins) as (_, running):
        answer = await ask(running, _preflight(CHAT))
        assert (answer.status, answer.header("allow")) == (204, "POST, OPTIONS")
        _assert_closed(answer)
        assert (await ask(running, _preflight("/nowhere"))).status == 404


async def test_the_engines_own_fields_are_not_doubled() -> None:
    """vLLM with --allowed-origins answers for itself; a browser refuses what is said twice."""
    own = b"access-control-allow-origin: *\r\nAccess-Control-Allow-Credentials: true\r\ntiming-allow-origin: *\r\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n" + own
    async with (
        open_upstream(None) as upstream,
        open_gateway(configuration(upstream.base_url, origins=(PAGE,))) as running,
    ):
        for request in (post, chunked):
            upstream.answers.append([head + b"content-length: 2\r\n\r\n{}"])
            _assert_open_to(await ask(running, request(CHAT, ASK, f"origin: {PAGE}")), PAGE)
