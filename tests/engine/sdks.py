"""Questions put through the official clients. Each function blocks and is for a thread of its own."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import anthropic
import httpx2
import openai
from anthropic.types import MessageParam
from openai.types.chat import ChatCompletionStreamOptionsParam, ChatCompletionUserMessageParam

from tests.engine.answers import (
    Answer,
    of_chat,
    of_chat_stream,
    of_completions,
    of_message,
    of_message_stream,
    of_response,
    of_response_stream,
)
from tests.engine_contract.target import PATIENCE_S

QUESTION = "What is the capital of France?"
MESSAGES: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": QUESTION}]
ANTHROPIC_MESSAGES: list[MessageParam] = [{"role": "user", "content": QUESTION}]
# Asked a question without its chat template, the model stops at once.
BEGINNING = "Once upon a time"
#: Enough for a whole answer to the question, so that chat answers end by themselves and completions by the limit.
LIMIT = 12
#: Anthropic's client has dropped the parameter; the endpoint has not.
COLD = {"temperature": 0}
USAGE: ChatCompletionStreamOptionsParam = {"include_usage": True}

#: Asks the engine or gateway at a base URL for this model's answer.
Ask = Callable[[str, str], Answer]


def open_openai(base_url: str) -> openai.OpenAI:
    http = httpx2.Client(trust_env=False)
    return openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S, http_client=http)


def open_async_openai(base_url: str) -> openai.AsyncOpenAI:
    http = httpx2.AsyncClient(trust_env=False)
    return openai.AsyncOpenAI(
        base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S, http_client=http
    )


def open_anthropic(base_url: str) -> anthropic.Anthropic:
    http = httpx2.Client(trust_env=False)
    return anthropic.Anthropic(base_url=base_url, api_key="none", max_retries=0, timeout=PATIENCE_S, http_client=http)


def open_async_anthropic(base_url: str) -> anthropic.AsyncAnthropic:
    http = httpx2.AsyncClient(trust_env=False)
    return anthropic.AsyncAnthropic(
        base_url=base_url, api_key="none", max_retries=0, timeout=PATIENCE_S, http_client=http
    )


def chat(base_url: str, model: str) -> Answer:
    with open_openai(base_url) as client:
        return of_chat(client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=LIMIT, temperature=0))


def chat_stream(base_url: str, model: str, *, usage: bool) -> Answer:
    with open_openai(base_url) as client:
        options = USAGE if usage else openai.omit
        return of_chat_stream(
            client.chat.completions.create(
                model=model, messages=MESSAGES, max_tokens=LIMIT, temperature=0, stream=True, stream_options=options
            )
        )


def completions(base_url: str, model: str) -> Answer:
    with open_openai(base_url) as client:
        return of_completions(
            [client.completions.create(model=model, prompt=BEGINNING, max_tokens=LIMIT, temperature=0)]
        )


def completions_stream(base_url: str, model: str, *, usage: bool) -> Answer:
    with open_openai(base_url) as client:
        options = USAGE if usage else openai.omit
        return of_completions(
            client.completions.create(
                model=model, prompt=BEGINNING, max_tokens=LIMIT, temperature=0, stream=True, stream_options=options
            )
        )


def responses(base_url: str, model: str) -> Answer:
    with open_openai(base_url) as client:
        return of_response(client.responses.create(model=model, input=QUESTION, max_output_tokens=LIMIT, temperature=0))


def responses_stream(base_url: str, model: str) -> Answer:
    with open_openai(base_url) as client:
        return of_response_stream(
            client.responses.create(model=model, input=QUESTION, max_output_tokens=LIMIT, temperature=0, stream=True)
        )


def messages(base_url: str, model: str) -> Answer:
    with open_anthropic(base_url) as client:
        return of_message(
            client.messages.create(model=model, messages=ANTHROPIC_MESSAGES, max_tokens=LIMIT, extra_body=COLD)
        )


def messages_stream(base_url: str, model: str) -> Answer:
    with open_anthropic(base_url) as client:
        return of_message_stream(
            client.messages.create(
                model=model, messages=ANTHROPIC_MESSAGES, max_tokens=LIMIT, extra_body=COLD, stream=True
            )
        )


async def async_chat(base_url: str, model: str) -> Answer:
    async with open_async_openai(base_url) as client:
        return of_chat(
            await client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=LIMIT, temperature=0)
        )


async def async_chat_stream(base_url: str, model: str) -> Answer:
    async with open_async_openai(base_url) as client:
        stream = await client.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=LIMIT, temperature=0, stream=True, stream_options=USAGE
        )
        return of_chat_stream([chunk async for chunk in stream])


async def async_completions(base_url: str, model: str) -> Answer:
    async with open_async_openai(base_url) as client:
        create = client.completions.create
        return of_completions([await create(model=model, prompt=BEGINNING, max_tokens=LIMIT, temperature=0)])


async def async_completions_stream(base_url: str, model: str) -> Answer:
    async with open_async_openai(base_url) as client:
        stream = await client.completions.create(
            model=model, prompt=BEGINNING, max_tokens=LIMIT, temperature=0, stream=True
        )
        return of_completions([part async for part in stream])


async def async_responses(base_url: str, model: str) -> Answer:
    async with open_async_openai(base_url) as client:
        create = client.responses.create
        return of_response(await create(model=model, input=QUESTION, max_output_tokens=LIMIT, temperature=0))


async def async_responses_stream(base_url: str, model: str) -> Answer:
    async with open_async_openai(base_url) as client:
        stream = await client.responses.create(
            model=model, input=QUESTION, max_output_tokens=LIMIT, temperature=0, stream=True
        )
        return of_response_stream([event async for event in stream])


async def async_messages(base_url: str, model: str) -> Answer:
    async with open_async_anthropic(base_url) as client:
        create = client.messages.create
        return of_message(await create(model=model, messages=ANTHROPIC_MESSAGES, max_tokens=LIMIT, extra_body=COLD))


async def async_messages_stream(base_url: str, model: str) -> Answer:
    async with open_async_anthropic(base_url) as client:
        stream = await client.messages.create(
            model=model, messages=ANTHROPIC_MESSAGES, max_tokens=LIMIT, extra_body=COLD, stream=True
        )
        return of_message_stream([event async for event in stream])


def in_asyncio(ask: Callable[[str, str], Coroutine[Any, Any, Answer]]) -> Ask:
    """The async clients run on asyncio, as in most programs that use them."""

    def run(base_url: str, model: str) -> Answer:
        return asyncio.run(ask(base_url, model))

    return run


#: Every way of asking, by name. "unasked": a stream whose client did not ask for its usage.
ASKS: dict[str, Ask] = {
    "chat": chat,
    "chat-stream": partial(chat_stream, usage=True),
    "chat-stream-unasked": partial(chat_stream, usage=False),
    "chat-async": in_asyncio(async_chat),
    "chat-stream-async": in_asyncio(async_chat_stream),
    "completions": completions,
    "completions-stream": partial(completions_stream, usage=True),
    "completions-stream-unasked": partial(completions_stream, usage=False),
    "completions-async": in_asyncio(async_completions),
    "completions-stream-async-unasked": in_asyncio(async_completions_stream),
    "responses": responses,
    "responses-stream": responses_stream,
    "responses-async": in_asyncio(async_responses),
    "responses-stream-async": in_asyncio(async_responses_stream),
    "messages": messages,
    "messages-stream": messages_stream,
    "messages-async": in_asyncio(async_messages),
    "messages-stream-async": in_asyncio(async_messages_stream),
}
