"""What each route answers, in every state of the engine, and what passes through unchanged."""

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trio
import trio.testing

from sluicegate.accept.sockets import bind
from sluicegate.config.schema import UnixAddress
from sluicegate.dialects.routes import ENDPOINTS, PATHS
from sluicegate.engines.engine import EngineState
from sluicegate.outcome import Outcome
from tests.engine_contract.raw import RawAnswer, get, post
from tests.fakes.engine import FakeEngine, open_engine
from tests.fakes.routes import LEAKS
from tests.fakes.script import BEFORE_HEAD, Behaviour, Fault, Kind
from tests.harness import CHAT, Running, configuration, open_gateway, question
from tests.wire.visitors import SECURE, WAYS, ask, assert_refused, at_rest, come, gate, log_line, raw, visit

State = Callable[[FakeEngine, Running], Awaitable[None]]


async def _starting(engine: FakeEngine, running: Running) -> None:
    assert running.gateway.health == "starting"


async def _ok(engine: FakeEngine, running: Running) -> None:
    engine.refusing = False
    await running.engine_state(EngineState.UP)


async def _degraded(engine: FakeEngine, running: Running) -> None:
    await _ok(engine, running)
    engine.healthy = False
    await running.engine_state(EngineState.DEGRADED)


async def _without_model(engine: FakeEngine, running: Running) -> None:
    await _ok(engine, running)
    engine.model = ""
    await running.engine_state(EngineState.DEGRADED)


async def _down(engine: FakeEngine, running: Running) -> None:
    await _ok(engine, running)
    engine.kill()
    await running.engine_state(EngineState.DOWN)


@asynccontextmanager
async def _in_state(state: State) -> AsyncIterator[tuple[FakeEngine, Running]]:
    async with open_engine() as engine:
        engine.refusing = True
        config = configuration(await engine.listen_tcp())
        async with open_gateway(config, wait_ready=False) as running:
            await state(engine, running)
            yield engine, running


@pytest.mark.parametrize(
    ("state", "status", "why", "up"),
    [
        (_starting, "starting", "", 0),
        (_ok, "ok", "", 1),
        (_degraded, "degraded", "/health answers 503", 0),
        (_without_model, "degraded", "the engine has no model loaded", 0),
        (_down, "down", "cannot be reached", 0),
    ],
)
async def test_routes_report_the_engines_state(state: State, status: str, why: str, up: int) -> None:
    """/health, /ready, /v1/models and /metrics report the engine's state."""
    async with _in_state(state) as (_, running):
        healthy = status == "ok"
        health = await ask(running, get("/health"))
        ready = await ask(running, get("/ready"))
        models = await ask(running, get("/v1/models"))
        metrics = await ask(running, get("/metrics"))
        assert [health.status, ready.status, models.status, metrics.status] == [200 if healthy else 503] * 3 + [200]
        told: Any = health.json()
        assert told["status"] == status
        if healthy:
            assert told == {"status": "ok", "models": ["fake-model"]}
            assert ready.json() == {"ready": True}
            assert models.body == running.gateway.models_body
            listed: Any = models.json()
            assert [model["id"] for model in listed["data"]] == ["fake-model"]
        else:
            assert why in told["why"] != ""
            told = ready.json()
            assert (told["ready"], why in told["why"]) == (False, True)
            told = models.json()
            assert told["error"]["code"] == models.header("x-sluicegate-outcome") == "engine_unavailable"
            assert why in told["error"]["message"]
            assert models.header("retry-after") == "5"
            where = str(running.gateway.engines.default.address)
            for answer in (health, ready, models):
                assert where.encode() not in answer.body, "the address is the log's"
            logged = [line for line in running.log_lines() if line["event"].startswith("engine_")]
            assert status == "starting" or where in logged[-1]["detail"] or "no model" in why
        assert f"api_engine_up {float(up)}" in metrics.body.decode()
        for answer in (health, ready, models, metrics):
            assert len(answer.header("x-request-id") or "") == 32
        assert running.outcomes() == {}, "looking is not a request"


