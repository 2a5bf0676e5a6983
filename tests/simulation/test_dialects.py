"""What each protocol's own clients get: refusals, broken streams, usage. And what the engine gets of a request."""

from typing import Any

import msgspec
import pytest
from trio.testing import MockClock

from sluicegate.config.schema import FinalFrame
from sluicegate.outcome import Outcome
from sluicegate.relay.forward import TAIL_S
from tests.fakes.engine import MODEL, open_engine
from tests.fakes.script import AT_END, Behaviour, Fault, Kind
from tests.harness import CHAT, QUESTIONS, question, simulate
from tests.simulation.visiting import answer_with, visit

COMPLETIONS, RESPONSES, MESSAGES = "/v1/completions", "/v1/responses", "/v1/messages"
#: The two whose engine is asked for a usage chunk.
ON_REQUEST = [CHAT, COMPLETIONS]
#: Without a dialect of their own: OpenAI's errors.
PLAIN: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": "x"},
    "/v1/rerank": {"query": "x", "documents": ["x"]},
    "/v1/score": {"text_1": "x", "text_2": "x"},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [0]},
}


@pytest.mark.parametrize("path", [*QUESTIONS, *PLAIN, "/v1/messages/count_tokens"])
async def test_a_refusal_is_an_error_object_of_the_dialect(autojump_clock: MockClock, path: str) -> None:
    async with open_engine() as engine:
        engine.refusing = True
        async with simulate(engine) as running:
            visitor = await visit(running, {"model": "m"}, path)
            assert visitor.client.status == 503
            assert visitor.client.header(b"content-type") == b"application/json"
            message = visitor.json["error"]["message"]
            assert "No engine can take requests now" in message
            if path.startswith(MESSAGES):
                assert visitor.json == {"type": "error", "error": {"type": "overloaded_error", "message": message}}
            else:
                error = {"message": message, "type": "service_unavailable_error", "param": None}
                assert visitor.json == {"error": {**error, "code": "engine_unavailable"}}


@pytest.mark.parametrize("path", QUESTIONS)
@pytest.mark.parametrize("kind", [Kind.CLOSE, Kind.RESET, Kind.TRUNCATE, Kind.GARBAGE])
async def test_broken_stream_ends_with_an_error_event(autojump_clock: MockClock, path: str, kind: Kind) -> None:
    """The client gets the complete events so far and then its dialect's error event."""
    async with open_engine() as engine, simulate(engine) as running:
        engine.script.next(Behaviour(token_interval_s=0.1, fault=Fault(kind, 5)))
        visitor = await visit(running, question(path, stream=True), path)
        assert (visitor.outcome, visitor.client.status) == ("engine_truncated", 200)
        if kind is not Kind.GARBAGE:  # what comes in one read with garbage is given up with it
            assert len(visitor.events) == 6
        *healthy, last = visitor.data()
        assert not any("error" in event for event in healthy)
        check_error_event(path, visitor.events[-1], last, "engine_truncated")
        assert visitor.client.finished
        assert b": sluicegate" not in visitor.client.body, "the seal of completeness"
        running.assert_at_rest()


def check_error_event(path: str, event: bytes, data: dict[str, Any], code: str) -> None:
    message = data["message" if path == RESPONSES else "error"]
    match path:
        case "/v1/messages":
            assert event.startswith(b"event: error\n")
            assert data == {"type": "error", "error": {"type": "api_error", "message": message["message"]}}
        case "/v1/responses":
            assert event.startswith(b"event: error\n")
            assert (data["type"], data["code"], data["error"]["code"]) == ("error", code, code)
        case _:
            assert event.startswith(b"data: ")
            assert (data["error"]["code"], data["error"]["type"]) == (code, "server_error")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, MESSAGES])
async def test_the_engines_own_error_event_is_the_last_one(autojump_clock: MockClock, path: str) -> None:
    async with open_engine() as engine, simulate(engine) as running:
        engine.script.next(Behaviour(token_interval_s=0.1, fault=Fault(Kind.ERROR_EVENT, 3)))
        visitor = await visit(running, question(path, stream=True), path)
        assert visitor.outcome == "engine_error"
        errors = [data for data in visitor.data() if "error" in data]
        assert len(errors) == 1, "one error, the engine's"
        assert "nternal server error" in str(errors)
        assert visitor.log["detail"] == "The engine reported an error in its stream: Internal server error"
        assert visitor.client.finished
        running.assert_at_rest()


async def test_failed_responses_stream_gets_an_event(autojump_clock: MockClock) -> None:
    """vLLM's Responses stream breaks off when the engine fails, and the gateway adds the error event."""
    async with open_engine() as engine, simulate(engine) as running:
        engine.script.next(Behaviour(token_interval_s=0.1, fault=Fault(Kind.ERROR_EVENT, 3)))
        visitor = await visit(running, question(RESPONSES, stream=True), RESPONSES)
        assert visitor.outcome == "engine_truncated"
        check_error_event(RESPONSES, visitor.events[-1], visitor.data()[-1], "engine_truncated")


