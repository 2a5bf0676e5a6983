"""Real answers of vLLM, byte by byte as they came from the socket, and the questions that they answer.

`python -m tests.recordings.record` makes them anew; README.md says of which version and with which flags.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

_CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_TOOL = {"name": "weather", "description": "The weather in a city"}
_CHAT_TOOLS = [{"type": "function", "function": {**_TOOL, "parameters": _CITY}}]
_RESPONSES_TOOLS = [{"type": "function", **_TOOL, "parameters": _CITY}]
_MESSAGES_TOOLS = [{**_TOOL, "input_schema": _CITY}]
_USAGE = {"stream_options": {"include_usage": True}}
_CONTINUOUS = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}


def _say(content: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 24, "temperature": 0, "stream": True}


def _thinking(question: str) -> dict[str, Any]:
    """A dialogue that leads a small model to think aloud in the words that vLLM's granite parser looks for."""
    turns = []
    for asked, thought, said in (
        ("What is 1+1?", "One and one make two.", "2"),
        ("What is 3+1?", "Three and one make four.", "4"),
        ("What is 5+1?", "Five and one make six.", "6"),
    ):
        answer = f"Here is my thought process: {thought} Here is my response: {said}"
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    turns.append({"role": "user", "content": question})
    return {"messages": turns, "max_tokens": 40, "temperature": 0, "stream": True}


_FRANCE = _say("What is the capital of France?")
_WEATHER = _say("What is the weather in Paris?") | {"max_tokens": 60}
_ONCE = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0, "stream": True}
#: The echo brings characters of two, three and four bytes into the stream.
_ECHO = {"prompt": "Zürich 東京 🚰 naïve:", "echo": True, "max_tokens": 4, "temperature": 0, "stream": True}
_ANSWER = {"input": "What is the capital of France?", "max_output_tokens": 24, "temperature": 0, "stream": True}
_CHAT, _MESSAGES, _RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"

#: Name to path and body, without `model`.
QUESTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (_CHAT, _FRANCE),
    "chat_usage": (_CHAT, _FRANCE | _USAGE),
    "chat_continuous_usage": (_CHAT, _FRANCE | _CONTINUOUS),
    "chat_length": (_CHAT, _FRANCE | _USAGE | {"max_tokens": 3}),
    "chat_two_choices": (_CHAT, _FRANCE | _USAGE | {"n": 2, "temperature": 1, "seed": 1, "max_tokens": 5}),
    "chat_logprobs": (_CHAT, _FRANCE | _USAGE | {"logprobs": True, "top_logprobs": 2, "max_tokens": 3}),
    "chat_whole": (_CHAT, _FRANCE | {"stream": False}),
    "chat_unknown_model": (_CHAT, _FRANCE | {"model": "no-such-model"}),
    "chat_no_messages": (_CHAT, {"stream": True}),
    "chat_tools": (_CHAT, _WEATHER | {"tools": _CHAT_TOOLS, "tool_choice": "required"}),
    "chat_tools_usage": (_CHAT, _WEATHER | _USAGE | {"tools": _CHAT_TOOLS, "tool_choice": "required"}),
    "chat_reasoning": (_CHAT, _thinking("What is 7+1?")),
    "chat_reasoning_usage": (_CHAT, _thinking("What is 7+1?") | _USAGE),
    "completions": ("/v1/completions", _ONCE),
    "completions_usage": ("/v1/completions", _ONCE | _USAGE),
    "completions_continuous_usage": ("/v1/completions", _ONCE | _CONTINUOUS),
    "completions_echo": ("/v1/completions", _ECHO | _USAGE),
    "completions_whole": ("/v1/completions", _ONCE | {"stream": False}),
    "responses": (_RESPONSES, _ANSWER),
    "responses_length": (_RESPONSES, _ANSWER | {"max_output_tokens": 3}),
    "responses_whole": (_RESPONSES, _ANSWER | {"stream": False}),
    "responses_tools": (
        _RESPONSES,
        _ANSWER | {"input": "What is the weather in Paris?", "max_output_tokens": 60}
        | {"tools": _RESPONSES_TOOLS, "tool_choice": "required"},
    ),
    "responses_reasoning": (
        _RESPONSES,
        _ANSWER | {"input": _thinking("What is 7+1?")["messages"], "max_output_tokens": 40},
    ),
    "messages": (_MESSAGES, _FRANCE),
    "messages_length": (_MESSAGES, _FRANCE | {"max_tokens": 3}),
    "messages_whole": (_MESSAGES, _FRANCE | {"stream": False}),
    "messages_unknown_model": (_MESSAGES, _FRANCE | {"model": "no-such-model"}),
    "messages_tools": (_MESSAGES, _WEATHER | {"tools": _MESSAGES_TOOLS, "tool_choice": {"type": "any"}}),
    "messages_reasoning": (_MESSAGES, _thinking("What is 7+1?")),
}  # fmt: skip


@dataclass(frozen=True)
class Recorded:
    """A question, and the answer to it: `raw` is the head and the body with its chunk framing."""

    name: str
    path: str
    body: dict[str, Any]
    raw: bytes

    def __repr__(self) -> str:
        return f"Recorded({self.name})"


def recorded(name: str) -> Recorded:
    """The recording called `name`."""
    path, body = QUESTIONS[name]
    return Recorded(name, path, body, (HERE / f"{name}.http").read_bytes())


def recordings() -> list[Recorded]:
    """All recordings."""
    return [recorded(name) for name in QUESTIONS]