async def test_drain_ends_ready_but_not_health() -> None:
    """On a connection that was in use when the drain began: new ones are not accepted any more."""
    async with gate(max_active=1) as (engine, running), await raw(running) as asker, await raw(running) as watcher:
        hold = trio.Event()
        engine.script.next(Behaviour(hold=hold, hold_at=1))
        await asker.stream.send_all(post(CHAT, question(stream=True)))
        await asker.until_events(1)
        assert (await watcher.ask(get("/ready"))).status == 200
        running.gateway.stop()
        await trio.testing.wait_all_tasks_blocked()
        ready = await watcher.ask(get("/ready"))
        assert (ready.status, ready.json()) == (503, {"ready": False, "why": "shutting down"})
        health = await watcher.ask(get("/health"))
        assert (health.status, health.json()) == (200, {"status": "ok", "models": ["fake-model"]})
        with pytest.raises(OSError, match="failed"):
            await raw(running)
        hold.set()
        assert (await asker.answer()).body.count(b"[DONE]") == 1
        assert await asker.stream.receive_some() == b""
        assert await watcher.stream.receive_some() == b""
        await running.gateway.stopped.wait()


@pytest.mark.parametrize("way", WAYS)
async def test_idle_connection_is_told_of_the_drain(way: str) -> None:
    """During a drain, a request on an idle connection is shed with a 503."""
    async with gate() as (engine, running), await raw(running) as asker, await come(way, running) as late:
        hold = trio.Event()
        assert (await late.ask(CHAT, question())).status == 200
        engine.script.next(Behaviour(hold=hold, hold_at=1))
        await asker.stream.send_all(post(CHAT, question(stream=True)))
        await asker.until_events(1)
        running.gateway.stop()
        await trio.testing.wait_all_tasks_blocked()
        await assert_refused(running, await late.ask(CHAT, question()), Outcome.SHED_DRAINING, 503)
        hold.set()
        assert (await asker.answer()).complete
        await running.gateway.stopped.wait()
        assert running.outcomes() == {"served": 2, "shed_draining": 1}
        running.assert_at_rest()


LENGTH = "content-length: 2\r\n\r\n{}"

#: A request without a route → the status, the method and the path that are logged of it; None: not at all.
WITHOUT_A_ROUTE: dict[str, tuple[bytes, int, str | None, str | None]] = {
    "unknown": (get("/nowhere?key=secret"), 404, "GET", "/nowhere"),
    "unknown POST": (post("/v1/embed", {}), 404, "POST", "/v1/embed"),
    "another method": (get(CHAT + "?key=secret"), 405, "GET", CHAT),
    "another method on our own": (post("/health", {}), 405, "POST", "/health"),
    "DELETE": (get("/v1/models", "DELETE"), 405, "DELETE", "/v1/models"),
    "URL": (get("http://user.example/nowhere?key=secret"), 404, "GET", "/nowhere"),
    "URL with two slashes": (get("http://gate//v1/models"), 404, "GET", "//v1/models"),
    "long": (get("/" + "x" * 5000), 404, "GET", "/" + "x" * 199),
    "control characters": (get("/a%0a%1b[31m%e2%80%ae"), 404, "GET", "/a\\n\\x1b[31m\\u202e"),
    "not UTF-8": (get("/a%ff"), 404, "GET", "/a\N{REPLACEMENT CHARACTER}"),
    "no Host": (f"POST {CHAT}?key=secret HTTP/1.1\r\n{LENGTH}".encode(), 400, "POST", CHAT),
    "two lengths": (f"PUT /x HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n{LENGTH}".encode(), 400, "PUT", "/x"),
    "unknown method": (get("/nowhere", "GRAB"), 400, None, "/nowhere"),
    "user in a URL": (get("http://me:secret@gate/nowhere"), 400, "GET", "/nowhere"),
    "no path": (get("secret"), 400, "GET", None),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01 \x00secret\r\n\r\n", 400, None, None),
    "head too large": (get("/nowhere?" + "secret" * 10_000), 431, "GET", "/nowhere"),
    "hot head too large": (post(CHAT + "?" + "secret" * 10_000, {}), 431, "POST", CHAT),
}


