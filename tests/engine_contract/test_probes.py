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


async def test_the_version_is_told(engine: Target) -> None:
    answer = await engine.ask(get("/version"))
    body = answer.json()
    assert isinstance(body, dict)
    assert (answer.status, list(body)) == (200, ["version"])


async def test_a_response_that_is_not_stored(engine: Target) -> None:
    """As a stream, too: a status, and not an event."""
    texts = []
    for request in (
        get("/v1/responses/resp_none"),
        get("/v1/responses/resp_none?stream=true"),
        post("/v1/responses/resp_none/cancel", b""),
    ):
        answer = await engine.ask(request)
        assert (answer.status, answer.header("content-type")) == (404, "application/json")
        texts.append(answer.body)
    error = b'{"message":"Response with id \'resp_none\' not found.","type":"invalid_request_error",'
    assert set(texts) == {b'{"error":' + error + b'"param":"response_id","code":404}}'}


async def test_a_batch_has_a_choice_for_each_conversation(engine: Target) -> None:
    conversation = [{"role": "user", "content": "Hi"}]
    body = {"model": engine.model, "messages": [conversation, conversation], "max_tokens": 2}
    async with engine.client() as client:
        answer = (await client.post("/v1/chat/completions/batch", json=body)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_one_path_for_all_is_a_chat_for_a_chat(engine: Target) -> None:
    async with engine.client() as client:
        answer = (await client.post("/invocations", json=engine.question("chat", limit=2))).json()
    assert (answer["object"], answer["usage"]["completion_tokens"]) == ("chat.completion", 2)
