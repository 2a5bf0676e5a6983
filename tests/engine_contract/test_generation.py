"""What an engine generates in each dialect, streamed and not, and how it counts."""

from typing import Any

import httpx2
import msgspec
import pytest
import trio

from tests.engine_contract.raw import RawAnswer, post
from tests.engine_contract.target import DIALECTS, PATIENCE_S, Numbers, Target

#: Dialects whose stream is made of nameless events and ends with [DONE].
PLAIN = ["chat", "completions"]


def events(answer: RawAnswer) -> list[dict[str, Any]]:
    """The decoded data of all events but [DONE]."""
    return [msgspec.json.decode(data) for data in answer.data() if data != b"[DONE]"]


def text_of(dialect: str, body: dict[str, Any]) -> str:
    """The text of an answer in one piece."""
    if dialect == "chat":
        return str(body["choices"][0]["message"]["content"])
    if dialect == "completions":
        return str(body["choices"][0]["text"])
    if dialect == "messages":
        return "".join(block["text"] for block in body["content"])
    return "".join(part["text"] for item in body["output"] for part in item["content"])


def streamed_text(dialect: str, answer: RawAnswer) -> str:
    """The text of a streamed answer."""
    if dialect == "chat":
        deltas = [event["choices"][0]["delta"] for event in events(answer) if event["choices"]]
        return "".join(delta.get("content") or "" for delta in deltas)
    if dialect == "completions":
        return "".join(event["choices"][0]["text"] for event in events(answer) if event["choices"])
    if dialect == "messages":
        deltas = [event["delta"] for event in events(answer) if event["type"] == "content_block_delta"]
        return "".join(delta["text"] for delta in deltas)
    return "".join(event["delta"] for event in events(answer) if event["type"] == "response.output_text.delta")


def usage_of(dialect: str, body: dict[str, Any]) -> tuple[int, int]:
    """Prompt and completion tokens of an answer in one piece."""
    usage = body["usage"]
    if dialect in PLAIN:
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        return int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    return int(usage["input_tokens"]), int(usage["output_tokens"])


def streamed_usage(dialect: str, answer: RawAnswer) -> tuple[int, int]:
    """Prompt and completion tokens where each dialect's stream has them."""
    if dialect == "responses":
        return usage_of(dialect, events(answer)[-1]["response"])
    if dialect == "messages":
        (delta,) = [event for event in events(answer) if event["type"] == "message_delta"]
        return usage_of(dialect, delta)
    return usage_of(dialect, events(answer)[-1])


async def counted(engine: Target, client: httpx2.AsyncClient, before: Numbers, expected: tuple[int, int]) -> None:
    """Wait until the engine's counters have grown by `expected`: it updates them behind its answers."""
    with trio.fail_after(PATIENCE_S):
        while (grown := (await engine.numbers(client)).since(before)) != expected:
            assert grown[0] <= expected[0], "the engine counted more prompt tokens than it told"
            assert grown[1] <= expected[1], "the engine counted more tokens than it told"


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_streamed_and_whole_answers_agree(engine: Target, dialect: str) -> None:
    whole = await engine.ask(post(DIALECTS[dialect], engine.question(dialect)))
    streamed = await engine.ask(post(DIALECTS[dialect], engine.question(dialect, stream=True)))
    assert whole.status == streamed.status == 200
    assert whole.header("content-type") == "application/json"
    assert streamed.header("content-type") == "text/event-stream; charset=utf-8"
    body = whole.json()
    assert isinstance(body, dict)
    assert streamed_text(dialect, streamed) == text_of(dialect, body) != ""


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_usage_equals_the_counters(engine: Target, dialect: str) -> None:
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if dialect in PLAIN else {}
    async with engine.client() as client:
        before = await engine.numbers(client)
        body = (await client.post(DIALECTS[dialect], json=engine.question(dialect))).json()
        told = usage_of(dialect, body)
        await counted(engine, client, before, told)
        before = await engine.numbers(client)
        streamed = await engine.ask(post(DIALECTS[dialect], engine.question(dialect, stream=True, **options)))
        assert streamed_usage(dialect, streamed) == told
        await counted(engine, client, before, told)