@pytest.mark.parametrize("case", WITHOUT_A_ROUTE.values(), ids=WITHOUT_A_ROUTE.keys())
async def test_what_has_no_route_is_logged(case: tuple[bytes, int, str | None, str | None]) -> None:
    """So that an operator sees which route a client wants: the status that it got, and its method and path."""
    request, status, method, path = case
    async with gate() as (_, running):
        answer = await ask(running, request)
        line = await log_line(running, answer.header("x-request-id"))
        assert (answer.status, line["status"], line.get("method"), line.get("path")) == (status, status, method, path)
        assert (line["outcome"], line["endpoint"]) == ("invalid", "other")
        told: Any = answer.json()
        assert line["detail"] == told["error"]["message"]
        assert "secret" not in str(line)
        assert running.metric("api_requests_total", endpoint="other", status=str(status)) == 1


async def test_connection_made_before_the_end() -> None:
    """What a restart would otherwise cost: one client that connected in time and was cut off before it asked."""
    async with gate() as (_, running), await raw(running) as silent, await come("fast", running) as late:
        await trio.testing.wait_all_tasks_blocked()
        running.gateway.stop()
        await trio.testing.wait_all_tasks_blocked()
        await assert_refused(running, await late.ask(CHAT, question()), Outcome.SHED_DRAINING, 503)
        assert await silent.stream.receive_some() == b"", "a drain does not wait for a client without a request"
        await running.gateway.stopped.wait()
        running.assert_at_rest()


async def test_metrics_in_openmetrics_if_asked() -> None:
    async with gate() as (_, running):
        request = get("/metrics").replace(b"\r\n\r\n", b"\r\naccept: application/openmetrics-text\r\n\r\n")
        assert (await ask(running, request)).body.endswith(b"# EOF\n")


async def test_the_engines_metrics_are_passed_on() -> None:
    async with gate() as (engine, running):
        answer = await ask(running, get("/engine/metrics"))
        assert answer.status == 200
        assert answer.header("content-type") == "text/plain; version=1.0.0; charset=utf-8"
        assert b'vllm:num_requests_running{engine="0",model_name="fake-model"} 0.0' in answer.body
        assert len(answer.header("x-request-id") or "") == 32
        engine.healthy = False
        await running.engine_state(EngineState.DEGRADED)
        assert (await ask(running, get("/engine/metrics"))).status == 200, "now they are wanted most"
        engine.kill()
        await running.engine_state(EngineState.DOWN)
        refused: Any = await ask(running, get("/engine/metrics"))
        assert (refused.status, refused.header("x-sluicegate-outcome")) == (503, "engine_unavailable")
        assert refused.json()["error"]["code"] == "engine_unavailable"
        assert refused.json()["error"]["message"] == "The engine cannot be reached."
        assert refused.header("retry-after") == "5"
        (line,) = running.log_lines("scrape")
        assert f"The engine at {running.gateway.engines.default.address} cannot be reached (" in line["detail"]
        assert (await ask(running, get("/engine/metrics", "POST"))).status == 405
        assert running.outcomes() == {"invalid": 1}, "looking is not a request"


async def test_head_is_get_without_a_body() -> None:
    async with gate() as (_, running), await raw(running) as client:
        await client.stream.send_all(b"HEAD /health HTTP/1.1\r\nhost: gate\r\nconnection: close\r\n\r\n")
        answer = await client.stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\n")
        assert await client.stream.receive_some() == b""


@pytest.mark.parametrize("way", WAYS)
async def test_what_needs_no_gpu_takes_no_slot(way: str) -> None:
    async with gate(max_active=1, queue_max=0) as (engine, running), await raw(running) as holder:
        hold = trio.Event()
        engine.script.next(Behaviour(hold=hold))
        await holder.stream.send_all(post(CHAT, question()))
        await engine.until(lambda: engine.running == 1)
        for path, body in {
            "/tokenize": {"model": "fake-model", "prompt": "Where to?"},
            "/detokenize": {"model": "fake-model", "tokens": [1]},
            "/v1/messages/count_tokens": question("/v1/messages"),
        }.items():
            answer = await visit(way, running, path, body)
            assert answer.status == 200, answer
        assert (await visit(way, running)).status == 429, "the slot is taken all the while"
        hold.set()
        assert (await holder.answer()).status == 200
        await at_rest(running)


