"""The fake engine's faults: each happens where it should, and the engine is whole afterwards."""

import pytest
import trio

from tests.engine_contract.raw import RawClient, parse, post
from tests.fakes.asking import CHAT, EVENTS, QUESTION, STREAMED, WHOLE, Connect, ask
from tests.fakes.engine import FakeEngine
from tests.fakes.script import (
    AT_END,
    BEFORE_FIRST_EVENT,
    BEFORE_HEAD,
    ON_ACCEPT,
    Behaviour,
    Fault,
    Framing,
    Kind,
    Wire,
    Writes,
)


async def test_a_fault_free_stream_has_one_event_per_chunk(connect: Connect) -> None:
    answer = await ask(connect)
    assert answer.complete
    assert [chunk.count(b"\n\n") for chunk in answer.chunks] == [1] * EVENTS
    assert answer.data()[-1] == b"[DONE]"


@pytest.mark.parametrize("kind", [Kind.CLOSE, Kind.RESET])
@pytest.mark.parametrize("at", [ON_ACCEPT, BEFORE_HEAD])
@pytest.mark.parametrize("request_bytes", [STREAMED, WHOLE], ids=["streamed", "whole"])
async def test_no_answer_at_all(
    engine: FakeEngine, connect: Connect, kind: Kind, at: int, request_bytes: bytes
) -> None:
    engine.script.next(Behaviour(fault=Fault(kind, at)))
    with pytest.raises((EOFError, ConnectionResetError, trio.BrokenResourceError)) as caught:
        await ask(connect, request_bytes)
    if at == BEFORE_HEAD:
        assert caught.type is (EOFError if kind is Kind.CLOSE else ConnectionResetError)
    assert (await ask(connect)).complete, "the fault struck once"


@pytest.mark.parametrize("at", [BEFORE_FIRST_EVENT, 1, 5, AT_END])
@pytest.mark.parametrize("kind", [Kind.CLOSE, Kind.RESET, Kind.TRUNCATE])
async def test_a_stream_cut_off(engine: FakeEngine, connect: Connect, kind: Kind, at: int) -> None:
    engine.script.next(Behaviour(fault=Fault(kind, at)))
    answer = await ask(connect)
    assert not answer.complete
    assert answer.reset is (kind is Kind.RESET)
    if kind is not Kind.RESET:
        assert len(answer.events()) == min(at, EVENTS)
    healthy = await ask(connect)
    assert healthy.events()[: len(answer.events())] == answer.events()
    assert kind is Kind.TRUNCATE or healthy.raw.startswith(answer.raw)


@pytest.mark.parametrize("kind", [Kind.CLOSE, Kind.RESET, Kind.TRUNCATE, Kind.HALF_CLOSE])
async def test_a_whole_answer_cut_off_in_its_body(engine: FakeEngine, connect: Connect, kind: Kind) -> None:
    engine.script.next(Behaviour(fault=Fault(kind, BEFORE_FIRST_EVENT)))
    answer = await ask(connect, WHOLE)
    assert answer.status == 200
    assert not answer.complete


async def test_a_half_close_leaves_the_other_direction_open(engine: FakeEngine, connect: Connect) -> None:
    engine.script.next(Behaviour(fault=Fault(Kind.HALF_CLOSE, 2)))
    async with await connect() as client:
        answer = await client.ask(STREAMED)
        assert not answer.complete
        assert len(answer.events()) == 2
        await client.stream.send_all(b"still there")
        assert engine.connections == 1
    await engine.until(lambda: engine.connections == 0)


@pytest.mark.parametrize("request_bytes", [STREAMED, WHOLE], ids=["streamed", "whole"])
async def test_stalled_before_the_head_until_the_client_leaves(
    engine: FakeEngine, connect: Connect, request_bytes: bytes
) -> None:
    engine.script.next(Behaviour(fault=Fault(Kind.STALL, BEFORE_HEAD)))
    async with await connect() as client:
        await client.stream.send_all(request_bytes)
        await engine.until(lambda: engine.running == 1)
        assert client.received == b""
    await engine.until(lambda: engine.connections == 0)
    assert (engine.running, engine.waiting, engine.aborted) == (0, 0, 1)


@pytest.mark.parametrize("at", [BEFORE_FIRST_EVENT, 4])
async def test_stalled_in_the_stream_until_the_client_leaves(engine: FakeEngine, connect: Connect, at: int) -> None:
    engine.script.next(Behaviour(fault=Fault(Kind.STALL, at)))
    async with await connect() as client:
        await client.stream.send_all(STREAMED)
        await client.until_events(at)
        await engine.until(lambda: engine.running == 1)
    await engine.until(lambda: engine.connections == 0)
    assert (engine.running, engine.aborted) == (0, 1)


@pytest.mark.parametrize("at", [BEFORE_HEAD, BEFORE_FIRST_EVENT, 3])
async def test_garbage(engine: FakeEngine, connect: Connect, at: int) -> None:
    engine.script.next(Behaviour(fault=Fault(Kind.GARBAGE, at)))
    with pytest.raises(ValueError, match=r"no HTTP|zz"):
        await ask(connect)
    await engine.until(lambda: engine.connections == 0)