@pytest.mark.parametrize("path", QUESTIONS)
@pytest.mark.parametrize("kind", [Kind.CLOSE, Kind.RESET, Kind.STALL])
async def test_break_after_the_end_is_served(autojump_clock: MockClock, path: str, kind: Kind) -> None:
    """A stream that breaks after its last event counts as complete."""
    async with open_engine() as engine, simulate(engine) as running:
        whole = await visit(running, question(path, stream=True), path)
        engine.script.next(Behaviour(fault=Fault(kind, AT_END)))
        visitor = await visit(running, question(path, stream=True), path)
        assert visitor.outcome == "served"
        assert len(visitor.events) == len(whole.events)
        assert visitor.client.finished
        assert visitor.took_s == (TAIL_S if kind is Kind.STALL else 0.0)
        running.assert_at_rest()


@pytest.mark.parametrize("path", ON_REQUEST)
async def test_a_proper_end_without_done_is_not_complete(autojump_clock: MockClock, path: str) -> None:
    async with open_engine() as engine, simulate(engine) as running:
        engine.script.next(Behaviour(done=False))
        visitor = await visit(running, question(path, stream=True), path)
        assert visitor.outcome == "engine_truncated"
        check_error_event(path, visitor.events[-1], visitor.data()[-1], "engine_truncated")


async def test_an_event_too_large_to_hold_passes_on_in_pieces(autojump_clock: MockClock) -> None:
    async with open_engine() as engine, simulate(engine) as running:
        engine.script.next(Behaviour(fault=Fault(Kind.HUGE_EVENT, 2, size=3 << 20)))
        visitor = await visit(running, question(stream=True))
        assert visitor.outcome == "served"
        assert max(map(len, visitor.events)) > 3 << 20


@pytest.mark.parametrize("ends", [b"", b"0\r\n\r\n"], ids=["broken off", "ended"])
async def test_error_event_after_half_an_event(autojump_clock: MockClock, ends: bytes) -> None:
    """A blank line ends the engine's half event, so that the error event is an event of its own."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    half = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * (2 << 20)
    async with open_engine() as engine, simulate(engine) as running:
        answer_with(running, head, b"%x\r\n%s\r\n%s" % (len(half), half, ends))
        visitor = await visit(running, question(stream=True))
        assert visitor.outcome == "engine_truncated"
        begun, error = visitor.events
        assert begun == half, "it is ended with a blank line of its own"
        assert error.startswith(b'data: {"error":')


@pytest.mark.parametrize("path", QUESTIONS)
@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_are_the_engines_own_count(autojump_clock: MockClock, path: str, stream: bool) -> None:
    async with open_engine() as engine, simulate(engine) as running:
        engine.script.default = Behaviour(tokens=11, token_interval_s=0.5, prefill_s=2.0)
        visitor = await visit(running, question(path, stream=stream), path)
        assert visitor.outcome == "served"
        counted = (visitor.log["prompt_tokens"], visitor.log["completion_tokens"])
        assert counted == (engine.prompt_tokens, engine.generation_tokens)
        assert counted[1] == 11
        assert visitor.log["tokens_per_s"] == pytest.approx(11 / 7.0, abs=0.001)
        if stream:
            assert visitor.log["ttft_s"] == pytest.approx(2.0)


@pytest.mark.parametrize("path", ON_REQUEST)
async def test_unrequested_usage_is_hidden(autojump_clock: MockClock, path: str) -> None:
    """The usage that the client did not ask for is taken out, and a comment carries the counts."""
    async with open_engine() as engine, simulate(engine) as running:
        engine.script.default = Behaviour(prefill_s=1.0, token_interval_s=0.5)
        visitor = await visit(running, question(path, stream=True), path)
        sent = msgspec.json.decode(engine.posts()[-1].body)
        assert sent == question(path, stream=True) | {"stream_options": {"include_usage": True}}
        assert not any("usage" in data for data in visitor.data())
        body = question(path, stream=True, stream_options={"continuous_usage_stats": True})
        continuous = await visit(running, body, path)
        assert not any("usage" in data for data in continuous.data()), "alone it has no effect at vLLM"
        assert all(data == "[DONE]" or data["choices"] for data in visitor.data())
        *_, done, comment = visitor.events
        assert done == b"data: [DONE]"
        assert msgspec.json.decode(comment.removeprefix(b": sluicegate ")) == {
            "prompt_tokens": visitor.log["prompt_tokens"],
            "completion_tokens": 8,
            "ttft_s": 1.0,
            "latency_s": 4.5,
            "tokens_per_second": round(8 / 4.5, 2),
        }


@pytest.mark.parametrize("path", ON_REQUEST)
async def test_requested_usage_is_stamped(autojump_clock: MockClock, path: str) -> None:
    """The usage that the client asked for is passed on with the gateway's timings."""
    async with open_engine() as engine, simulate(engine) as running:
        body = question(path, stream=True, stream_options={"include_usage": True})
        visitor = await visit(running, body, path)
        assert engine.posts()[-1].json() == body
        *_, usage, done = visitor.data()
        assert done == "[DONE]"
        assert usage["usage"]["completion_tokens"] == visitor.log["completion_tokens"] == 8
        assert set(usage["sluicegate"]) >= {"latency_s"}
        assert b": sluicegate" not in visitor.client.body


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
async def test_dialects_with_usage_pass_unchanged(autojump_clock: MockClock, path: str) -> None:
    """Dialects that always carry usage pass unchanged, with a comment at the end."""
    async with open_engine() as engine, simulate(engine) as running:
        visitor = await visit(running, question(path, stream=True), path)
        assert msgspec.json.decode(engine.posts()[-1].body) == question(path, stream=True)
        *events, comment = visitor.events
        assert comment.startswith(b": sluicegate {")
        assert b"event: response.completed" in events[-1] or b"event: message_stop" in events[-1]


