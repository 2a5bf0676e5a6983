"""Errors, as the official clients read them."""

import json
from collections.abc import Callable, Iterator
from typing import Any, get_args

import anthropic
import httpx2
import openai
import pytest
from anthropic.types.shared import ErrorType
from openai.types.responses import ResponseErrorEvent

from sluicegate.dialects.grammars import GRAMMARS
from sluicegate.exchange import Dialect

ALL_STATUSES = (400, 401, 402, 403, 404, 408, 409, 413, 418, 422, 429, 500, 502, 503, 504, 529)


def answering(status: int, content_type: str, body: bytes) -> Iterator[httpx2.Client]:
    def handle(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, headers={"content-type": content_type}, content=body)

    with httpx2.Client(transport=httpx2.MockTransport(handle)) as client:
        yield client


def ask_openai(http: httpx2.Client, dialect: Dialect, stream: bool) -> list[Any]:
    client = openai.OpenAI(api_key="k", base_url="http://gate/v1", http_client=http, max_retries=0)
    calls: dict[Dialect, Callable[[], Any]] = {
        Dialect.CHAT: lambda: client.chat.completions.create(model="m", messages=[], stream=stream),
        Dialect.COMPLETIONS: lambda: client.completions.create(model="m", prompt="p", stream=stream),
        Dialect.RESPONSES: lambda: client.responses.create(model="m", input="p", stream=stream),
        Dialect.PLAIN: lambda: client.embeddings.create(model="m", input="p"),
    }
    return list(calls[dialect]())


def ask_anthropic(http: httpx2.Client, stream: bool) -> list[Any]:
    client = anthropic.Anthropic(api_key="k", base_url="http://gate", http_client=http, max_retries=0)
    return list(client.messages.create(model="m", max_tokens=1, messages=[], stream=stream))


@pytest.mark.parametrize("dialect", [Dialect.CHAT, Dialect.COMPLETIONS, Dialect.RESPONSES, Dialect.PLAIN])
@pytest.mark.parametrize(
    ("status", "kind", "raised"),
    [
        (400, "invalid_request_error", openai.BadRequestError),
        (401, "invalid_request_error", openai.AuthenticationError),
        (413, "invalid_request_error", openai.APIStatusError),
        (429, "rate_limit_error", openai.RateLimitError),
        (500, "server_error", openai.InternalServerError),
        (502, "server_error", openai.InternalServerError),
        (503, "service_unavailable_error", openai.InternalServerError),
        (504, "server_error", openai.InternalServerError),
    ],
)
def test_openais_client_understands_an_error_body(
    dialect: Dialect, status: int, kind: str, raised: type[openai.APIStatusError]
) -> None:
    body = GRAMMARS[dialect].error_body(status, 'say "please"', "shed_busy")
    assert json.loads(body) == {
        "error": {"message": 'say "please"', "type": kind, "param": None, "code": "shed_busy"},
    }
    for http in answering(status, "application/json", body):
        with pytest.raises(raised) as caught:
            ask_openai(http, dialect, stream=False)
        assert (caught.value.type, caught.value.code, caught.value.param) == (kind, "shed_busy", None)
        assert 'say "please"' in caught.value.message


def test_a_code_may_be_missing() -> None:
    assert json.loads(GRAMMARS[Dialect.CHAT].error_body(400, "m", "invalid"))["error"]["code"] == "invalid"


@pytest.mark.parametrize(
    ("status", "kind", "raised"),
    [
        (400, "invalid_request_error", anthropic.BadRequestError),
        (401, "authentication_error", anthropic.AuthenticationError),
        (404, "not_found_error", anthropic.NotFoundError),
        (413, "request_too_large", anthropic.ContentTooLargeError),
        (418, "invalid_request_error", anthropic.APIStatusError),
        (429, "rate_limit_error", anthropic.RateLimitError),
        (500, "api_error", anthropic.InternalServerError),
        (502, "api_error", anthropic.InternalServerError),
        (503, "overloaded_error", anthropic.ServiceUnavailableError),
        (504, "timeout_error", anthropic.GatewayTimeoutError),
        (529, "overloaded_error", anthropic.OverloadedError),
    ],
)
def test_anthropics_client_understands_an_error_body(
    status: int, kind: str, raised: type[anthropic.APIStatusError]
) -> None:
    body = GRAMMARS[Dialect.MESSAGES].error_body(status, 'say "please"', "shed_busy")
    assert json.loads(body) == {"type": "error", "error": {"type": kind, "message": 'say "please"'}}
    for http in answering(status, "application/json", body):
        with pytest.raises(raised) as caught:
            ask_anthropic(http, stream=False)
        assert (caught.value.type, caught.value.api_message) == (kind, 'say "please"')


