"""What of an answer must not depend on the way that it came, read from the objects of the official clients."""

from collections.abc import Iterable
from dataclasses import dataclass

from anthropic.types import Message, RawMessageStreamEvent
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent


@dataclass(frozen=True)
class Answer:
    """`usage`: prompt and completion tokens, None where the client was told of none."""

    text: str
    finish: str | None
    usage: tuple[int, int] | None


def of_chat(answer: ChatCompletion) -> Answer:
    (choice,) = answer.choices
    assert answer.usage
    return Answer(
        choice.message.content or "",
        choice.finish_reason,
        (answer.usage.prompt_tokens, answer.usage.completion_tokens),
    )


def of_chat_stream(chunks: Iterable[ChatCompletionChunk]) -> Answer:
    text, finish, usage = "", None, None
    for chunk in chunks:
        assert usage is None, "something follows the usage chunk"
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
        if chunk.usage:
            assert chunk.choices == []
            usage = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
    return Answer(text, finish, usage)


def of_completions(parts: Iterable[Completion]) -> Answer:
    """A whole answer is a stream of one."""
    text, usage = "", None
    finish: str | None = None
    for part in parts:
        for choice in part.choices:
            text += choice.text
            finish = choice.finish_reason
        if part.usage:
            usage = (part.usage.prompt_tokens, part.usage.completion_tokens)
    return Answer(text, finish, usage)


def of_response(answer: Response) -> Answer:
    assert answer.usage
    finish = answer.incomplete_details.reason if answer.incomplete_details else answer.status
    return Answer(answer.output_text, finish, (answer.usage.input_tokens, answer.usage.output_tokens))


def of_response_stream(events: Iterable[ResponseStreamEvent]) -> Answer:
    *others, last = events
    assert last.type in ("response.completed", "response.incomplete")
    answer = of_response(last.response)
    assert answer.text == "".join(event.delta for event in others if event.type == "response.output_text.delta")
    return answer


def of_message(answer: Message) -> Answer:
    (block,) = answer.content
    assert block.type == "text"
    return Answer(block.text, answer.stop_reason, (answer.usage.input_tokens, answer.usage.output_tokens))


def of_message_stream(events: Iterable[RawMessageStreamEvent]) -> Answer:
    *others, last = events
    assert last.type == "message_stop"
    text, finish, prompt, completion = "", None, None, None
    for event in others:
        if event.type == "message_start":
            prompt = event.message.usage.input_tokens
        elif event.type == "content_block_delta":
            assert event.delta.type == "text_delta"
            text += event.delta.text
        elif event.type == "message_delta":
            finish, completion = event.delta.stop_reason, event.usage.output_tokens
    assert prompt is not None
    assert completion is not None
    return Answer(text, finish, (prompt, completion))
