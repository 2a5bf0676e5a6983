"""LiteLLM as a library, with vLLM as an endpoint that speaks OpenAI's protocol."""

from typing import Any

import litellm
import steps

litellm.suppress_debug_info = True


def create(base_url: str, model: str, question: str, limit: int, **more: Any) -> Any:
    return litellm.completion(
        f"hosted_vllm/{model}",
        [{"role": "user", "content": question}],
        api_base=f"{base_url}/v1",
        api_key="none",
        max_retries=0,
        timeout=steps.TIMEOUT_S,
        max_tokens=limit,
        temperature=0,
        **more,
    )


def read(answer: Any) -> steps.Answer:
    (choice,) = answer.choices
    return steps.answer(
        choice.message.content, choice.finish_reason, answer.usage.prompt_tokens, answer.usage.completion_tokens
    )


def whole(base_url: str, model: str) -> steps.Answer:
    return read(create(base_url, model, steps.QUESTION, steps.LIMIT))


def streamed(base_url: str, model: str) -> steps.Answer:
    options = {"include_usage": True}
    stream = create(base_url, model, steps.QUESTION, steps.LIMIT, stream=True, stream_options=options)
    return read(litellm.stream_chunk_builder(list(stream)))


def stop(base_url: str, model: str) -> int:
    stream = create(base_url, model, steps.LONG_QUESTION, steps.LONG, stream=True)
    for read, _ in enumerate(stream, 1):
        if read == steps.PIECES:
            break
    # LiteLLM's own stream has no close(): the one below it is OpenAI's.
    stream.completion_stream.close()
    return read


steps.run(whole, streamed, stop)