def test_anthropics_types_are_ones_that_its_client_knows() -> None:
    known = {*get_args(ErrorType), "request_too_large"}  # its documentation has the last one, its client does not
    for status in ALL_STATUSES:
        assert json.loads(GRAMMARS[Dialect.MESSAGES].error_body(status, "m", "invalid"))["error"]["type"] in known


CHAT_CHUNK = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[]}\n\n'
TEXT_CHUNK = b'data: {"id":"c","object":"text_completion","created":1,"model":"m","choices":[]}\n\n'
DELTA = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"x","item_id":"i"}\n\n'
STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'


@pytest.mark.parametrize(
    ("dialect", "before"),
    [(Dialect.CHAT, CHAT_CHUNK), (Dialect.COMPLETIONS, TEXT_CHUNK), (Dialect.RESPONSES, DELTA)],
)
def test_openais_client_raises_where_the_stream_breaks(dialect: Dialect, before: bytes) -> None:
    stream = before + GRAMMARS[dialect].error_event(504, "line 1\nline 2", "timeout_idle", 3)
    for http in answering(200, "text/event-stream", stream):
        with pytest.raises(openai.APIError, match="line 1\nline 2") as caught:
            ask_openai(http, dialect, stream=True)
        assert (caught.value.type, caught.value.code) == ("server_error", "timeout_idle")


def test_anthropics_client_raises() -> None:
    """Anthropic's client raises where the stream breaks."""
    stream = STOP + GRAMMARS[Dialect.MESSAGES].error_event(503, "line 1\nline 2", "timeout_idle", 3)
    for http in answering(200, "text/event-stream", stream):
        with pytest.raises(anthropic.APIStatusError) as caught:
            ask_anthropic(http, stream=True)
        assert (caught.value.type, caught.value.api_message) == ("overloaded_error", "line 1\nline 2")


def test_coheres_errors() -> None:
    """Cohere's readers look for `message`, in a stream for the finish reason; OpenAI's for `error`."""
    grammar = GRAMMARS[Dialect.COHERE]
    error = {"message": "m", "type": "rate_limit_error", "param": None, "code": "shed_busy"}
    assert json.loads(grammar.error_body(429, "m", "shed_busy")) == {"message": "m", "error": error}
    event = grammar.error_event(502, "m", "engine_truncated", 0)
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    delta = {"finish_reason": "ERROR", "error": "m"}
    assert json.loads(event.removeprefix(b"data: ")) == {"type": "message-end", "delta": delta}


def test_a_responses_error_event_is_the_documented_one() -> None:
    name, data = (
        GRAMMARS[Dialect.RESPONSES].error_event(502, "m", "engine_truncated", sequence_number=7).split(b"\n", 1)
    )
    assert name == b"event: error"
    text = data.removeprefix(b"data: ")
    assert set(json.loads(text)) == {"type", "code", "message", "param", "sequence_number", "error"}
    event = ResponseErrorEvent.model_validate_json(text)
    assert (event.code, event.message, event.param, event.sequence_number) == ("engine_truncated", "m", None, 7)


@pytest.mark.parametrize("dialect", list(Dialect))
def test_an_error_event_is_one_whole_event(dialect: Dialect) -> None:
    event = GRAMMARS[dialect].error_event(500, "a\r\n\r\nb\n\nc", "engine_error", 3)
    assert event.endswith(b"\n\n")
    assert event.count(b"\n\n") == 1
    assert b"\r" not in event
    assert b"[DONE]" not in event
