"""What an engine's answers look like on the wire, and what it does when a client leaves."""

from collections.abc import Callable

import httpx2
import pytest
import trio

from tests.engine_contract.raw import get, leave, post
from tests.engine_contract.target import DIALECTS, PATIENCE_S, Numbers, Target

#: An engine may take this long to notice that a client has left (the gateway promises 0.5 s of its own).
NOTICE_S = 10.0


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_each_chunk_holds_whole_events(engine: Target, dialect: str) -> None:
    answer = await engine.ask(post(DIALECTS[dialect], engine.question(dialect, stream=True)))
    assert answer.header("transfer-encoding") == "chunked"
    assert answer.header("content-length") is None
    assert answer.complete
    assert answer.trailers == b"\r\n"
    assert not any(answer.extensions)
    assert all(chunk.endswith(b"\n\n") for chunk in answer.chunks)
    assert len(answer.chunks) > 3


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_done_comes_once_and_last(engine: Target, dialect: str) -> None:
    """[DONE] is the last event in the dialects that have it, and absent in the others."""
    answer = await engine.ask(post(DIALECTS[dialect], engine.question(dialect, stream=True)))
    expected = [b"data: [DONE]"] if dialect in ("chat", "completions") else []
    assert [event for event in answer.events() if b"[DONE]" in event] == expected
    assert not expected or answer.events()[-1] == expected[0]
    assert answer.body.endswith(b"\n\n")


async def test_a_connection_serves_one_request_after_the_other(engine: Target) -> None:
    async with await engine.connect() as client:
        with trio.fail_after(PATIENCE_S):
            for dialect, path in DIALECTS.items():
                assert (await client.ask(post(path, engine.question(dialect, limit=2)))).complete
                assert (await client.ask(post(path, engine.question(dialect, limit=2, stream=True)))).complete
            assert (await client.ask(get("/health"))).complete


async def test_connection_close_is_honoured(engine: Target) -> None:
    async with await engine.connect() as client:
        with trio.fail_after(PATIENCE_S):
            request = post(DIALECTS["chat"], engine.question("chat", stream=True), "connection: close")
            answer = await client.ask(request)
            assert answer.complete
            assert answer.header("connection") == "close"
            assert await client.stream.receive_some() == b""


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("dialect", "prefix"), [("chat", "chatcmpl-"), ("completions", "cmpl-"), ("messages", "chatcmpl-")]
)
async def test_the_request_id_is_taken_over(engine: Target, dialect: str, prefix: str, stream: bool) -> None:
    question = engine.question(dialect, limit=2, stream=stream)
    answer = await engine.ask(post(DIALECTS[dialect], question, "x-request-id: from-the-gate-1"))
    assert f'"id":"{prefix}from-the-gate-1"'.encode() in answer.body


async def test_responses_have_an_id_of_their_own(engine: Target) -> None:
    request = post(DIALECTS["responses"], engine.question("responses", limit=2), "x-request-id: from-the-gate-1")
    answer = await engine.ask(request)
    assert b'"id":"resp_' in answer.body
    assert b"from-the-gate-1" not in answer.body


async def wait_for(engine: Target, client: httpx2.AsyncClient, predicate: Callable[[Numbers], bool]) -> Numbers:
    """Ask for the engine's numbers until `predicate` holds for them."""
    while not predicate(numbers := await engine.numbers(client)):
        pass
    return numbers


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("how", ["close", "half_close", "reset"])
async def test_a_client_that_leaves_in_mid_stream_is_noticed(engine: Target, dialect: str, how: str) -> None:
    question = engine.question(dialect, limit=1500, stream=True, ignore_eos=True)
    async with engine.client() as client, await engine.connect() as leaver:
        before = await engine.numbers(client)
        with trio.fail_after(PATIENCE_S):
            await leaver.stream.send_all(post(DIALECTS[dialect], question))
            await leaver.until_events(6)
            await wait_for(engine, client, lambda numbers: numbers.running == 1)
        await leave(leaver.stream, how)
        with trio.fail_after(NOTICE_S):
            after = await wait_for(engine, client, lambda numbers: numbers.running == numbers.waiting == 0)
        assert after.since(before)[1] < 1500


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_early_disconnect_is_noticed(engine: Target, dialect: str) -> None:
    """The engine notices a client that disconnects before its answer."""
    question = engine.question(dialect, limit=1500, ignore_eos=True)
    async with engine.client() as client, await engine.connect() as leaver:
        before = await engine.numbers(client)
        with trio.fail_after(PATIENCE_S):
            await leaver.stream.send_all(post(DIALECTS[dialect], question))
            await wait_for(engine, client, lambda numbers: numbers.running == 1)
        await leaver.stream.aclose()
        with trio.fail_after(NOTICE_S):
            after = await wait_for(engine, client, lambda numbers: numbers.running == numbers.waiting == 0)
        assert after.since(before)[1] < 1500
