"""A stream that breaks: a proper refusal before its first byte, the dialect's own error event after, never a lie."""

import msgspec
import pytest
import trio

from tests.conformance.subject import (
    WITH_DONE,
    FakeSubject,
    check_broken,
    check_error,
    check_refused,
    final_frame,
    is_error_event,
    plain,
)
from tests.engine_contract.target import DIALECTS
from tests.fakes.script import BEFORE_FIRST_EVENT, BEFORE_HEAD, Behaviour, Fault, Kind

every_dialect = pytest.mark.parametrize("dialect", DIALECTS)

#: Ways in which an engine ends an exchange by itself. GARBAGE takes along what came in one read with it.
ENDS = [Kind.CLOSE, Kind.RESET, Kind.HALF_CLOSE, Kind.TRUNCATE, Kind.GARBAGE]

#: Slow enough for events to come one by one.
ONE_BY_ONE = Behaviour(token_interval_s=0.005)


# --- before the first byte ---


@every_dialect
@pytest.mark.parametrize("at", [BEFORE_HEAD, BEFORE_FIRST_EVENT], ids=["before its head", "before its first event"])
async def test_broken_before_the_first_event_is_refused(subject: FakeSubject, dialect: str, at: int) -> None:
    for kind in ENDS:
        check_refused(dialect, await subject.meeting(Behaviour(fault=Fault(kind, at)), dialect))


@every_dialect
async def test_an_engines_5xx_is_an_error_of_the_dialect(subject: FakeSubject, dialect: str) -> None:
    for status in (500, 502, 503):
        answer = await subject.meeting(Behaviour(fault=Fault(Kind.STATUS, status=status)), dialect)
        check_refused(dialect, answer)
        assert (answer.status == 503) is (status == 503), "overload stays what it is"


@every_dialect
async def test_silent_engine_is_refused_in_time(subject: FakeSubject, dialect: str) -> None:
    """An engine that sends no head costs its client a 504 after the first-token deadline."""
    if subject.first_token_s is None:
        pytest.skip("GATEWAY_FIRST_TOKEN_S is not set")
    with trio.fail_after(subject.first_token_s + 5):
        answer = await subject.meeting(Behaviour(fault=Fault(Kind.STALL, BEFORE_HEAD)), dialect)
    check_refused(dialect, answer)
    assert answer.status == 504
    await subject.fake.until(lambda: subject.fake.running == 0)


@every_dialect
async def test_an_engines_4xx_passes_unchanged(subject: FakeSubject, dialect: str) -> None:
    direct = await subject.directly(dialect, model="no-such-model")
    answer = await subject.stream(dialect, model="no-such-model")
    assert (answer.status, answer.body) == (direct.status, direct.body)
    assert answer.status == 404
    check_error(dialect, msgspec.json.decode(answer.body))


# --- after the first byte ---


@every_dialect
@pytest.mark.parametrize("kind", ENDS)
async def test_broken_within_the_stream_is_told_in_the_stream(subject: FakeSubject, dialect: str, kind: Kind) -> None:
    direct = (await subject.directly(dialect)).events()
    for at in (4, 1) if kind is not Kind.GARBAGE else (4,):
        answer = await subject.meeting(ONE_BY_ONE.but(fault=Fault(kind, at)), dialect)
        passed = check_broken(dialect, answer, direct)
        # A reset, and garbage in the same read, may take with them what the gateway has not read yet.
        assert passed <= at if kind in (Kind.RESET, Kind.GARBAGE) else passed == at


@every_dialect
async def test_an_engine_that_falls_silent_is_given_up_in_time(subject: FakeSubject, dialect: str) -> None:
    if subject.idle_s is None:
        pytest.skip("GATEWAY_IDLE_S is not set")
    direct = (await subject.directly(dialect)).events()
    with trio.fail_after(subject.idle_s + 5):
        answer = await subject.meeting(ONE_BY_ONE.but(fault=Fault(Kind.STALL, 4)), dialect)
    assert check_broken(dialect, answer, direct) == 4
    await subject.fake.until(lambda: subject.fake.running == 0)


@every_dialect
async def test_cut_off_at_any_byte_nothing_is_made_up(subject: FakeSubject, dialect: str) -> None:
    """Whichever byte of the engine's answer is its last one: refused, or broken and said so, or whole."""
    behaviour = Behaviour(tokens=2)
    subject.fake.script.next(behaviour)
    direct = await subject.directly(dialect)
    passed = []
    for at in range(1, len(direct.raw), max(1, len(direct.raw) // 80)):
        answer = await subject.meeting(behaviour.but(fault=Fault(Kind.CLOSE, at_byte=at)), dialect)
        if answer.status != 200:
            check_refused(dialect, answer)
            passed.append(0)
        elif plain(answer.events()) != plain(direct.events()):  # all but the end of the body may have come
            passed.append(check_broken(dialect, answer, direct.events()))
    assert passed == sorted(passed)
    assert len(set(passed)) > 2, "at the head, at the first event, and later"


@pytest.mark.parametrize("dialect", WITH_DONE)
async def test_a_stream_without_its_done_is_broken(subject: FakeSubject, dialect: str) -> None:
    """The engine's body ends in good order, but the stream does not: none is made up for it."""
    direct = (await subject.directly(dialect)).events()
    answer = await subject.meeting(ONE_BY_ONE.but(done=False), dialect)
    assert check_broken(dialect, answer, direct) == len(direct) - 1


@pytest.mark.parametrize("dialect", ["chat", "completions", "messages"])
async def test_error_of_the_engine_is_the_last_event(subject: FakeSubject, dialect: str) -> None:
    """The engine's own error event reaches the client, and nothing follows it."""
    behaviour = ONE_BY_ONE.but(fault=Fault(Kind.ERROR_EVENT, 4))
    subject.fake.script.next(behaviour)
    direct = await subject.directly(dialect)
    answer = await subject.meeting(behaviour, dialect)
    assert (answer.status, answer.complete) == (200, True)
    events = [event for event in plain(direct.events()) if event != b"data: [DONE]"]
    assert plain(answer.events()) == events
    assert [is_error_event(dialect, event) for event in events[:-1]] == [False] * 4
    assert b"nternal server error" in events[-1]
    assert not final_frame(answer)


async def test_an_engine_that_fails_a_response_just_closes(subject: FakeSubject) -> None:
    """vLLM 0.32 has no error event of its own on /v1/responses; the gateway's is the only one."""
    direct = (await subject.directly("responses")).events()
    answer = await subject.meeting(ONE_BY_ONE.but(fault=Fault(Kind.ERROR_EVENT, 4)), "responses")
    assert check_broken("responses", answer, direct) == 4


@every_dialect
async def test_the_next_request_is_served(subject: FakeSubject, dialect: str) -> None:
    """On the same connection, if it was kept; a broken stream must not be found in the next answer."""
    direct = (await subject.directly(dialect)).events()
    async with subject.client() as client:
        subject.fake.script.next(ONE_BY_ONE.but(fault=Fault(Kind.CLOSE, 4)))
        check_broken(dialect, await client.ask(subject.question(dialect)), direct)
        try:
            answer = await client.ask(subject.question(dialect))
        except (EOFError, ConnectionResetError, trio.BrokenResourceError):
            return
        assert plain(answer.events()) == plain(direct)