@pytest.mark.parametrize("configured", ["", "fake-model", "another"])
async def test_missing_model_is_filled_in(configured: str) -> None:
    """A body without a model gets the configured model, or else the engine's first."""
    async with gate(model_name=configured) as (engine, running):
        for body in ({"messages": [{"role": "user", "content": "Hm?"}]}, question(model=None)):
            answer = await ask(running, post(CHAT, body))
            assert answer.status == (404 if configured == "another" else 200)
            sent: Any = engine.posts()[-1].json()
            assert sent["model"] == (configured or "fake-model")
        await ask(running, post(CHAT, question(model="mine")))
        sent = engine.posts()[-1].json()
        assert sent["model"] == "mine"


async def test_requests_are_counted_by_model() -> None:
    """Each request is counted for its model; unknown models share one label."""
    async with gate() as (_, running):
        await ask(running, post(CHAT, question()))
        await ask(running, post(CHAT, {"messages": [{"role": "user", "content": "Hm?"}]}))
        await ask(running, post("/tokenize", {"prompt": "Hm?"}))
        for strange in ("mine", "x" * 1000, "other"):
            assert (await ask(running, post(CHAT, question(model=strange)))).status == 404
        await ask(running, post(CHAT, b"{"))
        content_type, body = _multipart(10)
        await ask(running, post("/v1/audio/transcriptions", body, f"content-type: {content_type}"))
        await running.settled()
        assert running.metric("api_model_requests_total", model="fake-model") == 4
        assert running.metric("api_model_requests_total", model="other") == 3
        by_model = running.metric("api_model_tokens_total", model="fake-model", kind="completion")
        assert by_model == running.metric("api_tokens_total", kind="completion") > 0


