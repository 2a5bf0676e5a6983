"""What the gateway brings is what the engine gave, to the token, and what it counts is what the engine counted."""

from typing import Any

import msgspec
import pytest
import trio

from tests.engine.sdks import ASKS
from tests.engine.waits import until
from tests.engine_contract.raw import RawAnswer, post
from tests.engine_contract.target import DIALECTS, PATIENCE_S, Target
from tests.harness import Running, configuration, open_gateway

pytestmark = pytest.mark.engine

FORM = (
    b'--edge\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
    b'--edge\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--edge--\r\n'
)


def counted_tokens(running: Running) -> tuple[float, float]:
    """Prompt and completion tokens in the gateway's own metrics."""
    return running.metric("api_tokens_total", kind="prompt"), running.metric("api_tokens_total", kind="completion")


async def ask_both(engine: Target, running: Running, request: bytes) -> tuple[RawAnswer, RawAnswer]:
    """The engine's answer, and the one through the gateway."""
    return await engine.ask(request), await Target(running.base_url, engine.model).ask(request)


@pytest.mark.parametrize("name", ASKS)
async def test_through_an_sdk(engine: Target, name: str) -> None:
    ask = ASKS[name]
    async with open_gateway(configuration(engine.base_url)) as running, engine.client() as client:
        with trio.fail_after(PATIENCE_S):
            start = await engine.numbers(client)
            direct = await trio.to_thread.run_sync(ask, engine.base_url, engine.model)
            before = await until(engine, lambda numbers: numbers.finished == start.finished + 1)
            through = await trio.to_thread.run_sync(ask, running.base_url, engine.model)
            after = await until(engine, lambda numbers: numbers.finished == before.finished + 1)
            await running.settled()
            again = await trio.to_thread.run_sync(ask, engine.base_url, engine.model)
        # The same question can have two answers even at temperature 0: sums in bfloat16 depend on what shares a batch.
        assert through in (direct, again)
        assert through.text
        assert through.finish
        assert (through.usage is None) == name.endswith("unasked")
        assert through.usage in (None, after.since(before))
        assert counted_tokens(running) == after.since(before)
        assert through != direct or after.since(before) == before.since(start)
        assert running.outcomes() == {"served": 1}
        running.assert_at_rest()


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("dialect", ["chat", "completions"])
async def test_the_end_of_a_stream(engine: Target, dialect: str, asked: bool) -> None:
    options = {"stream": True} | ({"stream_options": {"include_usage": True}} if asked else {})
    request = post(DIALECTS[dialect], engine.question(dialect) | options)
    async with open_gateway(configuration(engine.base_url)) as running, engine.client() as client:
        with trio.fail_after(PATIENCE_S):
            before = await engine.numbers(client)
            answer = await Target(running.base_url, engine.model).ask(request)
            after = await until(engine, lambda numbers: numbers.finished == before.finished + 1)
            await running.settled()
        prompt, completion = after.since(before)
        assert counted_tokens(running) == (prompt, completion)
    assert answer.complete
    *chunks, done = answer.data()
    assert done == b"[DONE]"
    usages = [chunk["usage"] for chunk in map(decoded, chunks) if chunk.get("usage")]
    if asked:
        (usage,) = usages
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (prompt, completion)
        assert decoded(chunks[-1])["sluicegate"]["tokens_per_second"] > 0
        assert answer.events()[-1] == b"data: [DONE]"
    else:
        assert usages == []
        assert chunks
        assert all(decoded(chunk)["choices"] for chunk in chunks)
        report = decoded(answer.events()[-1].removeprefix(b": sluicegate "))
        assert (report["prompt_tokens"], report["completion_tokens"]) == (prompt, completion)
        assert report["tokens_per_second"] > 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": "hi"}),
        ("/v1/rerank", {"query": "hi", "documents": ["a", "b"]}),
        ("/v1/score", {"text_1": "hi", "text_2": "ho"}),
        ("/v1/audio/transcriptions", FORM),
        ("/v1/chat/completions", {"messages": []}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 0, "stream": True}),
        ("/v1/completions", {"prompt": "hi", "temperature": -1}),
        ("/v1/responses", {"model": "no-such-model", "input": "hi"}),
        ("/v1/messages", {"model": "no-such-model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/tokenize", {"model": "no-such-model", "prompt": "hi"}),
    ],
)
async def test_the_engines_own_refusals_pass_unchanged(engine: Target, path: str, body: dict[str, Any] | bytes) -> None:
    if isinstance(body, bytes):
        request = post(path, body, "content-type: multipart/form-data; boundary=edge")
    else:
        request = post(path, {"model": engine.model} | body)
    async with open_gateway(configuration(engine.base_url)) as running:
        direct, through = await ask_both(engine, running, request)
        await running.settled()
        assert running.outcomes() == {"invalid": 1}
        assert running.metric("api_requests_total", endpoint=path, status=str(direct.status)) == 1
        running.assert_at_rest()
    assert 400 <= direct.status < 500
    assert (through.status, through.body) == (direct.status, direct.body)
    assert through.header("content-type") == direct.header("content-type")
    assert through.header("x-sluicegate-outcome") is None


async def test_what_takes_no_slot(engine: Target) -> None:
    words = [{"role": "user", "content": "How many words are these?"}]
    requests = [
        post("/tokenize", {"model": engine.model, "prompt": "the river is wide"}),
        post("/detokenize", {"model": engine.model, "tokens": [504, 12032, 314, 3855]}),
        post("/v1/messages/count_tokens", {"model": engine.model, "messages": words}),
    ]
    async with open_gateway(configuration(engine.base_url)) as running:
        for request in requests:
            direct, through = await ask_both(engine, running, request)
            assert (through.status, through.body) == (direct.status, direct.body)
            assert direct.status == 200
        await running.settled()
        assert running.outcomes() == {"served": len(requests)}


async def test_a_body_without_a_model_gets_the_engines(engine: Target) -> None:
    question = engine.question("chat")
    whole = post(DIALECTS["chat"], question)
    del question["model"]
    async with open_gateway(configuration(engine.base_url)) as running:
        through = Target(running.base_url, engine.model)
        named, unnamed = [decoded((await through.ask(r)).body) for r in (whole, post(DIALECTS["chat"], question))]
    assert unnamed["choices"] == named["choices"]
    assert unnamed["model"] == engine.model


def decoded(data: bytes) -> dict[str, Any]:
    return msgspec.json.decode(data, type=dict[str, Any])
