"""Streams as vLLM 0.32 sends them (its entrypoints/*/serving.py), event by event, and what is true of each."""

from dataclasses import dataclass

from sluicegate.dialects.usage import Usage
from sluicegate.exchange import Dialect

CHUNK = '"id":"chatcmpl-9a7f","object":"chat.completion.chunk","created":1763000000,"model":"SmolLM2-135M-Instruct"'
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Stream:
    """`usage_chunk`: the index of the event that is there only because usage was asked for."""

    dialect: Dialect
    events: tuple[bytes, ...]
    usage: Usage | None
    usage_chunk: int | None = None
    ended: bool = True
    failed: bool = False

    def __str__(self) -> str:
        return next(name for name, stream in STREAMS.items() if stream is self)

    def withheld(self, asked: bool) -> set[int]:
        """The indices of the events that a client must not see.

        The usage chunk, if it did not ask for it; in an opaque request the gate did not ask, so it was the client that
        did. And the [DONE] behind an error, which would make a broken stream pass for complete.
        """
        indices = {index for index, event in enumerate(self.events) if self.failed and event == DONE}
        if self.usage_chunk is not None and not asked and self.dialect is not Dialect.PLAIN:
            indices.add(self.usage_chunk)
        return indices

    @property
    def whole(self) -> bytes:
        return b"".join(self.events)


def data(*members: str) -> bytes:
    return f"data: {{{','.join(members)}}}\n\n".encode()


def named(name: str, *members: str) -> bytes:
    return f'event: {name}\ndata: {{"type":"{name}",{",".join(members)}}}\n\n'.encode()


def delta(content: str, finish: str = "null") -> bytes:
    choice = f'{{"index":0,"delta":{{{content}}},"logprobs":null,"finish_reason":{finish},"token_ids":null}}'
    return data(CHUNK, f'"choices":[{choice}]')


CHAT_USAGE = data(CHUNK, '"choices":[]', '"usage":{"prompt_tokens":36,"total_tokens":44,"completion_tokens":8}')

CHAT = (
    delta('"role":"assistant","content":""'),
    delta('"content":"The \\"usage\\" of {\\"usage\\":{}} is an error: \\\\\\"[DONE]\\" é"'),
    delta('"content":" data: [DONE]\\n\\n"'),
    delta('"content":"usage"'),
    delta('"content":"error"'),
    delta('"content":""', '"stop"'),
    CHAT_USAGE,
    DONE,
)

TOOLS = (
    delta('"role":"assistant","content":""'),
    delta('"tool_calls":[{"id":"call_1","type":"function","index":0,"function":{"name":"usage","arguments":""}}]'),
    delta('"tool_calls":[{"index":0,"function":{"arguments":"{\\"usage\\": {\\"prompt_tokens\\": 99}, "}}]'),
    delta('"tool_calls":[{"index":0,"function":{"arguments":"\\"error\\": null}"}}]'),
    delta("", '"tool_calls"'),
    b": ping\n\n",
    data(CHUNK, '"choices":[ ]', '"usage" : {"completion_tokens":17,"prompt_tokens_details":null,"prompt_tokens":120}'),
    DONE,
)

REASONING = (
    delta('"role":"assistant","content":""'),
    delta('"reasoning":"Let me think"'),
    delta('"reasoning":" about it."'),
    delta('"content":"42"', '"stop"'),
    data(
        '"usage":{"total_tokens":9,"completion_tokens":4,"prompt_tokens":5,"completion_tokens_details":null}',
        CHUNK,
        '"choices":[]',
    ),
    DONE,
)

# Each chunk has its usage; only the one without choices is the usage chunk.
CONTINUOUS = (
    data(CHUNK, '"choices":[{"index":0,"delta":{"content":"a"}}]', '"usage":{"prompt_tokens":3,"completion_tokens":1}'),
    data(CHUNK, '"choices":[{"index":0,"delta":{"content":"b"}}]', '"usage":{"prompt_tokens":3,"completion_tokens":2}'),
    data(CHUNK, '"choices":[]', '"usage":{"prompt_tokens":3,"completion_tokens":2}'),
    DONE,
)

