"""docs/routes.md beside the real vLLM: what a new version adds must be decided before it is rolled out."""

from typing import Any

import pytest

from sluicegate_run.prepare import EnginePaths
from tests.engine_contract.raw import get, post
from tests.engine_contract.target import Target
from tests.harness import configuration, open_gateway
from tests.routes import Route, declared, documented, documented_headers, headers_read

pytestmark = pytest.mark.engine


def _known() -> set[Route]:
    return {route for routes in documented().values() for route in routes}


async def test_each_route_of_the_engine_is_documented(engine: Target) -> None:
    async with engine.client() as client:
        described: dict[str, Any] = (await client.get("/openapi.json")).json()["paths"]
    served = {(method.upper(), path) for path, methods in described.items() for method in methods}
    assert ("POST", "/v1/chat/completions") in served
    assert served <= _known(), sorted(served - _known())


def test_each_route_in_vllms_source_is_documented(engine_paths: EnginePaths) -> None:
    """For every kind of model and every flag, which no engine that runs shows all at once."""
    (folder,) = engine_paths.python.parent.parent.glob("lib/python3*/site-packages/vllm/entrypoints")
    found = declared(folder)
    assert {("POST", "/v1/embeddings"), ("WEBSOCKET", "/v1/realtime"), ("POST", "/ping")} <= found
    assert len(found) > 60
    assert found <= _known(), sorted(found - _known())


def test_each_header_that_vllm_reads_is_documented(engine_paths: EnginePaths) -> None:
    (folder,) = engine_paths.python.parent.parent.glob("lib/python3*/site-packages/vllm/entrypoints")
    read = headers_read(folder)
    assert {"x-data-parallel-rank", "x-vllm-priority", "endpoint-load-metrics-format"} <= read
    assert read <= set(documented_headers()), sorted(read - set(documented_headers()))


async def test_lookups_are_answered_as_by_the_engine(engine: Target) -> None:
    requests = [
        get("/version"),
        get("/v1/responses/resp_none"),
        get("/v1/responses/resp_none?stream=true&starting_after=3"),
        get("/v1/responses/resp_none?stream=perhaps"),
        post("/v1/responses/resp_none/cancel", b""),
    ]
    async with open_gateway(configuration(engine.base_url)) as running:
        through = Target(running.base_url, engine.model)
        for request in requests:
            direct, answer = await engine.ask(request), await through.ask(request)
            assert (answer.status, answer.body) == (direct.status, direct.body), request
        await running.settled()
        assert running.outcomes() == {"served": 1, "invalid": 4}
        running.assert_at_rest()


async def test_models_tell_no_path_of_the_host(engine: Target) -> None:
    async with open_gateway(configuration(engine.base_url)) as running, engine.client() as client:
        through = Target(running.base_url, engine.model)
        (card,) = (await client.get("/v1/models")).json()["data"]
        assert card["root"].startswith("/"), "the embedded engine loads its model from a folder"
        listed: Any = (await through.ask(get("/v1/models"))).json()
        one: Any = (await through.ask(get(f"/v1/models/{engine.model}"))).json()
    for told in (*listed["data"], one):
        stable = {name: value for name, value in told.items() if name not in ("created", "permission")}
        assert stable == {"id": engine.model, "object": "model", "owned_by": "vllm", "root": engine.model} | {
            name: card[name] for name in ("parent", "max_model_len")
        }


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions/batch", {"messages": [[{"role": "user", "content": "Hi"}]] * 2, "max_tokens": 4}),
        ("/invocations", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}),
        ("/invocations", {"prompt": "Once upon a time", "max_tokens": 4}),
        ("/generative_scoring", {"query": "Is it warm?", "items": ["yes", "no"], "label_token_ids": [1, 2]}),
    ],
)
async def test_a_generating_route(engine: Target, path: str, body: dict[str, Any]) -> None:
    request = post(path, {"model": engine.model, "temperature": 0} | body)
    async with open_gateway(configuration(engine.base_url)) as running:
        direct, answer = await engine.ask(request), await Target(running.base_url, engine.model).ask(request)
        await running.settled()
        told: Any = answer.json()
        expected: Any = direct.json()
        assert (answer.status, told["usage"]) == (200, expected["usage"])
        assert running.metric("api_tokens_total", kind="completion") == told["usage"]["completion_tokens"] > 0
        assert running.metric("api_tokens_total", kind="prompt") == told["usage"]["prompt_tokens"] > 0
        assert running.outcomes() == {"served": 1}
        running.assert_at_rest()


async def test_a_stream_of_invocations(engine: Target) -> None:
    question = engine.question("chat", limit=4, stream=True)
    async with open_gateway(configuration(engine.base_url)) as running:
        answer = await Target(running.base_url, engine.model).ask(post("/invocations", question))
        await running.settled()
        assert answer.data()[-1] == b"[DONE]"
        assert b'"usage"' not in answer.body, "nobody asked for it"
        assert running.metric("api_tokens_total", kind="completion") == 4
        assert running.outcomes() == {"served": 1}