def _multipart(size: int) -> tuple[str, bytes]:
    field = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nfake-model\r\n'
    file = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + os.urandom(size)
    return "multipart/form-data; boundary=b", field + file + b"\r\n--b--\r\n"


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("size", [0, 8_000_000])
async def test_an_audio_file_is_passed_on_byte_for_byte(framing: str, size: int) -> None:
    kind, body = _multipart(size)
    async with gate() as (engine, running), await raw(running) as client:
        head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: gate\r\ncontent-type: {kind}\r\n"
        if framing == "length":
            await client.stream.send_all(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        else:
            await client.stream.send_all(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
            for at in range(0, len(body), 100_000):
                piece = body[at : at + 100_000]
                await client.stream.send_all(b"%x\r\n%b\r\n" % (len(piece), piece))
            await client.stream.send_all(b"0\r\n\r\n")
        answer = await client.answer()
        assert answer.status == 200, answer
        (seen,) = engine.posts()
        assert seen.body == body
        assert seen.header("content-type") == kind
        assert (seen.header("content-length") is None) == (framing == "chunked")
        await at_rest(running)
        assert running.outcomes() == {"served": 1}


@pytest.mark.parametrize("way", WAYS)
async def test_a_body_of_8_mb_reaches_the_engine_unchanged(way: str) -> None:
    text = "where does the water go? " * 320_000
    body = b'{"model":"fake-model", "input" :["%b"],"encoding_format": "float" }' % text.encode()
    async with gate() as (engine, running):
        answer = await visit(way, running, "/v1/embeddings", body)
        assert answer.status == 200
        assert engine.posts()[0].body == body
        await at_rest(running)


async def test_a_large_answer_arrives_whole() -> None:
    async with gate() as (_, running):
        body = {"model": "fake-model", "input": ["x"] * 30_000}
        for way in WAYS:
            answer = await visit(way, running, "/v1/embeddings", body)
            vectors: Any = answer.json()
            assert len(vectors["data"]) == 30_000
        await at_rest(running)


async def test_headers_that_cross_and_those_that_do_not() -> None:
    fields = (
        "authorization: Bearer sesame",
        "user-agent: t/1",
        "cookie: c",
        "x-forwarded-for: 6.6.6.6",
        "te: trailers",
    )
    async with gate() as (engine, running):
        answer = await ask(running, post(CHAT, question(), *fields))
        sent = dict(engine.posts()[0].headers)
        assert sent["authorization"] == "Bearer sesame"
        assert sent["user-agent"] == "t/1"
        assert sent.keys() == {
            "host", "authorization", "user-agent", "content-type", "content-length", "x-request-id",
        }  # fmt: skip
        assert answer.header("vary") == "Origin"
        assert answer.header("server") is None


def _spellings(path: str) -> list[str]:
    """Ways to write `path` that a lenient server might accept."""
    first, rest = path[1], path[2:]
    escaped = f"/%{ord(first):02x}{rest}"
    return [
        path, path + "/", "/" + path, path + "?x=1", path + "?", path + ";x", path + "#x", path + "%00", path + "%20",
        "/." + path, "/x/.." + path, "/v1/.." + path, escaped, escaped.upper() if first.islower() else escaped,
        path.replace("/", "%2f"), "/" + path.replace("/", "%2f")[3:], path.replace("/", "\\"), path.upper(),
        "http://gate" + path, "http://127.0.0.1:8000" + path, "//127.0.0.1:8000" + path,
        CHAT + "/../../.." + path, CHAT + path, "/health" + path, CHAT + "?" + path, CHAT + "%3f" + path,
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_no_other_route_of_the_engine_can_be_reached(method: str) -> None:
    """However it is written: the engine sees probes and the paths of the route table, and nothing else."""
    async with gate() as (engine, running):
        client = await raw(running)
        for leak in sorted(LEAKS):
            for spelling in _spellings(leak) if method in ("GET", "POST") else [leak]:
                try:
                    answer = await client.ask(
                        f"{method} {spelling} HTTP/1.1\r\nhost: gate\r\ncontent-length: 2\r\n\r\n{{}}".encode()
                    )
                except (EOFError, ConnectionResetError, trio.BrokenResourceError) as error:
                    pytest.fail(f"{spelling}: {error!r}")
                assert b"leaked" not in answer.body, spelling
                assert answer.status in (400, 403, 404, 405), (spelling, answer)
                if (answer.header("connection") or "").lower() == "close" or not answer.complete:
                    await client.stream.aclose()
                    client = await raw(running)
        await client.stream.aclose()
        assert {seen.path for seen in engine.seen} <= {"/health", "/v1/models", *ENDPOINTS}, "no lookup was meant"
        await at_rest(running)
        routes = {line["endpoint"] for line in running.log_lines("request")}
        assert routes <= {"other", *PATHS}, "labels are bounded, whatever clients send"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        *((path, "POST") for path in (*ENDPOINTS, "/v1/responses/resp_1/cancel")),
        *(
            (path, "GET")
            for path in ("/health", "/ready", "/metrics", "/engine/metrics", "/v1/models", "/v1/models/a/b", "/version")
        ),
        ("/v1/responses/resp_1", "GET"),
        ("/ping", "GET, POST"),
    ],
)
async def test_a_known_path_with_another_method_is_a_405(path: str, allowed: str) -> None:
    async with gate() as (engine, running):
        others = {"GET", "POST", "PUT", "DELETE", "PATCH"} - set(allowed.split(", "))
        for method in others:
            answer = await ask(running, f"{method} {path} HTTP/1.1\r\nhost: gate\r\ncontent-length: 0\r\n\r\n".encode())
            assert (answer.status, answer.header("allow")) == (405, allowed), method
            told: Any = answer.json()
            assert ("type" in told) == path.startswith("/v1/messages"), "Anthropic's clients get Anthropic's error"
        options = await ask(running, get(path, "OPTIONS"))
        assert (options.status, options.header("allow"), options.body) == (204, f"{allowed}, OPTIONS", b"")
        assert options.header("content-type") is None
        assert engine.posts() == []
        assert running.outcomes() == {"invalid": len(others)}


#: A request to each route that takes a slot and does not generate, and a part of its answer.
COMPUTING: dict[str, tuple[Any, bytes]] = {
    "/v1/chat/completions/batch": ({"messages": [[{"role": "user", "content": "Hm?"}]] * 2}, b'"index":1'),
    "/v1/embeddings": ({"input": ["x", "y"]}, b'"embedding"'),
    "/v2/embed": ({"texts": ["x y"], "input_type": "query"}, b'"embeddings_by_type"'),
    **dict.fromkeys(
        ("/rerank", "/v1/rerank", "/v2/rerank"), ({"query": "x", "documents": ["x"]}, b'"relevance_score"')
    ),
    **dict.fromkeys(("/score", "/v1/score"), ({"text_1": "x", "text_2": "x"}, b'"score"')),
    "/classify": ({"input": "x"}, b'"probs"'),
    "/pooling": ({"input": "x"}, b'"object":"pooling"'),
    "/generative_scoring": ({"query": "x", "items": ["y"], "label_token_ids": [1]}, b'"score"'),
    "/v1/systemone": ({"state": "x", "questions": ["y"]}, b'"decisions"'),
    "/v1/decisions": ({"input": "x"}, b'"decisions"'),
}
UPLOADS = ["/v1/audio/transcriptions", "/v1/audio/translations"]
#: Without usage in their answers.
UNCOUNTED = {"/v1/systemone", "/v1/decisions"}
GENERATING = {path: question(path) for path in ("/v1/completions", "/v1/responses", "/v1/messages", CHAT)} | {
    "/invocations": question(CHAT),
    "/cohere/v2/chat": question(CHAT),
}


def test_each_route_that_takes_a_slot_is_tried() -> None:
    """By the tests below, on every way in."""
    with_slot = {path for path, endpoint in ENDPOINTS.items() if endpoint.needs_slot}
    assert {*COMPUTING, *UPLOADS, *GENERATING} == with_slot


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", COMPUTING)
async def test_a_route_that_computes(path: str, way: str) -> None:
    """Its body and its answer pass unchanged, its tokens count, and it holds a slot while it runs."""
    body, part = COMPUTING[path]
    async with gate(max_active=1, queue_max=0) as (engine, running), await come(way, running) as visitor:
        hold = trio.Event()
        engine.script.next(Behaviour(hold=hold))
        await visitor.send(path, {"model": "fake-model"} | body)
        await engine.until(lambda: engine.running == 1)
        assert (await visit(way, running)).status == 429
        hold.set()
        answer = await visitor.answer()
        assert (answer.status, answer.complete) == (200, True), answer
        assert part in answer.body
        seen = engine.posts()[0]
        assert (seen.target, seen.json()) == (path, {"model": "fake-model"} | body)
        await at_rest(running)
        assert (running.metric("api_tokens_total", kind="prompt") > 0) is (path not in UNCOUNTED)
        assert running.metric("api_requests_total", endpoint=path, status="200") == 1


@pytest.mark.parametrize("path", UPLOADS)
async def test_an_upload(path: str) -> None:
    kind, body = _multipart(1000)
    async with gate() as (engine, running):
        answer = await ask(running, post(path, body, f"content-type: {kind}"))
        assert (answer.status, engine.posts()[0].target) == (200, path)
        await at_rest(running)
        assert running.metric("api_requests_total", endpoint=path, status="200") == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/invocations", "/cohere/v2/chat"])
async def test_a_generating_route_without_a_dialect_of_openai(path: str, stream: bool, way: str) -> None:
    """Tokens are counted exactly; a stream ends as the engine ends it, with nothing that was not asked for."""
    async with gate() as (engine, running):
        answer = await visit(way, running, path, GENERATING[path] | {"stream": stream})
        assert (answer.status, answer.complete) == (200, True), answer
        await at_rest(running)
        assert running.metric("api_tokens_total", kind="prompt") == engine.prompt_tokens > 0
        assert running.metric("api_tokens_total", kind="completion") == engine.generation_tokens > 0
        if stream:
            assert answer.data()[-1] == b"[DONE]"
            assert answer.body.count(b"[DONE]") == 1
            if path == "/invocations":
                assert b'"usage"' not in answer.body
            else:
                assert b'"message-end"' in answer.data()[-2]


@pytest.mark.parametrize("fault", [Fault(Kind.CLOSE, 4), Fault(Kind.ERROR_EVENT, 4)], ids=lambda fault: str(fault.kind))
async def test_a_broken_stream_of_coheres(fault: Fault) -> None:
    """It ends with Cohere's own event for an error, ours or the engine's, and without [DONE]."""
    async with gate() as (engine, running):
        engine.script.next(Behaviour(fault=fault, token_interval_s=0.001))
        answer = await visit("fast", running, "/cohere/v2/chat", question(CHAT) | {"stream": True})
        *healthy, last = answer.data()
        assert not any(b"message-end" in data for data in healthy)
        assert b'"type":"message-end"' in last
        assert b'"finish_reason":"ERROR"' in last
        await at_rest(running)
        assert running.outcomes() == {"engine_truncated" if fault.kind is Kind.CLOSE else "engine_error": 1}


@pytest.mark.parametrize("way", WAYS)
async def test_a_refusal_in_coheres_shape(way: str) -> None:
    """Cohere's clients read `message`."""
    async with gate(model="") as (_, running):
        for path in ("/cohere/v2/chat", "/v2/embed"):
            refused: Any = (await visit(way, running, path, {"model": "m"})).json()
            assert refused["message"] == refused["error"]["message"] != ""


@pytest.mark.parametrize("way", WAYS)
async def test_lookups_take_no_slot(way: str) -> None:
    """Version and stored responses are told by the engine; their tokens do not count once more."""
    async with gate(max_active=1, queue_max=0) as (engine, running), await raw(running) as holder:
        made: Any = (await visit(way, running, "/v1/responses")).json()
        await running.settled()
        counted = running.metric("api_tokens_total", kind="completion")
        hold = trio.Event()
        engine.script.next(Behaviour(hold=hold))
        await holder.stream.send_all(post(CHAT, question()))
        await engine.until(lambda: engine.running == 1)
        path = f"/v1/responses/{made['id']}"
        looks = [
            ("GET", path, 200, path),
            ("GET", path + "?stream=true&starting_after=1", 200, path + "?stream=true&starting_after=1"),
            ("GET", "/v1/responses/resp_none", 404, "/v1/responses/resp_none"),
            ("POST", path + "/cancel", 400, path + "/cancel"),
            ("GET", "/version", 200, "/version"),
        ]
        answers = []
        for method, target, status, _ in looks:
            async with await come(way, running) as visitor:
                answers.append(await visitor.look(target, method))
            assert (answers[-1].status, answers[-1].complete) == (status, True), (target, answers[-1])
            assert len(answers[-1].header("x-request-id") or "") == 32
        whole, stream, missing, cancelled, version = answers
        assert whole.json() == made
        assert b"response.completed" in stream.events()[-1] or b": sluicegate" in stream.events()[-1]
        told: Any = missing.json()
        assert told["error"]["message"] == "Response with id 'resp_none' not found."
        told = cancelled.json()
        assert told["error"]["message"] == "Cannot cancel a synchronous response."
        assert version.json() == {"version": "0.32.0"}
        reached = [(seen.method, seen.target) for seen in engine.seen if seen.path not in ("/health", "/v1/models")]
        assert reached[2:] == [(method, target) for method, _, _, target in looks]
        assert all(seen.body == b"" for seen in engine.seen if (seen.method, seen.target) in reached[2:])
        hold.set()
        assert (await holder.answer()).status == 200
        await at_rest(running)
        assert running.metric("api_tokens_total", kind="completion") == engine.generation_tokens > counted
        assert running.metric("api_requests_total", endpoint="/v1/responses/{response_id}", status="200") == 2
        assert running.metric("api_requests_total", endpoint="/v1/responses/{response_id}/cancel", status="400") == 1


async def test_a_lookup_is_bounded_like_any_request() -> None:
    """By the deadlines, and by the size of the body that nobody reads."""
    async with gate(request_s=1, body_max_bytes=100) as (engine, running):
        engine.script.probes = Behaviour(fault=Fault(Kind.STALL, BEFORE_HEAD))
        assert (await ask(running, get("/version"))).status in (503, 504)
        engine.script.probes = Behaviour()
        assert (await ask(running, post("/v1/responses/resp_1/cancel", b"x" * 101))).status == 413
        await at_rest(running)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["fake-model", "org/name", "/srv/models/a b", "a%2Fb", "größe", "m?x#y"])
