"""How an engine refuses: the gateway passes these on unchanged, so it must know their shapes."""

from typing import Any

import pytest

from tests.engine_contract.raw import get, post
from tests.engine_contract.target import DIALECTS, Target


def error_of(body: object) -> dict[str, Any]:
    """The error object, which has vLLM's four fields."""
    assert isinstance(body, dict)
    error = body["error"]
    assert isinstance(error, dict)
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dialect", ["chat", "completions", "responses"])
async def test_unknown_model(engine: Target, dialect: str, stream: bool) -> None:
    question = engine.question(dialect, stream=stream) | {"model": "no-such-model"}
    answer = await engine.ask(post(DIALECTS[dialect], question))
    assert answer.status == 404
    assert answer.header("content-type") == "application/json"
    error = error_of(answer.json())
    assert (error["type"], error["param"], error["code"]) == ("NotFoundError", "model", 404)


@pytest.mark.parametrize("stream", [False, True])
async def test_unknown_model_on_messages_is_an_anthropic_error(engine: Target, stream: bool) -> None:
    question = engine.question("messages", stream=stream) | {"model": "no-such-model"}
    answer = await engine.ask(post(DIALECTS["messages"], question))
    body = answer.json()
    assert answer.status == 404
    assert isinstance(body, dict)
    assert body["type"] == "error"
    assert set(body["error"]) == {"type", "message"}


@pytest.mark.parametrize(
    ("dialect", "field", "param"),
    [
        ("chat", "messages", "body.messages"),
        ("completions", "prompt", "prompt"),
        ("responses", "input", "body.input"),
        ("messages", "messages", "body.messages"),
        ("messages", "max_tokens", "body.max_tokens"),
        ("messages", "model", "body.model"),
    ],
)
async def test_a_field_is_missing(engine: Target, dialect: str, field: str, param: str) -> None:
    question = engine.question(dialect)
    del question[field]
    answer = await engine.ask(post(DIALECTS[dialect], question))
    assert answer.status == 400
    assert error_of(answer.json())["param"] == param


@pytest.mark.parametrize("dialect", ["chat", "completions", "responses"])
async def test_without_a_model_the_loaded_one_answers(engine: Target, dialect: str) -> None:
    question = engine.question(dialect, limit=2)
    del question["model"]
    answer = await engine.ask(post(DIALECTS[dialect], question))
    body = answer.json()
    assert isinstance(body, dict)
    assert (answer.status, body["model"]) == (200, engine.model)


@pytest.mark.parametrize("dialect", ["chat", "completions"])
async def test_stream_options_need_a_stream(engine: Target, dialect: str) -> None:
    answer = await engine.ask(post(DIALECTS[dialect], engine.question(dialect, stream_options={"include_usage": True})))
    assert answer.status == 400
    error = error_of(answer.json())
    assert (error["type"], error["param"]) == ("BadRequestError", "stream_options")


@pytest.mark.parametrize("dialect", ["responses", "messages"])
@pytest.mark.parametrize("stream", [False, True])
async def test_stream_options_do_not_matter_elsewhere(engine: Target, dialect: str, stream: bool) -> None:
    question = engine.question(dialect, limit=2, stream=stream, stream_options={"include_usage": True})
    answer = await engine.ask(post(DIALECTS[dialect], question))
    assert answer.status == 200
    assert answer.complete


@pytest.mark.parametrize("body", [b"{not json", b"[1]", b""])
async def test_a_body_that_is_no_json_object(engine: Target, body: bytes) -> None:
    answer = await engine.ask(post(DIALECTS["chat"], body))
    assert answer.status == 400
    assert error_of(answer.json())["type"] == "Bad Request"


async def test_a_body_of_another_type(engine: Target) -> None:
    answer = await engine.ask(post(DIALECTS["chat"], engine.question("chat"), "content-type: text/plain"))
    assert answer.status == 400
    assert "application/json" in error_of(answer.json())["message"]


@pytest.mark.parametrize(("limit", "param"), [(0, "max_tokens"), (1_000_000, "max_tokens")])
async def test_an_impossible_limit(engine: Target, limit: int, param: str) -> None:
    answer = await engine.ask(post(DIALECTS["chat"], engine.question("chat", limit=limit)))
    assert answer.status == 400
    assert error_of(answer.json())["param"] == param


async def test_a_prompt_that_is_too_long(engine: Target) -> None:
    question = engine.question("completions") | {"prompt": "water " * 5000}
    answer = await engine.ask(post(DIALECTS["completions"], question))
    assert answer.status == 400
    assert error_of(answer.json())["param"] == "input_tokens"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (get("/nowhere"), 404),
        (get("/health", "DELETE"), 405),
        (get(DIALECTS["chat"]), 405),
        (post("/v1/models", {}), 405),
    ],
)
async def test_wrong_routes_have_no_openai_shape(engine: Target, request_bytes: bytes, status: int) -> None:
    answer = await engine.ask(request_bytes)
    body = answer.json()
    assert answer.status == status
    assert isinstance(body, dict)
    assert set(body) == {"detail"}


async def test_garbage_gets_400_and_a_closed_connection(engine: Target) -> None:
    """Bytes that are no HTTP get a 400, and the server closes the connection."""
    answer = await engine.ask(b"\x16\x03\x01 hello\r\n\r\n")
    assert answer.status == 400
    assert answer.header("connection") == "close"
