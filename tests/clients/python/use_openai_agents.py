"""OpenAI's Agents SDK, responses."""

import asyncio
from typing import Any

import openai
import steps
from agents import Agent, ModelSettings, OpenAIResponsesModel, Runner, set_tracing_disabled
from openai.types.responses import ResponseTextDeltaEvent

# Traces would go to OpenAI.
set_tracing_disabled(True)

#: In one loop for all steps: the SDK closes its connections later.
in_loop = asyncio.Runner().run


def open_agent(base_url: str, model: str, limit: int) -> Agent:
    client = openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=steps.TIMEOUT_S)
    settings = ModelSettings(max_tokens=limit, temperature=0)
    return Agent("tester", model=OpenAIResponsesModel(model, client), model_settings=settings)


def read(result: Any) -> steps.Answer:
    (response,) = result.raw_responses
    return steps.answer(result.final_output, None, response.usage.input_tokens, response.usage.output_tokens)


def whole(base_url: str, model: str) -> steps.Answer:
    return read(in_loop(Runner.run(open_agent(base_url, model, steps.LIMIT), steps.QUESTION)))


def streamed(base_url: str, model: str) -> steps.Answer:
    async def ask() -> steps.Answer:
        result = Runner.run_streamed(open_agent(base_url, model, steps.LIMIT), steps.QUESTION)
        async for _ in result.stream_events():
            pass
        return read(result)

    return in_loop(ask())


def stop(base_url: str, model: str) -> int:
    async def ask() -> int:
        result = Runner.run_streamed(open_agent(base_url, model, steps.LONG), steps.LONG_QUESTION)
        pieces = 0
        async for event in result.stream_events():
            pieces += isinstance(getattr(event, "data", None), ResponseTextDeltaEvent)
            if pieces == steps.PIECES:
                result.cancel()
                break
        return pieces

    return in_loop(ask())


steps.run(whole, streamed, stop)
