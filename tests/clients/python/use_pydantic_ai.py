"""Pydantic AI's agent, chat completions."""

import asyncio

import openai
import steps
from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings


def open_agent(base_url: str, model: str, limit: int) -> Agent:
    client = openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=steps.TIMEOUT_S)
    settings = ModelSettings(max_tokens=limit, temperature=0)
    return Agent(OpenAIChatModel(model, provider=OpenAIProvider(openai_client=client)), model_settings=settings)


def read(response: ModelResponse) -> steps.Answer:
    usage = response.usage
    return steps.answer(response.text, response.finish_reason, usage.input_tokens, usage.output_tokens)


def whole(base_url: str, model: str) -> steps.Answer:
    return read(open_agent(base_url, model, steps.LIMIT).run_sync(steps.QUESTION).response)


def streamed(base_url: str, model: str) -> steps.Answer:
    async def ask() -> steps.Answer:
        async with open_agent(base_url, model, steps.LIMIT).run_stream(steps.QUESTION) as stream:
            await stream.get_output()
            return read(stream.response)

    return asyncio.run(ask())


def stop(base_url: str, model: str) -> int:
    async def ask() -> int:
        async with open_agent(base_url, model, steps.LONG).run_stream(steps.LONG_QUESTION) as stream:
            pieces = 0
            async for _ in stream.stream_text(delta=True, debounce_by=None):
                pieces += 1
                if pieces == steps.PIECES:
                    await stream.cancel()
                    break
            return pieces

    return asyncio.run(ask())


steps.run(whole, streamed, stop)