@pytest.mark.parametrize("dialect", PLAIN)
async def test_the_usage_chunk_comes_last_and_has_no_choices(engine: Target, dialect: str) -> None:
    question = engine.question(dialect, stream=True, stream_options={"include_usage": True})
    answer = await engine.ask(post(DIALECTS[dialect], question))
    *others, last = events(answer)
    assert others
    assert last["choices"] == []
    assert {"prompt_tokens", "completion_tokens", "total_tokens"} <= set(last["usage"])
    assert all(event["choices"] and not event.get("usage") for event in others)
    assert {event["id"] for event in others} == {last["id"]}
    assert answer.data()[-1] == b"[DONE]"


@pytest.mark.parametrize("dialect", PLAIN)
@pytest.mark.parametrize("options", [None, {"include_usage": False}, {"continuous_usage_stats": True}])
async def test_no_usage_unless_asked_for(engine: Target, dialect: str, options: dict[str, bool] | None) -> None:
    question = engine.question(dialect, stream=True, stream_options=options)
    answer = await engine.ask(post(DIALECTS[dialect], question))
    assert answer.status == 200
    assert len(events(answer)) > 1
    assert all(event["choices"] and not event.get("usage") for event in events(answer))


@pytest.mark.parametrize("dialect", PLAIN)
async def test_continuous_usage_counts_up_to_the_final_one(engine: Target, dialect: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    answer = await engine.ask(post(DIALECTS[dialect], engine.question(dialect, stream=True, stream_options=options)))
    counts = [event["usage"]["completion_tokens"] for event in events(answer)]
    assert counts == sorted(counts)
    assert counts[-1] == counts[-2], "the last chunk with choices has counted all"
    assert events(answer)[-1]["choices"] == []


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_limit_is_kept_and_named(engine: Target, dialect: str) -> None:
    async with engine.client() as client:
        body = (await client.post(DIALECTS[dialect], json=engine.question(dialect, limit=3))).json()
    assert usage_of(dialect, body)[1] == 3
    reasons = {
        "chat": lambda: body["choices"][0]["finish_reason"] == "length",
        "completions": lambda: body["choices"][0]["finish_reason"] == "length",
        "responses": lambda: body["incomplete_details"] == {"reason": "max_output_tokens"},
        "messages": lambda: body["stop_reason"] == "max_tokens",
    }
    assert reasons[dialect]()


async def test_chat_stream_first_and_last_event(engine: Target) -> None:
    """A chat stream opens with the role and closes with a finish reason."""
    answer = await engine.ask(post(DIALECTS["chat"], engine.question("chat", stream=True)))
    first, *_, last = events(answer)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0]["finish_reason"] in ("stop", "length")
    assert first["object"] == last["object"] == "chat.completion.chunk"
    assert first["model"] == engine.model


async def test_responses_stream_is_numbered(engine: Target) -> None:
    """A Responses stream has its events in order and ends with the whole response."""
    answer = await engine.ask(post(DIALECTS["responses"], engine.question("responses", stream=True)))
    types = [event["type"] for event in events(answer)]
    assert types[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert types[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert set(types[4:-4]) == {"response.output_text.delta"}
    assert [event["sequence_number"] for event in events(answer)] == list(range(len(types)))
    assert [event.split(b"\n")[0] for event in answer.events()] == [f"event: {name}".encode() for name in types]
    assert text_of("responses", events(answer)[-1]["response"]) == streamed_text("responses", answer)


async def test_messages_stream_has_one_block(engine: Target) -> None:
    """A Messages stream has one content block between its start and its stop."""
    answer = await engine.ask(post(DIALECTS["messages"], engine.question("messages", stream=True)))
    types = [event["type"] for event in events(answer)]
    assert types[:2] == ["message_start", "content_block_start"]
    assert types[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(types[2:-3]) == {"content_block_delta"}
    assert [event.split(b"\n")[0] for event in answer.events()] == [f"event: {name}".encode() for name in types]
    start = events(answer)[0]["message"]["usage"]
    assert start["input_tokens"] == streamed_usage("messages", answer)[0]
    assert start["output_tokens"] == 0
