"""Recorded streams of the real engine through the whole gateway, over real sockets: the same bytes in any pieces."""

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from sluicegate.relay.splice import framed
from tests.engine_contract.raw import RawAnswer, parse, post
from tests.fakes.script import Behaviour, Fault, Kind
from tests.harness import CHAT, Running, configuration, open_gateway, question
from tests.recordings.recorded import recorded, recordings
from tests.unit.relay.framing import FINAL_FRAME, STAMP, STREAMS, chunks_of, without_additions
from tests.wire.upstream import Upstream, open_upstream
from tests.wire.visitors import WAYS, FastVisitor, Stream, come, dial_deaf, gate

PATHS = {each.name: each.path for each in recordings()}
WHOLE = [each for each in recordings() if each.name not in {stream.name for stream in STREAMS}]

every_way = pytest.mark.parametrize("way", WAYS)
every_wire = pytest.mark.parametrize("wire", ["unix", "tcp"])


@asynccontextmanager
async def opened(wire: str, tmp_path: Path) -> AsyncIterator[tuple[Upstream, Running]]:
    """A gateway before an engine that sends recordings, on a Unix socket or over TCP."""
    async with (
        open_upstream(tmp_path / "engine.sock" if wire == "unix" else None) as upstream,
        open_gateway(configuration(upstream.base_url)) as running,
    ):
        yield upstream, running


def body_for(name: str, *, asked: bool) -> dict[str, Any]:
    """The body of the recording's question."""
    body = {"model": "smollm2", **recorded(name).body}
    body.pop("stream_options", None)
    return body | ({"stream_options": {"include_usage": True}} if asked else {})


def check_stream(answer: RawAnswer, name: str, *, asked: bool) -> None:
    """The client got what it would have got directly, but for the hidden usage chunk and the gateway's last word."""
    (stream,) = (each for each in STREAMS if each.name == name)
    assert (answer.status, answer.complete) == (200, True)
    assert answer.header("content-type") == "text/event-stream; charset=utf-8"
    assert without_additions(answer.body) == stream.visible(len(stream.events), asked=asked)
    stamped = asked and stream.usage_at is not None
    assert len(STAMP.findall(answer.body)) == stamped
    assert bool(FINAL_FRAME.search(answer.body)) is not stamped


def pieces(raw: bytes, mode: str) -> list[bytes]:
    """The bytes of an answer, cut as `mode` says: head and body at once, apart, each chunk, or anywhere."""
    head_end = raw.index(b"\r\n\r\n") + 4
    match mode:
        case "at once":
            at = []
        case "head, body":
            at = [head_end]
        case "each chunk":
            at = [head_end]
            for chunk in chunks_of(raw[head_end:-5]):
                at.append(at[-1] + len(framed(chunk)))
        case "each byte":
            at = list(range(1, len(raw)))
        case _:
            rng = random.Random(mode)
            at = sorted(rng.sample(range(1, len(raw)), 15))
    return [raw[start:end] for start, end in pairwise([0, *at, len(raw)])]


MODES = ["at once", "head, body", "each chunk", "anywhere 1", "anywhere 2", "anywhere 3"]


@every_way
@every_wire
async def test_recorded_streams_on_one_connection(wire: str, way: str, tmp_path: Path) -> None:
    """Every recorded stream passes, one after another, on one connection."""
    async with opened(wire, tmp_path) as (upstream, running), await come(way, running) as visitor:
        for stream in STREAMS:
            for mode in MODES:
                for asked in {False, stream.usage_at is not None}:
                    upstream.answers.append(pieces(stream.head + stream.raw, mode))
                    answer = await visitor.ask(PATHS[stream.name], body_for(stream.name, asked=asked))
                    check_stream(answer, stream.name, asked=asked)
        assert upstream.used == 1, "the connection to the engine was not kept"
        await running.settled()
        assert running.outcomes() == {"served": len(upstream.asked)}


@every_way
@every_wire
async def test_every_recorded_answer_that_is_no_stream(wire: str, way: str, tmp_path: Path) -> None:
    async with opened(wire, tmp_path) as (upstream, running), await come(way, running) as visitor:
        for each in WHOLE:
            direct = parse(each.raw)
            assert direct is not None
            for mode in ("at once", "head, body", "anywhere"):
                upstream.answers.append(pieces(each.raw, mode))
                answer = await visitor.ask(each.path, {"model": "smollm2", **each.body})
                assert (answer.status, answer.body) == (direct.status, direct.body)
                assert answer.header("content-type") == direct.header("content-type")
        assert upstream.used == 1


async def test_every_recorded_stream_byte_by_byte(tmp_path: Path) -> None:
    async with opened("unix", tmp_path) as (upstream, running), await come("fast", running) as visitor:
        for stream in STREAMS:
            upstream.answers.append(pieces(stream.head + stream.raw, "each byte"))
            answer = await visitor.ask(PATHS[stream.name], body_for(stream.name, asked=False))
            check_stream(answer, stream.name, asked=False)


# Responses repeats its answer several times over; tests/unit/relay cuts it, and all others, at each byte.
@pytest.mark.parametrize(
    ("name", "step"), [("chat_length", 1), ("completions_echo", 1), ("messages_length", 1), ("responses_length", 7)]
)
async def test_recorded_stream_in_two_reads(name: str, step: int, tmp_path: Path) -> None:
    """A recorded stream may be cut into two reads at any byte."""
    (stream,) = (each for each in STREAMS if each.name == name)
    raw = stream.head + stream.raw
    async with opened("unix", tmp_path) as (upstream, running), await come("fast", running) as visitor:
        for cut in range(1, len(raw), step):
            upstream.answers.append([raw[:cut], raw[cut:]])
            answer = await visitor.ask(PATHS[name], body_for(name, asked=False))
            check_stream(answer, name, asked=False)


