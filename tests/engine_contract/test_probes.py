"""What the gateway asks an engine about itself, and the routes that take no slot."""

from tests.engine_contract.raw import get, post
from tests.engine_contract.target import Target


async def test_health_is_an_empty_200(engine: Target) -> None:
    answer = await engine.ask(get("/health"))
    assert answer.status == 200
    assert answer.complete
    assert answer.body == b""


async def test_the_model_is_listed(engine: Target) -> None:
    async with engine.client() as client:
        listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    (card,) = listed["data"]
    assert card["id"] == engine.model
    assert card["object"] == "model"
    assert card["max_model_len"] > 0


async def test_an_idle_engine_runs_nothing(engine: Target) -> None:
    async with engine.client() as client:
        numbers = await engine.numbers(client)
    assert (numbers.running, numbers.waiting) == (0, 0)


async def test_tokens_there_and_back(engine: Target) -> None:
    text = "hello world, the river is wide"
    async with engine.client() as client:
        tokens = (await client.post("/tokenize", json={"model": engine.model, "prompt": text})).json()
        assert tokens["count"] == len(tokens["tokens"]) > 1
        back = await client.post("/detokenize", json={"model": engine.model, "tokens": tokens["tokens"]})
    assert back.json() == {"prompt": text}


async def test_messages_are_counted_as_they_are_billed(engine: Target) -> None:
    body = engine.question("messages")
    async with engine.client() as client:
        answer = (await client.post("/v1/messages", json=body)).json()
        del body["max_tokens"], body["temperature"]
        counted = (await client.post("/v1/messages/count_tokens", json=body)).json()
        tokens = (await client.post("/tokenize", json={"model": engine.model, "messages": body["messages"]})).json()
    assert counted["input_tokens"] == answer["usage"]["input_tokens"] == tokens["count"]


async def test_free_routes_refuse_an_unknown_model(engine: Target) -> None:
    for path, body in (("/tokenize", {"prompt": "hi"}), ("/detokenize", {"tokens": [1]})):
        answer = await engine.ask(post(path, {"model": "no-such-model", **body}))
        assert answer.status == 404