# As OpenAI itself does it: every chunk but the last says that it has no usage.
USAGE_NULL = (
    data(CHUNK, '"choices":[{"index":0,"delta":{"content":"a"}}]', '"usage":null'),
    data(CHUNK, '"choices":[]', '"usage":null'),
    data(CHUNK, '"choices":[]', '"usage":{"prompt_tokens":3,"completion_tokens":2}'),
    DONE,
)

# The engine fails: vLLM tells it in a chunk and still sends [DONE].
CHAT_FAILS = (
    delta('"role":"assistant","content":""'),
    data('"error":{"message":"Internal server error","type":"InternalServerError","param":null,"code":500}'),
    DONE,
)

CRLF = tuple(event.replace(b"\n", b"\r\n") for event in CHAT)
CR = tuple(event.replace(b"\n", b"\r") for event in CHAT)

TEXT = '"id":"cmpl-1","object":"text_completion","created":1763000000,"model":"m"'
COMPLETIONS = (
    data(TEXT, '"choices":[{"index":0,"text":" Paris","logprobs":null,"finish_reason":null,"stop_reason":null}]'),
    data(TEXT, '"choices":[{"index":0,"text":".","logprobs":null,"finish_reason":"length","stop_reason":null}]'),
    data(TEXT, '"choices":[]', '"usage":{"prompt_tokens":6,"total_tokens":8,"completion_tokens":2}'),
    DONE,
)

# Streamed by request, but computed at once (beam search): one chunk with choices and usage.
COMPLETIONS_AT_ONCE = (
    data(TEXT, '"choices":[{"index":0,"text":"x"}]', '"usage":{"prompt_tokens":6,"completion_tokens":2}'),
    DONE,
)

RESPONSE = '"id":"resp_1","object":"response","model":"m","output":[]'
RESPONSES = (
    named("response.created", '"sequence_number":0', f'"response":{{{RESPONSE},"usage":null,"error":null}}'),
    named("response.in_progress", '"sequence_number":1', f'"response":{{{RESPONSE},"usage":null,"error":null}}'),
    named("response.output_text.delta", '"sequence_number":2', '"delta":"\\"response\\":{\\"usage\\":1} error"'),
    named("response.output_text.delta", '"sequence_number":3', '"delta":"response"'),
    named(
        "response.completed",
        '"sequence_number":4',
        f'"response":{{{RESPONSE},"usage":{{"input_tokens":36,"input_tokens_details":{{"cached_tokens":16}},'
        '"output_tokens":8,"total_tokens":44},"error":null}',
    ),
)
RESPONSES_INCOMPLETE = (
    *RESPONSES[:-1],
    RESPONSES[-1].replace(b"response.completed", b"response.incomplete"),
)
RESPONSES_FAIL = (
    *RESPONSES[:-1],
    named("response.failed", '"sequence_number":4', f'"response":{{{RESPONSE},"usage":null,"error":{{"code":"x"}}}}'),
)

MESSAGES = (
    named(
        "message_start",
        '"message":{"id":"chatcmpl-1","type":"message","role":"assistant","content":[],"model":"m",'
        '"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":36,"output_tokens":0}}',
    ),
    named("content_block_start", '"index":0', '"content_block":{"type":"text","text":""}'),
    named("ping", '"x":1'),
    named("content_block_delta", '"index":0', '"delta":{"type":"text_delta","text":"message_stop"}'),
    named("content_block_delta", '"index":0', '"delta":{"type":"text_delta","text":"error"}'),
    named("content_block_stop", '"index":0'),
    named(
        "message_delta",
        '"delta":{"stop_reason":"end_turn","stop_sequence":null}',
        '"usage":{"input_tokens":20,"output_tokens":8,"cache_read_input_tokens":16}',
    ),
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
)
MESSAGES_FAIL = (
    *MESSAGES[:4],
    named("error", '"error":{"type":"internal_error","message":"boom"}'),
)

