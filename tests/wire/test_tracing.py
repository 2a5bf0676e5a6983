"""Traces through the gateway: what the engine gets of a caller's trace, and what a collector gets of a request."""

import threading
from collections.abc import Iterator

import pytest
import trio
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from sluicegate.observe import tracing
from tests.engine_contract.raw import post
from tests.fakes.engine import FakeEngine
from tests.fakes.script import BEFORE_HEAD, Behaviour, Fault, Kind
from tests.harness import CHAT, question
from tests.wire.collector import Collector, open_collector
from tests.wire.visitors import WAYS, ask, at_rest, come, gate

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{CALLER}-01"
NOBODY = "http://127.0.0.1:1"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with open_collector() as collector:
        yield collector


def told(engine: FakeEngine) -> list[tuple[str | None, str | None]]:
    """What the engine was told of a trace with each request."""
    posts = engine.posts()
    assert posts
    return [(seen.header("traceparent"), seen.header("tracestate")) for seen in posts]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_a_span_of_its_trace(collector: Collector, way: str, stream: bool) -> None:
    """The caller's span is the parent of ours, and ours that of the engine's."""
    async with gate(endpoint=collector.url, max_active=1) as (engine, running), await come(way, running) as visitor:
        answer = await visitor.ask(
            CHAT, question(stream=stream), f"traceparent: {PARENT}", "tracestate: a=1", "tracestate: b=2"
        )
        assert answer.status == 200
        [seen] = engine.posts()
        await at_rest(running)
    [span] = collector.spans
    assert collector.paths == ["/v1/traces"]
    assert (span.trace_id, span.parent_id) == (TRACE, CALLER)
    assert span.span_id != CALLER
    assert [value for name, value in seen.headers if name == "traceparent"] == [f"00-{TRACE}-{span.span_id}-01"]
    assert [value for name, value in seen.headers if name == "tracestate"] == ["a=1", "b=2"]
    assert (span.raw.name, span.raw.kind, span.service) == ("chat fake-model", Span.SPAN_KIND_SERVER, "sluicegate")
    assert span.raw.status.code == Status.STATUS_CODE_UNSET
    [engine_port] = [span.attributes["server.port"]]
    assert isinstance(engine_port, int)
    timing = {"sluicegate.queue_s", "gen_ai.response.time_to_first_chunk"}
    assert {name: value for name, value in span.attributes.items() if name not in timing} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "fake-model",
        **({"gen_ai.request.stream": True} if stream else {}),
        "gen_ai.usage.input_tokens": 4,
        "gen_ai.usage.output_tokens": 8,
        "server.address": "127.0.0.1",
        "server.port": engine_port,
        "http.route": CHAT,
        "http.response.status_code": 200,
        "sluicegate.outcome": "served",
        "sluicegate.request_id": seen.header("x-request-id"),
    }
    assert span.attributes.keys() & timing == (timing if stream else {"sluicegate.queue_s"})
    assert span.events == ["sluicegate.granted", *(["sluicegate.first_token"] if stream else [])]
    times = [span.raw.start_time_unix_nano, *(e.time_unix_nano for e in span.raw.events), span.raw.end_time_unix_nano]
    assert times == sorted(times)


