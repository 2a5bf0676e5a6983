"""Routes beside the four dialects: what the engine answers there, and nothing else."""

from typing import Any

import pytest

from tests.conformance.subject import FakeSubject, plain
from tests.engine_contract.raw import RawAnswer, get, post
from tests.fakes.script import Behaviour, Fault, Kind

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Where to?"}], "max_tokens": 16}

#: Those that stream. The events of both end with [DONE].
STREAMS = ["/invocations", "/cohere/v2/chat"]

#: Those that answer in one piece.
ANSWERS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions/batch": {"messages": [CHAT["messages"]] * 2},
    "/v1/embeddings": {"input": ["x", "y"]},
    "/v2/embed": {"texts": ["x"]},
    **{path: {"query": "x", "documents": ["x", "y"]} for path in ("/rerank", "/v1/rerank", "/v2/rerank")},
    **{path: {"text_1": "x", "text_2": ["x", "y"]} for path in ("/score", "/v1/score")},
    "/classify": {"input": "x"},
    "/pooling": {"input": "x"},
    "/generative_scoring": {"query": "x", "items": ["y"], "label_token_ids": [1]},
    "/v1/systemone": {"state": "x", "questions": ["y"]},
    "/v1/decisions": {"input": "x"},
    "/tokenize": {"prompt": "x y"},
    "/detokenize": {"tokens": [1]},
}


async def _both(subject: FakeSubject, request: bytes) -> tuple[RawAnswer, RawAnswer]:
    """The engine's answer, and the one through the gateway."""
    return await subject.engine.ask(request), await subject.ask(request)


@pytest.mark.parametrize("path", STREAMS)
async def test_a_stream_has_the_engines_events(subject: FakeSubject, path: str) -> None:
    direct, answer = await _both(subject, post(path, CHAT | {"model": subject.gateway.model, "stream": True}))
    assert (answer.status, answer.complete) == (200, True)
    assert answer.events()
    assert plain(answer.events()) == plain(direct.events())


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("kind", [Kind.CLOSE, Kind.RESET, Kind.ERROR_EVENT])
async def test_a_broken_stream_says_so(subject: FakeSubject, path: str, kind: Kind) -> None:
    """In an event of the engine's dialect, without [DONE]."""
    subject.fake.script.next(Behaviour(token_interval_s=0.003, fault=Fault(kind, 4)))
    answer = await subject.ask(post(path, CHAT | {"model": subject.gateway.model, "stream": True}))
    assert (answer.status, answer.complete) == (200, True)
    assert b"[DONE]" not in answer.body
    assert b'"error":' in answer.data()[-1]
    assert (b'"type":"message-end"' in answer.data()[-1]) is path.startswith("/cohere")


async def test_a_stored_response(subject: FakeSubject) -> None:
    """Whole and as a stream, as the engine tells it."""
    made: Any = (await subject.ask(post("/v1/responses", {"model": subject.gateway.model, "input": "Hm?"}))).json()
    for target in (f"/v1/responses/{made['id']}", f"/v1/responses/{made['id']}?stream=true"):
        direct, answer = await _both(subject, get(target))
        assert (answer.status, answer.complete) == (200, True)
        assert answer.json() == made if "?" not in target else plain(answer.events()) == plain(direct.events()) != []


@pytest.mark.parametrize("path", ANSWERS)
async def test_an_answer_in_one_piece(subject: FakeSubject, path: str) -> None:
    direct, answer = await _both(subject, post(path, ANSWERS[path] | {"model": subject.gateway.model}))
    assert (direct.status, answer.status, answer.body) == (200, 200, direct.body)


async def test_version(subject: FakeSubject) -> None:
    direct, answer = await _both(subject, get("/version"))
    assert (answer.status, answer.body) == (200, direct.body)
