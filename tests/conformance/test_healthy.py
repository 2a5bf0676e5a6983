"""A stream that goes well: the engine's events, all of them and nothing but them, in whatever form they come."""

import msgspec
import pytest

from tests.conformance.subject import WITH_DONE, FakeSubject, Subject, final_frame, plain, without_stamp
from tests.engine_contract.raw import RawAnswer, RawClient
from tests.engine_contract.target import DIALECTS
from tests.fakes.script import Behaviour, Fault, Framing, Kind, Wire, Writes

every_dialect = pytest.mark.parametrize("dialect", DIALECTS)
ASKED = {"stream_options": {"include_usage": True}}

FORMS = [
    Wire(writes=Writes.BYTES),
    Wire(writes=Writes.ALL),
    Wire(writes=Writes.BURST),
    Wire(events_per_chunk=3),
    Wire(chunk_bytes=7),
    Wire(framing=Framing.LENGTH),
    Wire(framing=Framing.UNTIL_CLOSE),
    Wire(chunk_extension=";a=b", trailers=(("x-checksum", "1"),)),
]


def check_whole(dialect: str, answer: RawAnswer) -> None:
    """It ended as the dialect wants it, once."""
    assert (answer.status, answer.complete) == (200, True)
    assert (answer.header("content-type") or "").startswith("text/event-stream")
    assert answer.body.endswith(b"\n\n")
    done = [event for event in answer.events() if event == b"data: [DONE]"]
    assert len(done) == (dialect in WITH_DONE)
    *_, last = plain(answer.events())
    if dialect in WITH_DONE:
        assert last == b"data: [DONE]"
    else:
        assert last.startswith(b"event: message_stop" if dialect == "messages" else b"event: response.completed")


@every_dialect
async def test_the_engines_events_and_no_others(subject: FakeSubject, dialect: str) -> None:
    direct, answer = await subject.directly(dialect), await subject.stream(dialect)
    check_whole(dialect, answer)
    assert plain(answer.events()) == plain(direct.events())


@every_dialect
async def test_the_same_in_whatever_form_the_engine_sends_it(subject: FakeSubject, dialect: str) -> None:
    few = Behaviour(tokens=3, token_interval_s=0.002)
    subject.fake.script.next(few)
    direct = await subject.directly(dialect)
    for wire in FORMS:
        answer = await subject.meeting(few.but(wire=wire), dialect)
        check_whole(dialect, answer)
        assert plain(answer.events()) == plain(direct.events()), wire


@every_dialect
async def test_comments_and_unknown_events_pass(subject: FakeSubject, dialect: str) -> None:
    unknown = Fault(Kind.HUGE_EVENT, at=3, size=50)
    behaviour = Behaviour(token_interval_s=0.003, fault=unknown, wire=Wire(comments=True))
    subject.fake.script.next(behaviour)
    direct = await subject.directly(dialect)
    answer = await subject.meeting(behaviour, dialect)
    check_whole(dialect, answer)
    assert plain(answer.events()) == plain(direct.events())
    assert sum(b'"padding":"' in event for event in answer.events()) == 1
    comments = [event for event in direct.events() if event == b": keep-alive"]
    # Before each event there is one, also before a usage chunk that the client does not see.
    assert [e for e in answer.events() if e == b": keep-alive"][: len(comments)] == comments


@every_dialect
async def test_an_event_of_megabytes_passes(subject: FakeSubject, dialect: str) -> None:
    behaviour = Behaviour(token_interval_s=0.003, fault=Fault(Kind.HUGE_EVENT, at=3, size=3 << 20))
    answer = await subject.meeting(behaviour, dialect)
    check_whole(dialect, answer)
    assert b'"padding":"' + b"x" * (3 << 20) in answer.body


@every_dialect
async def test_the_connection_takes_the_next_request(subject: FakeSubject, dialect: str) -> None:
    async with subject.client() as client:
        answers = [await client.ask(subject.question(dialect)) for _ in range(3)]
    for answer in answers:
        check_whole(dialect, answer)
        assert plain(answer.events()) == plain(answers[0].events())


@pytest.mark.parametrize("dialect", WITH_DONE)
async def test_usage_is_for_those_who_asked_for_it(subject: FakeSubject, dialect: str) -> None:
    silent, answer = await subject.stream(dialect), await subject.stream(dialect, **ASKED)
    direct = await subject.directly(dialect, **ASKED)
    assert b'"usage"' not in silent.body
    check_whole(dialect, answer)
    assert without_stamp(plain(answer.events())) == plain(direct.events())


@every_dialect
async def test_the_final_frame(subject: FakeSubject, dialect: str) -> None:
    """Where it is off, the bytes behind the engine's last event are none."""
    answer = await subject.stream(dialect)
    if not subject.final_frame:
        assert final_frame(answer) == {}
        assert not any(event.startswith(b": sluicegate") for event in answer.events())
        return
    frame = final_frame(answer)
    assert list(frame) == [
        "prompt_tokens", "completion_tokens", "ttft_s", "latency_s", "tokens_per_second",
    ]  # fmt: skip
    assert frame["completion_tokens"] == 8
    assert 0 < frame["ttft_s"] <= frame["latency_s"]
    assert frame["tokens_per_second"] == pytest.approx(8 / frame["latency_s"], rel=0.05)
    if dialect in WITH_DONE:
        asked = await subject.stream(dialect, **ASKED)
        assert final_frame(asked) == {}, "it is in the usage chunk"
        (chunk,) = (msgspec.json.decode(data) for data in asked.data() if b'"choices":[],' in data)
        assert chunk["usage"]["completion_tokens"] == 8
        assert list(chunk["sluicegate"]) == ["ttft_s", "latency_s", "tokens_per_second"]


# --- with the real engine ---


def text_of(dialect: str, answer: RawAnswer) -> str:
    """What the model said."""
    text = ""
    for data in answer.data():
        if data == b"[DONE]":
            continue
        chunk = msgspec.json.decode(data)
        if dialect in WITH_DONE:
            text += "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in chunk["choices"])
        elif chunk["type"] == "content_block_delta":
            text += chunk["delta"].get("text", "")
        elif chunk["type"] == "response.output_text.delta":
            text += chunk["delta"]
    return text


@pytest.mark.engine
@every_dialect
async def test_the_real_engines_words(real: Subject, dialect: str) -> None:
    direct, answer = await real.directly(dialect), await real.stream(dialect)
    check_whole(dialect, answer)
    assert text_of(dialect, answer) == text_of(dialect, direct) != ""
    assert final_frame(answer)["completion_tokens"] > 0


@pytest.mark.engine
@pytest.mark.parametrize("dialect", WITH_DONE)
async def test_the_real_engines_usage(real: Subject, dialect: str) -> None:
    direct, answer = await real.directly(dialect, **ASKED), await real.stream(dialect, **ASKED)
    check_whole(dialect, answer)
    (theirs,) = (msgspec.json.decode(data)["usage"] for data in direct.data() if b'"choices":[],' in data)
    (ours,) = (msgspec.json.decode(data)["usage"] for data in answer.data() if b'"choices":[],' in data)
    assert ours == theirs
    assert b'"usage"' not in (await real.stream(dialect)).body


@pytest.mark.engine
async def test_real_engine_on_one_connection(real: Subject) -> None:
    """The real engine answers one dialect after another on one connection."""
    async with await real.gateway.connect() as client:
        await _one_after_the_other(real, client)


async def _one_after_the_other(real: Subject, client: RawClient) -> None:
    for dialect in DIALECTS:
        check_whole(dialect, await client.ask(real.question(dialect, limit=8)))
