"""OpenAI's Python client, chat completions."""

from typing import Any

import openai
import steps


def create(base_url: str, model: str, question: str, limit: int, **more: Any) -> Any:
    client = openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=steps.TIMEOUT_S)
    return client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], max_tokens=limit, temperature=0, **more
    )


def whole(base_url: str, model: str) -> steps.Answer:
    answer = create(base_url, model, steps.QUESTION, steps.LIMIT)
    (choice,) = answer.choices
    return steps.answer(
        choice.message.content, choice.finish_reason, answer.usage.prompt_tokens, answer.usage.completion_tokens
    )


def streamed(base_url: str, model: str) -> steps.Answer:
    text, finish = "", None
    chunk = None
    for chunk in create(
        base_url, model, steps.QUESTION, steps.LIMIT, stream=True, stream_options={"include_usage": True}
    ):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    assert chunk is not None
    return steps.answer(text, finish, chunk.usage.prompt_tokens, chunk.usage.completion_tokens)


def stop(base_url: str, model: str) -> int:
    with create(base_url, model, steps.LONG_QUESTION, steps.LONG, stream=True) as stream:
        for read, _ in enumerate(stream, 1):
            if read == steps.PIECES:
                break
    return read


steps.run(whole, streamed, stop)
