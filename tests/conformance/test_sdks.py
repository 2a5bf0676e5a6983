"""What programs see through the official SDKs: a broken stream raises, and never passes for a whole one.

They run in a thread of their own, as in most programs that use them.
"""

from collections.abc import Callable

import anthropic
import httpx2
import openai
import pytest
import trio

from tests.certificates import trusting
from tests.conformance.subject import PATIENCE_S, FakeSubject
from tests.engine_contract.target import Target
from tests.fakes.script import BEFORE_HEAD, Behaviour, Fault, Kind

QUESTION = "Where does the water go?"

#: Slow enough for events to come one by one.
ONE_BY_ONE = Behaviour(token_interval_s=0.003)


def open_openai(gateway: Target) -> openai.OpenAI:
    http = httpx2.Client(transport=httpx2.HTTPTransport(uds=gateway.socket_path, verify=trusting()))
    return openai.OpenAI(
        base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S, http_client=http
    )


def chat(gateway: Target, pieces: list[str]) -> None:
    with open_openai(gateway) as client:
        stream = client.chat.completions.create(
            model=gateway.model, messages=[{"role": "user", "content": QUESTION}], stream=True
        )
        for chunk in stream:
            pieces += [choice.delta.content or "" for choice in chunk.choices]


def completions(gateway: Target, pieces: list[str]) -> None:
    with open_openai(gateway) as client:
        for chunk in client.completions.create(model=gateway.model, prompt=QUESTION, stream=True):
            pieces += [choice.text for choice in chunk.choices]


def responses(gateway: Target, pieces: list[str]) -> None:
    with open_openai(gateway) as client:
        stream = client.responses.create(model=gateway.model, input=QUESTION, stream=True)
        pieces.extend(event.delta for event in stream if event.type == "response.output_text.delta")


def messages(gateway: Target, pieces: list[str]) -> None:
    http = httpx2.Client(transport=httpx2.HTTPTransport(uds=gateway.socket_path, verify=trusting()))
    with anthropic.Anthropic(
        base_url=gateway.url, api_key="none", max_retries=0, timeout=PATIENCE_S, http_client=http
    ) as client:
        asked: list[anthropic.types.MessageParam] = [{"role": "user", "content": QUESTION}]
        with client.messages.stream(model=gateway.model, messages=asked, max_tokens=100) as stream:
            pieces.extend(stream.text_stream)


Ask = Callable[[Target, list[str]], None]
every_sdk = pytest.mark.parametrize("ask", [chat, completions, responses, messages])


async def run(ask: Ask, subject: FakeSubject) -> str:
    """What the program got, until it ended or raised."""
    pieces: list[str] = []
    with trio.fail_after(PATIENCE_S):
        await trio.to_thread.run_sync(ask, subject.gateway, pieces)
    return "".join(pieces)


@every_sdk
async def test_a_whole_stream_is_whole(subject: FakeSubject, ask: Ask) -> None:
    text = await run(ask, subject)
    assert len(text.split()) == 7, "eight tokens, the last of which has no text"


@every_sdk
async def test_a_stream_that_breaks_raises(subject: FakeSubject, ask: Ask) -> None:
    subject.fake.script.default = ONE_BY_ONE.but(fault=Fault(Kind.CLOSE, 6))
    with pytest.raises((openai.APIError, anthropic.APIError), match="broke off") as caught:
        await run(ask, subject)
    assert not isinstance(caught.value, openai.APIConnectionError | anthropic.APIConnectionError), (
        "it was told, not cut"
    )


@every_sdk
async def test_a_stream_that_never_begins_raises_by_its_status(subject: FakeSubject, ask: Ask) -> None:
    subject.fake.script.default = Behaviour(fault=Fault(Kind.RESET, BEFORE_HEAD))
    with pytest.raises((openai.InternalServerError, anthropic.InternalServerError)):
        await run(ask, subject)