async def test_missing_model_is_filled_in(autojump_clock: MockClock) -> None:
    """A request that names no model gets the configured one."""
    async with open_engine() as engine, simulate(engine, model_name=MODEL) as running:
        without = {name: value for name, value in question().items() if name != "model"}
        visitor = await visit(running, without)
        assert visitor.outcome == "served"
        assert engine.posts()[-1].json() == without | {"model": MODEL}
        assert visitor.log.get("model") is None, "none was asked for"


async def test_or_the_engines_first_one_if_none_is_configured(autojump_clock: MockClock) -> None:
    async with open_engine(model="some-model") as engine, simulate(engine) as running:
        visitor = await visit(running, question() | {"model": None})
        assert visitor.outcome == "served"
        assert engine.posts()[-1].json() == question() | {"model": "some-model"}


async def test_complete_body_passes_unchanged(autojump_clock: MockClock) -> None:
    """A body in which nothing is missing reaches the engine byte for byte."""
    raw = b'{ "model":"fake-model",\n "messages":[{"role":"user","content":"\\u00fc \xc3\xbc"}],"x":1.0,"x":2 }'
    async with open_engine() as engine, simulate(engine) as running:
        headers = [(b"authorization", b"Bearer k"), (b"cookie", b"c"), (b"x-request-id", b"ignored here")]
        visitor = await visit(running, raw, headers=headers)
        assert visitor.outcome == "served"
        (seen,) = engine.posts()
        assert seen.body == raw
        assert seen.header("x-request-id") == visitor.request.id
        assert (seen.header("authorization"), seen.header("cookie")) == ("Bearer k", None)
        assert seen.header("content-length") == str(len(raw))


async def test_an_opaque_body_is_not_looked_at(autojump_clock: MockClock) -> None:
    raw = b"--x\r\n\x00\xff not JSON \r\n--x--\r\n"
    async with open_engine() as engine, simulate(engine) as running:
        headers = [(b"content-type", b"multipart/form-data; boundary=x")]
        visitor = await visit(running, raw, "/v1/audio/transcriptions", headers=headers)
        assert visitor.client.status == 400, "the harness adds a JSON type, which the engine sees first"
        assert engine.posts()[-1].body == raw


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[1]", b'{"stream": [}', b'{"model": 7}', b'{"model": "\xff"}'])
async def test_what_is_no_request_is_refused_without_a_slot(autojump_clock: MockClock, body: bytes) -> None:
    async with open_engine() as engine, simulate(engine) as running:
        visitor = await visit(running, body)
        assert visitor.refused(Outcome.INVALID, 400)
        assert engine.posts() == []
        assert running.gateway.admission.view().slot_time_s is None


@pytest.mark.parametrize("path", QUESTIONS)
@pytest.mark.parametrize(
    ("setting", "asked", "there"),
    [
        ("comment", None, True),
        ("off", None, False),
        ("comment", b"off", False),
        ("comment", b" OFF\t", False),
        ("off", b"Comment", True),
        ("comment", b"none", True),
        ("off", b"", False),
    ],
)
async def test_final_frame_on_and_off(
    autojump_clock: MockClock, path: str, setting: str, asked: bytes | None, there: bool
) -> None:
    """By the setting, or by the request's own field where that says one of the two words."""
    headers = [] if asked is None else [(b"x-sluicegate-final-frame", asked)]
    async with open_engine() as engine, simulate(engine, final_frame=FinalFrame(setting)) as running:
        visitor = await visit(running, question(path, stream=True), path, headers=headers)
        assert (visitor.outcome, visitor.client.finished) == ("served", True)
        assert visitor.events[-1].startswith(b": sluicegate {") is there
        assert visitor.client.body.count(b": sluicegate") == there