async def test_refused_queued_and_failed_ones(collector: Collector) -> None:
    """A request without an answer of the engine's is a span as well, with the reason and without the prompt."""
    hold = trio.Event()
    async with gate(endpoint=collector.url, max_active=1, queue_max=1) as (engine, running):
        engine.script.next(Behaviour(hold=hold))
        engine.script.next(Behaviour(fault=Fault(Kind.STATUS, at=BEFORE_HEAD, status=500)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, running, post(CHAT, question(), f"traceparent: {PARENT}"))
            await engine.until(lambda: engine.running == 1)
            nursery.start_soon(ask, running, post(CHAT, question(), f"traceparent: {PARENT}"))
            while running.gateway.admission.queued < 1:
                await trio.lowlevel.checkpoint()
            full = await ask(running, post(CHAT, question(), f"traceparent: {PARENT}"))
            bad = await ask(running, post(CHAT, b"{", f"traceparent: {PARENT}"))
            hold.set()
        assert (full.status, bad.status) == (429, 400)
        await at_rest(running)
    spans = {span.attributes["sluicegate.outcome"]: span for span in collector.spans}
    assert spans.keys() == {"served", "engine_error", "shed_queue_full", "invalid"}
    assert {span.trace_id for span in spans.values()} == {TRACE}
    for outcome, status, code in [
        ("engine_error", 502, Status.STATUS_CODE_ERROR),
        ("shed_queue_full", 429, Status.STATUS_CODE_UNSET),
        ("invalid", 400, Status.STATUS_CODE_UNSET),
    ]:
        span = spans[outcome]
        assert (span.attributes["error.type"], span.attributes["http.response.status_code"]) == (outcome, status)
        assert span.raw.status.code == code
        assert not span.raw.status.message
    assert spans["engine_error"].events == ["sluicegate.queued", "sluicegate.granted"]
    assert spans["engine_error"].attributes["sluicegate.queue_position"] == 0
    assert spans["shed_queue_full"].events == []
    assert b"Where to?" not in b"".join(span.raw.SerializeToString() for span in collector.spans)


@pytest.mark.parametrize(
    ("fields", "ratio", "same_trace", "flags", "spans"),
    [
        ([f"traceparent: 00-{TRACE}-{CALLER}-00"], 1.0, True, "00", 0),
        ([f"traceparent: 00-{TRACE}-{CALLER}-03"], 0.0, True, "03", 1),
        ([], 1.0, False, "01", 1),
        ([], 0.0, False, "00", 0),
        (["traceparent: 00-1-2-01", "tracestate: a=1"], 1.0, False, "01", 1),
        ([f"traceparent: {PARENT}", f"traceparent: {PARENT}", "tracestate: a=1"], 0.0, False, "00", 0),
    ],
    ids=["not sampled", "sampled, random", "no trace", "none, ratio 0", "malformed", "two"],
)
async def test_who_decides_about_a_trace(
    collector: Collector, fields: list[str], ratio: float, same_trace: bool, flags: str, spans: int
) -> None:
    """The caller does, where there is one; else the share of traces that begin here."""
    async with gate(endpoint=collector.url, sample_ratio=ratio) as (engine, running):
        assert (await ask(running, post(CHAT, question(), *fields))).status == 200
        [(parent, state)] = told(engine)
        await at_rest(running)
    assert parent is not None
    _, trace_id, span_id, got_flags = parent.split("-")
    assert (trace_id == TRACE, got_flags, state) == (same_trace, flags, None)
    assert [(span.trace_id, span.span_id) for span in collector.spans] == [(trace_id, span_id)] * spans
    assert [span.parent_id for span in collector.spans] == [CALLER if same_trace else ""] * spans


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("parent", [PARENT, "00-1-2-01", "cc-" + PARENT[3:] + "-more"])
async def test_without_a_collector_a_trace_passes(way: str, parent: str) -> None:
    """As it came, whatever it is: the gateway takes no part in the trace, and the engine judges."""
    async with gate() as (engine, running), await come(way, running) as visitor:
        assert (await visitor.ask(CHAT, question(), f"traceparent: {parent}", "tracestate: a=1,b=2")).status == 200
        assert told(engine) == [(parent, "a=1,b=2")]


async def test_a_collector_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are served, their spans dropped and counted."""
    monkeypatch.setattr(tracing, "LAST_S", 0.05)
    async with gate(endpoint=NOBODY) as (_, running):
        for _ in range(3):
            assert (await ask(running, post(CHAT, question()))).status == 200
        await at_rest(running)
    assert running.metric("api_spans_dropped_total") == 3


async def test_a_collector_that_hangs(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue is bounded: what finds no room is dropped, what is in it arrives once the collector goes on."""
    monkeypatch.setattr(tracing, "INTERVAL_S", 0.01)
    monkeypatch.setattr(tracing, "QUEUE_MAX", 2)
    collector.hold()
    async with gate(endpoint=collector.url) as (_, running):
        assert (await ask(running, post(CHAT, question()))).status == 200
        assert await trio.to_thread.run_sync(collector.asked.wait, 60)
        for _ in range(5):
            assert (await ask(running, post(CHAT, question()))).status == 200
        await at_rest(running)
        assert running.metric("api_spans_dropped_total") == 3
        collector.released.set()
    assert len(collector.spans) == 3
    assert running.metric("api_spans_dropped_total") == 3


async def test_it_stops_beside_a_hanging_collector(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "INTERVAL_S", 0.01)
    monkeypatch.setattr(tracing, "LAST_S", 0.05)
    collector.hold()
    async with gate(endpoint=collector.url) as (_, running):
        assert (await ask(running, post(CHAT, question()))).status == 200
        assert await trio.to_thread.run_sync(collector.asked.wait, 60)
    assert collector.spans == []
    collector.released.set()
    [sender] = [thread for thread in threading.enumerate() if thread.name == "tracing"]
    await trio.to_thread.run_sync(sender.join)