async def test_one_model(way: str, name: str) -> None:
    """By its id, with slashes as they are or escaped. vLLM has no such route: the engine is not asked."""
    async with gate(model=name) as (engine, running):
        listed: Any = (await ask(running, get("/v1/models"))).json()
        for spelling in (quote(name), quote(name, safe="")):
            async with await come(way, running) as visitor:
                answer = await visitor.look(f"/v1/models/{spelling}")
            assert (answer.status, answer.header("content-type")) == (200, "application/json"), spelling
            assert [answer.json()] == listed["data"]
        async with await come(way, running) as visitor:
            missing = await visitor.look("/v1/models/another")
        told: Any = missing.json()
        assert (missing.status, told["error"]["code"]) == (404, "not_found")
        assert {seen.path for seen in engine.seen} <= {"/health", "/v1/models"}
        assert running.outcomes() == {}, "looking is not a request"


async def test_models_tell_no_path_of_the_host() -> None:
    async with gate() as (engine, running):
        engine.root = "/srv/models/secret"
        while b"secret" not in running.gateway.models_body:
            await trio.testing.wait_all_tasks_blocked()
        for path in ("/v1/models", "/v1/models/fake-model", "/health"):
            answer = await ask(running, get(path))
            assert answer.status == 200
            assert b"secret" not in answer.body


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
async def test_sagemakers_ping_is_health(method: str) -> None:
    async with gate() as (engine, running):
        request = f"{method} /ping HTTP/1.1\r\nhost: gate\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
        async with await raw(running) as client:
            await client.stream.send_all(request)
            assert (await client.stream.receive_some()).startswith(b"HTTP/1.1 200 ")
        engine.healthy = False
        await running.engine_state(EngineState.DEGRADED)
        async with await raw(running) as client:
            await client.stream.send_all(request)
            assert (await client.stream.receive_some()).startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("POST", "/v1/v1/chat/completions", CHAT),
        ("POST", "/v1/chat/completions/", CHAT),
        ("POST", "/chat/completions", CHAT),
        ("POST", "//v1/chat/completions", CHAT),
        ("POST", "/v1/messages/", "/v1/messages"),
        ("GET", "/v1/models/", "/v1/models"),
        ("GET", "/v1/v1/models", "/v1/models"),
        ("GET", "/v1//models", "/v1/models"),
        ("GET", "//v1/models", "/v1/models"),
        ("GET", "//health", "/health"),
        ("GET", "/.//v1/models/fake-model", "/v1/models/fake-model"),
        ("GET", "//v1/responses/resp_1", "/v1/responses/resp_1"),
        ("GET", "/%2Fv1/models", "/v1/models"),
        ("GET", "/health/", "/health"),
    ],
)
async def test_a_path_that_is_almost_right(way: str, method: str, path: str, route: str) -> None:
    """A 404 that names the route that was meant; no redirect, and nothing reaches the engine."""
    async with gate() as (engine, running), await come(way, running) as visitor:
        answer = await visitor.look(path, method)
        told: Any = answer.json()
        assert (answer.status, answer.header("location")) == (404, None)
        assert f"Did you mean {route}?" in told["error"]["message"]
        assert engine.posts() == []
        assert running.outcomes() == {"invalid": 1}


