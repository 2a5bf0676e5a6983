"""W3C Trace Context: a request's place in a trace, and the header fields that tell the engine. Pure but for new ids.

Source: https://www.w3.org/TR/trace-context-2/, 3.2 (traceparent) and 4 (what a participant does).
"""

import os
import re
from dataclasses import dataclass

from ..exchange import Headers

#: Bits of the flags: whether the caller records its span; whether the trace's id is random. The others are reserved.
SAMPLED, RANDOM = 1, 2

# A version after 00 may append fields; ff is none, and neither are ids of zeros alone.
_TRACEPARENT = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Trace:
    """Ids in lower-case hexadecimal: 32 digits the trace's, 16 a span's. `parent_id` is None where the trace begins."""

    trace_id: str
    span_id: str
    parent_id: str | None
    flags: int

    @property
    def sampled(self) -> bool:
        return bool(self.flags & SAMPLED)

    @property
    def traceparent(self) -> bytes:
        """The field that makes this span the parent of the next one."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}".encode("ascii")


def join(headers: Headers, ratio: float) -> tuple[Trace, Headers]:
    """The place of a request with these headers, and the headers that the engine is to get.

    A caller's trace goes on, with its flags. Without one (none, not valid, or two of them) a trace begins, and `ratio`
    (0 to 1) is the share of those that is sampled; a `tracestate` means nothing then and is dropped, as the standard
    has it.
    """
    parents = [value for name, value in headers if name == b"traceparent"]
    match = _TRACEPARENT.fullmatch(parents[0].strip(b" \t")) if len(parents) == 1 else None
    span_id = os.urandom(8).hex()
    if match is None or (match[1] == b"00" and match[5] is not None):
        trace_id = os.urandom(16).hex()
        # As OpenTelemetry's samplers decide: by the id, so that a larger share includes the smaller one.
        trace = Trace(trace_id, span_id, None, SAMPLED if int(trace_id[16:], 16) < ratio * 2**64 else 0)
        dropped: tuple[bytes, ...] = (b"traceparent", b"tracestate")
    else:
        known = SAMPLED | RANDOM if match[1] == b"00" else SAMPLED
        trace = Trace(match[2].decode(), span_id, match[3].decode(), int(match[4], 16) & known)
        dropped = (b"traceparent",)
    kept = [field for field in headers if field[0] not in dropped]
    return trace, [*kept, (b"traceparent", trace.traceparent)]