TRANSCRIPTION = (
    data('"object":"transcription.chunk"', '"choices":[{"delta":{"content":"Hello"}}]'),
    data('"object":"transcription.chunk"', '"choices":[]', '"usage":{"prompt_tokens":9,"completion_tokens":1}'),
    DONE,
)

COHERE = (
    data('"type":"message-start"', '"id":"c"', '"delta":{"message":{"role":"assistant"}}'),
    data('"type":"content-delta"', '"index":0', '"delta":{"message":{"content":{"text":"message-end usage error"}}}'),
    data('"type":"content-end"', '"index":0'),
    data(
        '"type":"message-end"',
        '"id":"c"',
        '"delta":{"finish_reason":"COMPLETE","usage":{"billed_units":{"input_tokens":7,"output_tokens":3},'
        '"tokens":{"input_tokens":9,"output_tokens":4},"cached_tokens":2}}',
    ),
    DONE,
)
# vLLM's own word for a failure, and behind it a [DONE] all the same.
COHERE_FAILS = (
    *COHERE[:2],
    data('"type":"message-end"', '"delta":{"error":"Internal server error","finish_reason":"ERROR"}'),
    DONE,
)

STREAMS = {
    "cohere": Stream(Dialect.COHERE, COHERE, Usage(9, 4)),
    "cohere fails": Stream(Dialect.COHERE, COHERE_FAILS, None, failed=True),
    "a stored response": Stream(Dialect.STORED, RESPONSES, None),
    "chat": Stream(Dialect.CHAT, CHAT, Usage(36, 8), usage_chunk=6),
    "tools": Stream(Dialect.CHAT, TOOLS, Usage(120, 17), usage_chunk=6),
    "reasoning": Stream(Dialect.CHAT, REASONING, Usage(5, 4), usage_chunk=4),
    "continuous usage": Stream(Dialect.CHAT, CONTINUOUS, Usage(3, 2), usage_chunk=2),
    "usage null": Stream(Dialect.CHAT, USAGE_NULL, Usage(3, 2), usage_chunk=2),
    "chat without usage": Stream(Dialect.CHAT, (*CHAT[:6], DONE), None),
    "chat fails": Stream(Dialect.CHAT, CHAT_FAILS, None, failed=True),
    "chat cut off": Stream(Dialect.CHAT, CHAT[:3], None, ended=False),
    "CRLF": Stream(Dialect.CHAT, CRLF, Usage(36, 8), usage_chunk=6),
    "CR": Stream(Dialect.CHAT, CR, Usage(36, 8), usage_chunk=6),
    "completions": Stream(Dialect.COMPLETIONS, COMPLETIONS, Usage(6, 2), usage_chunk=2),
    "completions at once": Stream(Dialect.COMPLETIONS, COMPLETIONS_AT_ONCE, Usage(6, 2)),
    "responses": Stream(Dialect.RESPONSES, RESPONSES, Usage(36, 8)),
    "responses incomplete": Stream(Dialect.RESPONSES, RESPONSES_INCOMPLETE, Usage(36, 8)),
    "responses fail": Stream(Dialect.RESPONSES, RESPONSES_FAIL, None, failed=True),
    "responses cut off": Stream(Dialect.RESPONSES, RESPONSES[:-1], None, ended=False),
    "messages": Stream(Dialect.MESSAGES, MESSAGES, Usage(36, 8)),
    "messages fail": Stream(Dialect.MESSAGES, MESSAGES_FAIL, None, ended=False, failed=True),
    "transcription": Stream(Dialect.PLAIN, TRANSCRIPTION, Usage(9, 1), usage_chunk=1),
}
