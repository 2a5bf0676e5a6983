"""W3C Trace Context, case by case and beside OpenTelemetry's own reader."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sluicegate.account.trace import RANDOM, SAMPLED, Trace, join

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
IDS = f"{TRACE}-{CALLER}"
WELL_FORMED = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

#: The field → the flags that go on, None where a new trace begins.
CASES = {
    f"00-{IDS}-01": SAMPLED,
    f"00-{IDS}-00": 0,
    f"00-{IDS}-03": SAMPLED | RANDOM,
    f"00-{IDS}-ff": SAMPLED | RANDOM,  # the other bits are reserved
    f"\t 00-{IDS}-01 \t": SAMPLED,
    f"01-{IDS}-03": SAMPLED,  # what else a later version says, this one does not know
    f"cc-{IDS}-01-what-comes": SAMPLED,
    f"cc-{IDS}-01-": SAMPLED,
    f"cc-{IDS}-01.what": None,
    f"00-{IDS}-01-what": None,
    f"00-{IDS}-01-": None,
    f"ff-{IDS}-01": None,
    f"00-{IDS.upper()}-01": None,
    f"00-{'0' * 32}-{CALLER}-01": None,
    f"00-{TRACE}-{'0' * 16}-01": None,
    f"00-{IDS[1:]}-01": None,
    f"00-{IDS}": None,
    f"00-{IDS}-1": None,
    f"0-{IDS}-01": None,
    f"00_{IDS}_01": None,
    f"00-{IDS}-01, 00-{IDS}-01": None,
    "": None,
}


def joined(*fields: tuple[str, str], ratio: float = 1.0) -> tuple[Trace, list[tuple[bytes, bytes]]]:
    return join([(name.encode(), value.encode("latin-1")) for name, value in fields], ratio)


@pytest.mark.parametrize(("value", "flags"), CASES.items(), ids=map(repr, CASES))
def test_a_traceparent_goes_on_or_begins_anew(value: str, flags: int | None) -> None:
    trace, headers = joined(("accept", "*/*"), ("traceparent", value), ("tracestate", "a=1"), ("tracestate", "b=2"))
    state = [(b"tracestate", b"a=1"), (b"tracestate", b"b=2")]
    if flags is None:
        assert (trace.parent_id, trace.flags) == (None, SAMPLED)
        assert trace.trace_id != TRACE
        state = []
    else:
        assert (trace.trace_id, trace.parent_id, trace.flags) == (TRACE, CALLER, flags)
    assert headers == [(b"accept", b"*/*"), *state, (b"traceparent", trace.traceparent)]
    assert trace.sampled is bool(trace.flags & SAMPLED)
    assert trace.span_id != CALLER


def test_two_parents_are_none() -> None:
    field = ("traceparent", f"00-{IDS}-01")
    trace, headers = joined(field, field, ("tracestate", "a=1"))
    assert trace.parent_id is None
    assert headers == [(b"traceparent", trace.traceparent)]


@pytest.mark.parametrize(("ratio", "low", "high"), [(0.0, 0, 0), (0.25, 150, 350), (1.0, 1000, 1000)])
def test_a_share_of_new_traces_is_sampled(ratio: float, low: int, high: int) -> None:
    """Of 1,000; the bounds of 0.25 are more than seven standard deviations away."""
    traces = [joined(ratio=ratio)[0] for _ in range(1000)]
    assert low <= sum(trace.sampled for trace in traces) <= high
    assert len({trace.trace_id for trace in traces}) == len({trace.span_id for trace in traces}) == 1000


nearly = st.builds(
    "{}-{}-{}-{}{}".format,
    st.sampled_from(["00", "01", "ff", "fe", "0", "0G"]) | st.text("0123456789abcdef", min_size=2, max_size=2),
    st.sampled_from([TRACE, "0" * 32, TRACE.upper()]) | st.text("0123456789abcdef", min_size=31, max_size=33),
    st.sampled_from([CALLER, "0" * 16]) | st.text("0123456789abcdef", min_size=15, max_size=17),
    st.text("0123456789abcdef", min_size=2, max_size=2) | st.text(max_size=3),
    st.sampled_from(["", "-", "-x", "x", " "]),
)


@given(nearly | st.text())
def test_it_agrees_with_opentelemetry(value: str) -> None:
    """On every value that can stand in a header: which trace goes on, with which parent, sampled or not."""
    raw = value.encode("utf-8", "replace").translate(None, b"\0\r\n").decode("latin-1")
    trace, _ = joined(("traceparent", raw), ratio=0.0)
    theirs = get_current_span(TraceContextTextMapPropagator().extract({"traceparent": raw})).get_span_context()
    assert WELL_FORMED.fullmatch(trace.traceparent.decode())
    if theirs.is_valid:
        ours = (trace.trace_id, trace.parent_id, trace.sampled)
        assert ours == (f"{theirs.trace_id:032x}", f"{theirs.span_id:016x}", theirs.trace_flags.sampled)
    else:
        assert trace.parent_id is None
