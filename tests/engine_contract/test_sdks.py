"""The official SDKs understand an engine's answers; what they make of them is what clients see.

They run in a thread of their own, as in most programs that use them: their async streams leave generators behind
that trio complains about.
"""

import asyncio
from collections.abc import Callable

import anthropic
import httpx2
import openai
import pytest
import trio
from openai.types.chat import ChatCompletionStreamOptionsParam, ChatCompletionUserMessageParam

from tests.engine_contract.target import PATIENCE_S, Target

QUESTION = "What is the capital of France?"
CHAT: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": QUESTION}]


def open_client(engine: Target) -> openai.OpenAI:
    """The official client for it."""
    http = httpx2.Client(transport=httpx2.HTTPTransport(uds=engine.socket_path))
    return openai.OpenAI(
        base_url=f"{engine.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S, http_client=http
    )


def ask_chat(engine: Target) -> None:
    with open_client(engine) as client:
        create = client.chat.completions.create
        whole = create(model=engine.model, messages=CHAT, max_tokens=16, temperature=0)
        options: ChatCompletionStreamOptionsParam = {"include_usage": True}
        stream = create(
            model=engine.model, messages=CHAT, max_tokens=16, temperature=0, stream=True, stream_options=options
        )
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def ask_completions(engine: Target) -> None:
    with open_client(engine) as client:
        create = client.completions.create
        whole = create(model=engine.model, prompt=QUESTION, max_tokens=8, temperature=0)
        stream = create(model=engine.model, prompt=QUESTION, max_tokens=8, temperature=0, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def ask_responses(engine: Target) -> None:
    with open_client(engine) as client:
        create = client.responses.create
        whole = create(model=engine.model, input=QUESTION, max_output_tokens=16, temperature=0)
        events = list(create(model=engine.model, input=QUESTION, max_output_tokens=16, temperature=0, stream=True))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text != ""
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == text


def ask_messages(engine: Target) -> None:
    http = httpx2.Client(transport=httpx2.HTTPTransport(uds=engine.socket_path))
    with anthropic.Anthropic(
        base_url=engine.url, api_key="none", max_retries=0, timeout=PATIENCE_S, http_client=http
    ) as client:
        messages: list[anthropic.types.MessageParam] = [{"role": "user", "content": QUESTION}]
        whole = client.messages.create(model=engine.model, messages=messages, max_tokens=16)
        assert whole.content[0].type == "text"
        with client.messages.stream(model=engine.model, messages=messages, max_tokens=16) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        counted = client.messages.count_tokens(model=engine.model, messages=messages)
    assert final.content[0].type == "text"
    assert final.content[0].text == text != ""
    assert 0 < final.usage.output_tokens <= 16
    assert counted.input_tokens == whole.usage.input_tokens == final.usage.input_tokens


def ask_async(engine: Target) -> None:
    async def ask() -> list[str]:
        http = httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=engine.socket_path))
        async with openai.AsyncOpenAI(
            base_url=f"{engine.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S, http_client=http
        ) as client:
            stream = await client.chat.completions.create(model=engine.model, messages=CHAT, max_tokens=16, stream=True)
            return [chunk.choices[0].delta.content or "" async for chunk in stream]

    assert "".join(asyncio.run(ask()))


def ask_wrongly(engine: Target) -> None:
    with open_client(engine) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="no-such-model", messages=CHAT)
        assert caught.value.param == "model"
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model=engine.model, messages=CHAT, max_tokens=0)


@pytest.mark.parametrize("ask", [ask_chat, ask_completions, ask_responses, ask_messages, ask_async, ask_wrongly])
async def test_an_sdk_understands(engine: Target, ask: Callable[[Target], None]) -> None:
    with trio.fail_after(2 * PATIENCE_S):
        await trio.to_thread.run_sync(ask, engine)