@pytest.mark.parametrize("status", [500, 503])
async def test_an_error_answer(engine: FakeEngine, connect: Connect, status: int) -> None:
    engine.script.next(Behaviour(fault=Fault(Kind.STATUS, status=status)))
    answer = await ask(connect)
    body = answer.json()
    assert answer.status == status
    assert isinstance(body, dict)
    assert body["error"]["code"] == status


@pytest.mark.parametrize(
    ("path", "body", "last"),
    [
        (CHAT, QUESTION, b"data: [DONE]"),
        ("/v1/completions", {"prompt": "Once", "stream": True}, b"data: [DONE]"),
        ("/v1/messages", {**QUESTION, "max_tokens": 20, "model": "fake-model"}, b'"internal_error"'),
        ("/v1/responses", {"input": "Once", "stream": True}, b'"sequence_number":2'),
    ],
)
async def test_the_engine_fails_while_streaming(
    engine: FakeEngine, connect: Connect, path: str, body: object, last: bytes
) -> None:
    engine.script.next(Behaviour(fault=Fault(Kind.ERROR_EVENT, 3)))
    answer = await ask(connect, post(path, body))
    assert last in answer.events()[-1]
    assert answer.complete is (path != "/v1/responses")
    assert (b'"error"' in answer.body) is (path != "/v1/responses")


async def test_a_huge_event_and_a_huge_head(engine: FakeEngine, connect: Connect) -> None:
    engine.script.next(Behaviour(fault=Fault(Kind.HUGE_EVENT, 2)), Behaviour(fault=Fault(Kind.HUGE_HEAD, size=70_000)))
    answer = await ask(connect)
    assert answer.complete
    assert len(answer.events()) == EVENTS + 1
    assert max(map(len, answer.chunks)) > 4 * 1024 * 1024
    answer = await ask(connect)
    assert answer.complete
    assert answer.raw.index(b"\r\n\r\n") > 70_000


@pytest.mark.parametrize(
    "wire",
    [
        Wire(writes=Writes.BYTES),
        Wire(writes=Writes.ALL),
        Wire(writes=Writes.BURST),
        Wire(events_per_chunk=3),
        Wire(chunk_bytes=7),
        Wire(chunk_bytes=7, writes=Writes.ALL),
        Wire(framing=Framing.LENGTH),
        Wire(framing=Framing.UNTIL_CLOSE),
        Wire(chunk_extension=";a=b", trailers=(("x-checksum", "1"), ("x-more", "2"))),
    ],
    ids=str,
)
async def test_the_same_stream_in_another_form(engine: FakeEngine, connect: Connect, wire: Wire) -> None:
    plain = await ask(connect)
    engine.script.next(Behaviour(wire=wire))
    answer = await ask(connect)
    assert answer.complete
    assert answer.body == plain.body
    assert (b"x-checksum: 1\r\nx-more: 2\r\n" in answer.trailers) is bool(wire.trailers)
    assert set(answer.extensions) == ({b"a=b"} if wire.chunk_extension else {b""} if answer.chunks else set())


@pytest.mark.parametrize("framing", Framing)
async def test_comment_frames(engine: FakeEngine, connect: Connect, framing: Framing) -> None:
    plain = await ask(connect)
    engine.script.next(Behaviour(wire=Wire(framing=framing, comments=True)))
    answer = await ask(connect)
    assert answer.complete
    assert answer.events().count(b": keep-alive") == EVENTS
    assert answer.data() == plain.data()


async def test_without_done_but_properly_ended(engine: FakeEngine, connect: Connect) -> None:
    engine.script.next(Behaviour(done=False))
    answer = await ask(connect)
    assert answer.complete
    assert b"[DONE]" not in answer.body


@pytest.mark.parametrize("kind", [Kind.CLOSE, Kind.STALL])
async def test_a_fault_at_every_byte(engine: FakeEngine, kind: Kind) -> None:
    request = post(CHAT, {**QUESTION, "max_tokens": 1}, "x-request-id: one")
    async with RawClient(engine.dial()) as client:
        plain = (await client.ask(request)).raw
    for count in range(len(plain)):
        engine.script.next(Behaviour(fault=Fault(kind, at_byte=count)))
        async with RawClient(engine.dial()) as client:
            await client.stream.send_all(request)
            if kind is Kind.STALL:
                while len(client.received) < count:
                    client.received += await client.stream.receive_some()
                assert client.received == plain[:count]
            else:
                answer = parse(plain[:count])
                if answer is None:
                    with pytest.raises(EOFError):
                        await client.answer()
                else:
                    assert (await client.answer()).raw == answer.raw


async def test_connection_closes_after_an_answer(engine: FakeEngine, connect: Connect) -> None:
    """The engine closes the connection after an answer without notice in the answer's head."""
    engine.script.next(Behaviour(close=True))
    async with await connect() as client:
        assert (await client.ask(WHOLE)).complete
        with pytest.raises((EOFError, ConnectionResetError, trio.BrokenResourceError)):
            await client.ask(WHOLE)
