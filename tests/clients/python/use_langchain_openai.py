"""LangChain's chat model for OpenAI's protocol."""

import steps
from langchain_core.messages import BaseMessage
from langchain_openai import ChatOpenAI


def open_model(base_url: str, model: str, limit: int) -> ChatOpenAI:
    return ChatOpenAI(
        model=model,
        base_url=f"{base_url}/v1",
        api_key="none",
        max_retries=0,
        timeout=steps.TIMEOUT_S,
        max_tokens=limit,
        temperature=0,
        stream_usage=True,
    )


def read(message: BaseMessage) -> steps.Answer:
    usage = message.usage_metadata
    finish = message.response_metadata["finish_reason"]
    return steps.answer(message.text, finish, usage["input_tokens"], usage["output_tokens"])


def whole(base_url: str, model: str) -> steps.Answer:
    return read(open_model(base_url, model, steps.LIMIT).invoke(steps.QUESTION))


def streamed(base_url: str, model: str) -> steps.Answer:
    first, *others = open_model(base_url, model, steps.LIMIT).stream(steps.QUESTION)
    for chunk in others:
        first += chunk
    return read(first)


def stop(base_url: str, model: str) -> int:
    stream = open_model(base_url, model, steps.LONG).stream(steps.LONG_QUESTION)
    for pieces, _ in enumerate(stream, 1):
        if pieces == steps.PIECES:
            break
    stream.close()
    return pieces


steps.run(whole, streamed, stop)
