"""Anthropic's Python client, messages."""

from typing import Any

import anthropic
import steps


def asked(model: str, question: str, limit: int) -> dict[str, Any]:
    # The client has dropped the parameter temperature; the endpoint has not.
    messages = [{"role": "user", "content": question}]
    return {"model": model, "messages": messages, "max_tokens": limit, "extra_body": {"temperature": 0}}


def open_client(base_url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=base_url, api_key="none", max_retries=0, timeout=steps.TIMEOUT_S)


def read(message: anthropic.types.Message) -> steps.Answer:
    (block,) = message.content
    assert block.type == "text"
    return steps.answer(block.text, message.stop_reason, message.usage.input_tokens, message.usage.output_tokens)


def whole(base_url: str, model: str) -> steps.Answer:
    return read(open_client(base_url).messages.create(**asked(model, steps.QUESTION, steps.LIMIT)))


def streamed(base_url: str, model: str) -> steps.Answer:
    with open_client(base_url).messages.stream(**asked(model, steps.QUESTION, steps.LIMIT)) as stream:
        return read(stream.get_final_message())


def stop(base_url: str, model: str) -> int:
    with open_client(base_url).messages.stream(**asked(model, steps.LONG_QUESTION, steps.LONG)) as stream:
        for pieces, _ in enumerate(stream.text_stream, 1):
            if pieces == steps.PIECES:
                break
    return pieces


steps.run(whole, streamed, stop)