async def _over_unix(running: Running) -> RawAnswer:
    async with await raw(running) as client:
        assert (await client.ask(get("/ready"))).status == 200
        return await client.ask(post(CHAT, question(stream=True)))


async def test_unix_sockets_on_both_sides(tmp_path: Path) -> None:
    listen = str(tmp_path / "gate.sock")
    async with open_engine() as engine:
        await engine.listen_unix(str(tmp_path / "engine.sock"))
        config = configuration(f"unix:{tmp_path}/engine.sock", listen=(UnixAddress(listen),))
        async with open_gateway(config) as running:
            answer = await _over_unix(running)
            assert (answer.status, answer.body.count(b"[DONE]")) == (200, 1)
            for way in WAYS.keys() - SECURE:
                assert (await visit(way, running)).status == 200
            await at_rest(running)
        # It leaves its socket behind, as one that was killed would, and the next one takes its place.
        assert await trio.Path(listen).exists()
        async with open_gateway(config) as running:
            assert (await _over_unix(running)).status == 200


def test_unix_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    """A Unix socket on which another program listens is not replaced."""
    path = str(tmp_path / "gate.sock")
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(path)
        living.listen()
        with pytest.raises(OSError, match="another program listens"):
            bind(UnixAddress(path))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


def test_busy_unix_socket_is_left_alone(tmp_path: Path) -> None:
    """A Unix socket whose listener is too busy to answer is not replaced."""
    path = str(tmp_path / "gate.sock")
    with socket.socket(socket.AF_UNIX) as living, socket.socket(socket.AF_UNIX) as waiting:
        living.bind(path)
        living.listen(0)
        waiting.connect(path)  # fills its backlog
        with pytest.raises(OSError, match="in use"):
            bind(UnixAddress(path))
        assert os.path.exists(path)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "gate.sock"
    path.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        bind(UnixAddress(str(path)))
    assert path.read_text() == "precious"
