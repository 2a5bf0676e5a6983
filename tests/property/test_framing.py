"""Whatever the bytes and however they come: nothing is lost, nothing is invented, and no cut falls within an event."""

import contextlib
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pydantic
from hypothesis import given, settings
from hypothesis import strategies as st

from sluicegate.account.meter import StreamMeter
from sluicegate.dialects.facts import for_engine, understand
from sluicegate.dialects.routes import ENDPOINTS
from sluicegate.dialects.sse import EventSplitter
from sluicegate.exchange import Dialect, Endpoint
from sluicegate.outcome import Refusal
from tests.unit.account.streams import STREAMS, Stream

# Time says nothing here, and a machine that is busy elsewhere must not fail a test.
untimed = settings(deadline=None)

# --- EventSplitter ---

LINES = st.sampled_from([b"data: 1", b"a", b": ping", b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r\r"])
BYTES = st.lists(LINES, max_size=40).map(b"".join)


def pieces(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """`data` cut anywhere, also into empty pieces."""
    cuts = draw(st.lists(st.integers(0, len(data)), max_size=20))
    return [data[start:end] for start, end in pairwise([0, *sorted(cuts), len(data)])]


@st.composite
def cut_streams(draw: st.DrawFn) -> list[bytes]:
    return pieces(draw, draw(BYTES))


def boundaries(data: bytes) -> Iterator[int]:
    """Where events end, by the letter of the specification, byte by byte: after each blank line."""
    yield 0
    line_length, blank, before = 0, True, 0
    for position, byte in enumerate(data, 1):
        if byte == ord("\n") and before == ord("\r"):
            pass  # the second half of a line end: belongs to the line that has just ended
        elif byte in b"\r\n":
            blank, line_length = line_length == 0, 0
        else:
            blank, line_length = False, line_length + 1
        if blank and line_length == 0 and byte in b"\r\n":
            yield position
        before = byte


@untimed
@given(cut_streams(), st.sampled_from([1, 8, 1000]))
def test_the_splitter_cuts_at_boundaries_and_only_there(parts: list[bytes], bound: int) -> None:
    whole = b"".join(parts)
    ends = list(boundaries(whole))
    splitter = EventSplitter(bound)
    fed = passed = 0
    for part in parts:
        out = splitter.feed(part)
        assert out == whole[passed : passed + len(out)]
        passed += len(out)
        fed += len(part)
        last = max(end for end in ends if end <= fed)
        assert passed == (fed if fed - last > bound else max(last, passed))
        assert splitter.held == whole[passed:fed]
        assert splitter.mid_event == (passed not in ends)


# --- StreamMeter ---

streams = st.sampled_from(list(STREAMS.values()))
COMMENT = b": ping\n\n"


@st.composite
def batched(draw: st.DrawFn) -> tuple[Stream, bool, list[bytes], bytes]:
    """A stream, whether usage was asked for, its events in batches with comments between, and what a client may see."""
    stream, asked = draw(streams), draw(st.booleans())
    events, visible = [], b""
    for index, event in enumerate(stream.events):
        if draw(st.integers(0, 9)) == 0:
            events.append(COMMENT)
            visible += COMMENT
        events.append(event)
        visible += event if index not in stream.withheld(asked) else b""
    cuts = draw(st.lists(st.integers(0, len(events)), max_size=10))
    batches = [b"".join(events[start:end]) for start, end in pairwise([0, *sorted(cuts), len(events)])]
    return stream, asked, batches, visible


def without_stamp(passed: bytes) -> bytes:
    return re.sub(rb',"sluicegate":\{[^}]*\}', b"", passed)


def check(stream: Stream, asked: bool, meter: StreamMeter, passed: bytes, visible: bytes) -> None:
    stamped = asked and stream.usage_chunk is not None
    assert without_stamp(passed) == visible
    assert passed.count(b'"sluicegate"') == stamped
    assert (meter.usage, meter.ended, meter.failed) == (stream.usage, stream.ended, stream.failed)
    assert bool(meter.final_frame()) == (stream.ended and not stream.failed and not stamped)


@untimed
@given(batched())
def test_batching_never_matters(case: tuple[Stream, bool, list[bytes], bytes]) -> None:
    stream, asked, batches, visible = case
    meter = StreamMeter(stream.dialect, asked, lambda: 2.0, 1.0)
    check(stream, asked, meter, b"".join(map(meter.pass_on, batches)), visible)


@st.composite
def cut_anywhere(draw: st.DrawFn) -> tuple[Stream, bool, list[bytes]]:
    stream = draw(streams)
    return stream, draw(st.booleans()), pieces(draw, stream.whole)


@untimed
@given(cut_anywhere())
def test_nor_does_how_the_bytes_come_in(case: tuple[Stream, bool, list[bytes]]) -> None:
    stream, asked, parts = case
    splitter, meter = EventSplitter(), StreamMeter(stream.dialect, asked, lambda: 2.0, 1.0)
    passed = b"".join(meter.pass_on(splitter.feed(part)) for part in parts)
    withheld = stream.withheld(asked)
    visible = b"".join(event for index, event in enumerate(stream.events) if index not in withheld)
    # A CRLF that is cut in two after the hidden chunk leaves its LF: a blank line between events, which means nothing
    check(stream, asked, meter, passed.replace(b"\r\n\r\n\ndata", b"\r\n\r\ndata"), visible)
    assert splitter.held == b""


@untimed
@given(st.binary(max_size=200), st.sampled_from(list(Dialect)), st.booleans())
def test_a_meter_never_raises_and_never_adds_to_noise(noise: bytes, dialect: Dialect, asked: bool) -> None:
    meter = StreamMeter(dialect, asked, lambda: 2.0, 1.0)
    assert meter.pass_on(noise) is noise


# --- for_engine ---

texts = st.text(max_size=5)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
flags = st.sampled_from([True, False, None, 1, 0, 1.0, 2, "true", "YES", "off", "maybe", "", 0.5]) | values
options = (
    st.none()
    | st.dictionaries(texts | st.sampled_from(["include_usage", "continuous_usage_stats"]), flags, max_size=3)
    | values
)
blank = st.text(" \t\r\n", max_size=2)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """JSON objects with what matters in them likely, in any order, duplicated, oddly spaced and escaped."""
    kinds = {"stream": flags, "stream_options": options, "model": st.none() | texts | values}
    members = []
    for _ in range(draw(st.integers(0, 5))):
        name = draw(st.sampled_from([*kinds, "x", '"', "é", "{"]))
        value = json.dumps(draw(kinds.get(name, values)), ensure_ascii=draw(st.booleans()))
        key = json.dumps(name, ensure_ascii=draw(st.booleans()))
        if draw(st.booleans()):
            key = key.replace("m", "\\u006d")
        members.append(f"{draw(blank)}{key}{draw(blank)}:{draw(blank)}{value}{draw(blank)}")
    inside = ",".join(members) or draw(blank)
    return f"{draw(blank)}{{{inside}}}{draw(blank)}".encode()


lax_bool: pydantic.TypeAdapter[bool | None] = pydantic.TypeAdapter(bool | None)


def pydantics_view(value: Any) -> bool | None:
    """True, False, or None where pydantic, and so vLLM, refuses the value."""
    try:
        return bool(lax_bool.validate_python(value))
    except pydantic.ValidationError:
        return None


def expected(endpoint: Endpoint, body: dict[str, Any], default_model: str) -> dict[str, Any]:
    changed = dict(body)
    if body.get("model") is None and default_model:
        changed["model"] = default_model
    chosen = dict(body.get("stream_options") or {})
    on_request = endpoint.dialect in (Dialect.CHAT, Dialect.COMPLETIONS)
    if on_request and pydantics_view(body.get("stream")) and pydantics_view(chosen.get("include_usage")) is False:
        changed["stream_options"] = chosen | {"include_usage": True}
    return changed


def acceptable(body: bytes) -> bool:
    """Whether no member, not even one that a later one of its name replaces, is of a wrong type."""
    members: list[tuple[str, Any]] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members[:] = pairs  # called for the outermost object last
        return dict(pairs)

    json.loads(body, object_pairs_hook=keep)
    right = {
        "model": lambda value: isinstance(value, str | None),
        "stream": lambda value: not isinstance(value, list | dict),
        "stream_options": lambda value: isinstance(value, dict | None),
    }
    return all(right[name](value) for name, value in members if name in right)


@untimed
@given(bodies(), st.sampled_from(list(ENDPOINTS.values())), st.sampled_from(["", "m", 'a"é']))
def test_engine_gets_the_clients_body(body: bytes, endpoint: Endpoint, default_model: str) -> None:
    """The engine gets the client's bytes, except for the members that must change."""
    parsed = json.loads(body)
    if endpoint.opaque:
        assert for_engine(endpoint, body, understand(endpoint, body), default_model) is body
        return
    try:
        facts = understand(endpoint, body)
    except Refusal:
        assert not acceptable(body)
        return
    assert acceptable(body)
    assert facts.model == parsed.get("model")
    assert facts.stream == (pydantics_view(parsed.get("stream")) or False)
    wanted = expected(endpoint, parsed, default_model)
    out = for_engine(endpoint, body, facts, default_model)
    assert json.loads(out) == wanted
    if wanted == parsed:
        assert out is body
    elif not wanted.keys() & parsed.keys() & {key for key in wanted if wanted[key] != parsed.get(key)}:
        assert out.endswith(body[body.index(b"{") + 1 :])  # only absent members: spliced in, not one byte moved


@untimed
@given(st.binary(max_size=40) | bodies().map(lambda body: body[:-2]))
def test_no_body_makes_it_crash(body: bytes) -> None:
    endpoint = ENDPOINTS["/v1/chat/completions"]
    with contextlib.suppress(Refusal):
        for_engine(endpoint, body, understand(endpoint, body), "m")
