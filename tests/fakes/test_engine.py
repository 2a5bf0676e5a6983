"""The fake engine's life: time, load, connections, processes."""

import signal
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.engine_contract.raw import RawClient, get, post
from tests.fakes.asking import CHAT, QUESTION, STREAMED, WHOLE, Connect, ask
from tests.fakes.engine import FakeEngine
from tests.fakes.script import (
    BEFORE_HEAD,
    Behaviour,
    Fault,
    Framing,
    Kind,
    Wire,
    behaviour_from_json,
)


async def test_idle_connections_are_closed_on_demand(engine: FakeEngine, connect: Connect) -> None:
    engine.script.when[b"water"] = Behaviour(hold=trio.Event())
    async with await connect() as idle, await connect() as busy:
        assert (await idle.ask(get("/health"))).status == 200
        await busy.stream.send_all(STREAMED)
        await engine.until(lambda: engine.running == 1)
        engine.close_idle()
        await engine.until(lambda: engine.connections == 1)
        assert await idle.stream.receive_some() == b""


async def test_idle_connections_time_out(engine: FakeEngine, autojump_clock: MockClock) -> None:
    engine.keep_alive_s = 5.0
    async with RawClient(engine.dial()) as client:
        await client.ask(get("/health"))
        before = trio.current_time()
        assert await client.stream.receive_some() == b""
        assert trio.current_time() - before == pytest.approx(5.0)


async def test_killed_and_revived(engine: FakeEngine, connect: Connect) -> None:
    engine.script.next(Behaviour(hold=trio.Event(), hold_at=3))
    async with await connect() as client:
        await client.stream.send_all(STREAMED)
        await client.until_events(4)
        engine.kill()
        answer = await client.answer()
        assert answer.reset
        assert len(answer.events()) == 4
    assert engine.running == 0
    assert engine.aborted == 0, "nobody left: the engine did"
    with pytest.raises((OSError, EOFError, trio.BrokenResourceError)):
        await ask(connect)
    engine.revive()
    assert engine.generation_tokens == 0
    assert (await ask(connect)).complete


async def test_no_model_and_no_health(engine: FakeEngine, connect: Connect) -> None:
    engine.model = ""
    engine.healthy = False
    assert (await ask(connect, get("/v1/models"))).json() == {"object": "list", "data": []}
    assert (await ask(connect, STREAMED)).status == 404
    assert (await ask(connect, get("/health"))).status == 503


async def test_probes_have_a_behaviour_of_their_own(engine: FakeEngine, connect: Connect) -> None:
    engine.script.probes = Behaviour(fault=Fault(Kind.STALL, BEFORE_HEAD))
    async with await connect() as client:
        await client.stream.send_all(get("/health"))
        assert (await ask(connect)).complete
        assert client.received == b""


async def test_requests_beyond_max_num_seqs_wait(engine: FakeEngine, connect: Connect) -> None:
    engine.max_num_seqs = 1
    hold = trio.Event()
    engine.script.default = Behaviour(hold=hold)
    async with await connect() as first, await connect() as second, await connect() as third:
        for client in (first, second, third):
            await client.stream.send_all(STREAMED)
        await engine.until(lambda: engine.waiting == 2)
        assert engine.running == 1
        await third.stream.aclose()
        await engine.until(lambda: engine.waiting == 1)
        hold.set()
        assert (await first.answer()).complete
        assert (await second.answer()).complete
    assert (engine.running, engine.waiting, engine.aborted) == (0, 0, 1)


async def test_tokens_come_in_time(engine: FakeEngine, autojump_clock: MockClock) -> None:
    engine.script.default = Behaviour(prefill_s=2.0, token_interval_s=0.5, tokens=4)
    async with RawClient(engine.dial()) as client:
        before = trio.current_time()
        await client.stream.send_all(STREAMED)
        times = []
        for count in range(1, 6):
            await client.until_events(count)
            times.append(trio.current_time() - before)
    assert times == pytest.approx([2.0, 2.0, 2.5, 3.0, 3.5])


async def test_behaviour_by_marker_then_queue_then_default(engine: FakeEngine, connect: Connect) -> None:
    engine.script.default = Behaviour(tokens=2)
    engine.script.next(Behaviour(tokens=3))
    engine.script.when[b"marked"] = Behaviour(tokens=4)

    async def tokens(prompt: str) -> object:
        body = (await ask(connect, post("/v1/completions", {"prompt": prompt}))).json()
        assert isinstance(body, dict)
        return body["usage"]["completion_tokens"]

    assert [await tokens("marked"), await tokens("plain"), await tokens("plain")] == [4, 3, 2]


async def test_pipelined_requests_are_answered_in_order(connect: Connect) -> None:
    async with await connect() as client:
        await client.stream.send_all(WHOLE + get("/health"))
        data = b""
        while data.count(b"HTTP/1.1 200 OK") < 2:
            data += await client.stream.receive_some()
        assert data.index(b"chat.completion") < data.rindex(b"HTTP/1.1")