@every_wire
async def test_pipelined_requests_are_answered_in_order(wire: str, tmp_path: Path) -> None:
    async with opened(wire, tmp_path) as (upstream, running), await come("fast", running) as visitor:
        requests = b""
        for stream in STREAMS:
            upstream.answers.append(pieces(stream.head + stream.raw, "each chunk"))
            requests += post(PATHS[stream.name], body_for(stream.name, asked=False))
        received = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(visitor.stream.send_all, requests)
            for stream in STREAMS:
                answer, received = await next_answer(visitor.stream, received)
                check_stream(answer, stream.name, asked=False)
        assert received == b""


async def next_answer(stream: Stream, received: bytes) -> tuple[RawAnswer, bytes]:
    """The next answer of many on a connection, and what came behind it."""
    while (end := received.find(b"\r\n0\r\n\r\n")) < 0:
        data = await stream.receive_some()
        assert data
        received += data
    answer = parse(received[: end + 7])
    assert answer is not None
    return answer, received[end + 7 :]


async def test_the_framing_is_the_engines_own(tmp_path: Path) -> None:
    """Chunk for chunk, but for those that were there before the pump took over, and the end."""
    async with opened("unix", tmp_path) as (upstream, running), await come("fast", running) as visitor:
        for stream in STREAMS:
            upstream.answers.append(pieces(stream.head + stream.raw, "each chunk"))
            answer = await visitor.ask(PATHS[stream.name], body_for(stream.name, asked=False))
            *chunks, last = answer.chunks
            assert FINAL_FRAME.fullmatch(last)
            assert chunks == [event for rank, event in enumerate(stream.events) if rank != stream.usage_at]


async def test_streams_without_the_pump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without descriptors for the pump, streams take the ordinary way."""
    refused = []

    def dup(fd: int) -> int:
        refused.append(fd)
        raise OSError(24, "Too many open files")

    async with opened("unix", tmp_path) as (upstream, running), await come("fast", running) as visitor:
        monkeypatch.setattr(os, "dup", dup)
        for stream in STREAMS:
            upstream.answers.append(pieces(stream.head + stream.raw, "each chunk"))
            answer = await visitor.ask(PATHS[stream.name], body_for(stream.name, asked=False))
            check_stream(answer, stream.name, asked=False)
        await running.settled()
        assert running.outcomes() == {"served": len(STREAMS)}
        assert len(refused) == len(STREAMS), "the pump asks for descriptors in another way"


# --- a deadline that passes while the client does not read ---

#: More than the sockets' buffers on both sides hold.
TOO_MUCH = 6 << 20


async def read_all(stream: Stream) -> bytes:
    """Everything up to the end of the body, or of the connection."""
    received = bytearray()
    try:
        while not received.endswith(b"\r\n0\r\n\r\n"):
            data = await stream.receive_some(1 << 20)
            if not data:
                break
            received += data
    except trio.BrokenResourceError:
        pass
    return bytes(received)


@pytest.mark.parametrize("at", [0, 3], ids=["in its first event", "in the pump"])
async def test_timed_out_stream_is_soundly_framed(at: int) -> None:
    """A stream that times out while its client does not read is still soundly framed."""
    async with gate(request_s=0.4, client_stall_s=60.0) as (engine, running):
        engine.script.next(Behaviour(token_interval_s=0.005, fault=Fault(Kind.HUGE_EVENT, at, size=TOO_MUCH)))
        async with FastVisitor(await dial_deaf(running)) as visitor:
            await visitor.send(CHAT, question(stream=True))
            await engine.until(lambda: engine.aborted == 1)
            received = await read_all(visitor.stream)
        body = received[received.index(b"\r\n\r\n") + 4 :]
        *chunks, last = chunks_of(body.removesuffix(b"0\r\n\r\n"))
        assert b'"code":"timeout_total"' in last
        assert b"timeout_total" not in b"".join(chunks)
        await running.settled()
        assert running.outcomes() == {"timeout_total": 1}


async def test_nothing_follows_a_timed_out_stream(tmp_path: Path) -> None:
    """The engine has said all, and the end of the body waits with the rest for the client to take it."""
    head, token = STREAMS[0].head, framed(STREAMS[0].events[1])
    rest = framed(b"data: %s\n\n" % (b"x" * 60_000)) + framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    async with open_upstream(tmp_path / "engine.sock") as upstream:
        upstream.answers.append([head + token, rest])
        async with (
            open_gateway(configuration(upstream.base_url, request_s=0.4, client_stall_s=60.0)) as running,
            FastVisitor(await dial_deaf(running)) as visitor,
        ):
            await visitor.send(CHAT, body_for("chat", asked=False))
            while not upstream.asked or running.gateway.admission.active:
                await trio.lowlevel.checkpoint()
            received = await read_all(visitor.stream)
            await running.settled()
        assert b"timeout_total" not in received
        assert not received.endswith(b"0\r\n\r\n"), "it did not stall"
        assert running.outcomes() == {"timeout_total": 1}


async def test_timed_out_answer_has_only_engine_bytes() -> None:
    """An answer that times out while its client does not read has only the engine's bytes in it."""
    async with gate(request_s=0.4, client_stall_s=60.0) as (engine, running):
        async with FastVisitor(await dial_deaf(running)) as visitor:
            await visitor.send("/v1/rerank", {"model": "fake-model", "query": "x", "documents": ["x" * TOO_MUCH]})
            await engine.until(lambda: len(engine.posts()) == 1)
            await running.settled()
            received = await read_all(visitor.stream)
        assert received.startswith(b"HTTP/1.1 200 ")
        assert b"timeout_total" not in received
        assert len(received) < TOO_MUCH
        assert running.outcomes() == {"timeout_total": 1}