async def test_expect_continue(connect: Connect) -> None:
    head, _, body = post(CHAT, {**QUESTION, "stream": False}, "expect: 100-continue").partition(b"\r\n\r\n")
    async with await connect() as client:
        await client.stream.send_all(head + b"\r\n\r\n")
        assert await client.stream.receive_some() == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await client.ask(body)).complete


async def test_a_request_that_is_no_http(connect: Connect) -> None:
    assert (await ask(connect, b"\x16\x03\x01 hello\r\n\r\n")).status == 400


async def test_routes_that_a_gateway_must_not_reach_tell_on_it(connect: Connect) -> None:
    for path in ("/load", "/pause", "/server_info", "/v1/load_lora_adapter"):
        assert (await ask(connect, get(path))).json() == {"leaked": path}
    assert (await ask(connect, get("/nonsense"))).status == 404
    assert (await ask(connect, get("/health", "DELETE"))).status == 405


async def test_over_a_unix_socket(engine: FakeEngine, tmp_path: object) -> None:
    path = f"{tmp_path}/engine.sock"
    await engine.listen_unix(path)
    async with RawClient(await trio.open_unix_socket(path)) as client:
        assert (await client.ask(STREAMED)).complete


async def test_lockstep_reader_holds_the_engine_up(engine: FakeEngine) -> None:
    """In lockstep, the engine goes no further than its reader has read."""
    client = RawClient(engine.dial(lockstep=True))
    await client.stream.send_all(STREAMED)
    first = await client.stream.receive_some()
    assert first.startswith(b"HTTP/1.1 200 OK")
    await client.stream.aclose()
    await engine.until(lambda: engine.connections == 0)
    assert engine.aborted == 1


def test_behaviour_as_json() -> None:
    text = '{"token_interval_s": 0.5, "fault": {"kind": "reset", "at": -1}, "wire": {"framing": "length"}}'
    expected = Behaviour(token_interval_s=0.5, fault=Fault(Kind.RESET, BEFORE_HEAD), wire=Wire(framing=Framing.LENGTH))
    assert behaviour_from_json(text) == expected


async def test_as_a_process_that_is_killed() -> None:
    command = [sys.executable, "-m", "tests.fakes.engine", "--behaviour", '{"fault": {"kind": "stall", "at": 2}}']
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, command, stdout=subprocess.PIPE, check=False)
        process: trio.Process = await nursery.start(run)
        assert process.stdout is not None
        url = (await process.stdout.receive_some()).decode().strip()
        async with RawClient(await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))) as client:
            await client.stream.send_all(STREAMED)
            await client.until_events(2)
            process.kill()
            assert not (await client.answer()).complete
        assert await process.wait() == -signal.SIGKILL


async def ask_json(engine: FakeEngine, request: bytes) -> dict[str, Any]:
    async with RawClient(engine.dial()) as client:
        body = (await client.ask(request)).json()
    assert isinstance(body, dict)
    return body


async def test_the_routes_of_other_models(engine: FakeEngine) -> None:
    embedded = await ask_json(engine, post("/v1/embeddings", {"input": ["one", "one two"]}))
    assert [each["index"] for each in embedded["data"]] == [0, 1]
    assert embedded["usage"]["prompt_tokens"] == 3
    reranked = await ask_json(engine, post("/v1/rerank", {"query": "water", "documents": ["fire", "water"]}))
    assert [each["index"] for each in reranked["results"]] == [1, 0]
    scored = await ask_json(engine, post("/v1/score", {"text_1": "water", "text_2": ["fire", "water"]}))
    assert [each["score"] for each in scored["data"]] == [0.0, 1.0]


async def test_an_upload_is_answered_with_its_size(engine: FakeEngine) -> None:
    body = b"--x\r\n\r\n" + bytes(300_000) + b"\r\n--x--\r\n"
    request = post("/v1/audio/transcriptions", body, "content-type: multipart/form-data; boundary=x")
    assert (await ask_json(engine, request))["text"] == f"{len(body)} bytes"
    assert engine.seen[-1].body == body
    assert engine.seen[-1].header("content-type") == "multipart/form-data; boundary=x"


async def test_embeddings_take_a_slot_tokenizing_none(engine: FakeEngine) -> None:
    """A request for embeddings occupies the engine; tokenizing does not."""
    hold = trio.Event()
    engine.script.when[b"held"] = Behaviour(hold=hold)
    async with RawClient(engine.dial()) as client:
        await client.stream.send_all(post("/v1/embeddings", {"input": "held"}))
        await engine.until(lambda: engine.running == 1)
        hold.set()
        assert (await client.answer()).complete
    assert (await ask_json(engine, post("/tokenize", {"prompt": "not held up"})))["count"] == 3
    assert engine.running == 0
