"""Chunk framing by the letter of RFC 9112 (7.1), for judging what the gateway writes; and recorded streams."""

import re
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import h11

from sluicegate.exchange import Dialect
from sluicegate.relay.splice import Splicer
from tests.recordings.recorded import recordings

#: What the gateway writes has no extensions and no leading zeros; upper case comes only from an engine, verbatim.
_SIZE_LINE = re.compile(rb"([1-9A-Fa-f][0-9A-Fa-f]{0,7})\r\n")
_LAST_CHUNK = b"0\r\n\r\n"

#: The head of an answer that is a stream of events.
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

PATHS = {
    "/v1/chat/completions": Dialect.CHAT,
    "/v1/completions": Dialect.COMPLETIONS,
    "/v1/responses": Dialect.RESPONSES,
    "/v1/messages": Dialect.MESSAGES,
}


def chunks_of(raw: bytes) -> list[bytes]:
    """The payloads of `raw`, which must be whole chunks and nothing else. Raises ValueError where it is not."""
    chunks = []
    at = 0
    while at < len(raw):
        line = _SIZE_LINE.match(raw, at)
        if line is None:
            raise ValueError(f"no chunk size at {at}: {raw[at : at + 40]!r}")
        start, size = line.end(), int(line[1], 16)
        at = start + size + 2
        if raw[at - 2 : at] != b"\r\n" or at > len(raw):
            raise ValueError(f"the chunk of {size} bytes at {start} does not end: {raw[at - 20 : at + 20]!r}")
        chunks.append(raw[start : start + size])
    return chunks


def payload(raw: bytes) -> bytes:
    """The bytes within `raw`, which must be whole chunks."""
    return b"".join(chunks_of(raw))


def body_of(raw: bytes) -> bytes:
    """The bytes within `raw`, which must be one chunked body with its proper end and nothing behind it."""
    if not raw.endswith(_LAST_CHUNK):
        raise ValueError(f"no end: {raw[-40:]!r}")
    return payload(raw[: -len(_LAST_CHUNK)])


def fed(splicer: Splicer, data: bytes) -> bytes:
    """What the client's socket gets for `data`, fed as the pump feeds it."""
    return data if splicer.passes(data) else splicer.reframed(data)


def h11_body(raw: bytes) -> bytes:
    """The body of a chunked answer as a strict parser of others reads it; it must end with `raw`."""
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(HEAD + raw)
    body = []
    while not isinstance(event := parser.next_event(), h11.EndOfMessage):
        assert event is not h11.NEED_DATA
        if isinstance(event, h11.Data):
            body.append(bytes(event.data))
    assert parser.trailing_data == (b"", False)
    return b"".join(body)


@dataclass(frozen=True)
class RecordedStream:
    """A recorded stream of events: its head, and its body as it was framed (`raw`, end included).

    `usage_at`: which event is the usage chunk, None without one.
    """

    name: str
    dialect: Dialect
    head: bytes
    raw: bytes
    events: tuple[bytes, ...]
    usage_at: int | None

    def __repr__(self) -> str:
        return self.name

    def visible(self, count: int, *, asked: bool) -> bytes:
        """What a client may have seen of the first `count` events, but for the stamp in a usage chunk."""
        return b"".join(event for rank, event in enumerate(self.events[:count]) if asked or rank != self.usage_at)

    @cache  # noqa: B019 -- as many as there are recordings
    def arrived(self) -> list[int]:
        """For each number of bytes of `raw`, how many whole events they hold."""
        ends = set(accumulate(map(len, self.events)))
        counts, at, within, events = [0], 0, 0, 0
        for chunk in chunks_of(self.raw[: -len(_LAST_CHUNK)]):
            line = self.raw.index(b"\r\n", at) + 2 - at
            counts += [events] * line
            for _ in chunk:
                within += 1
                events += within in ends
                counts.append(events)
            counts += [events] * 2
            at = len(counts) - 1
        return counts + [events] * len(_LAST_CHUNK)


def _stream(name: str, path: str, raw: bytes) -> RecordedStream:
    head, blank, body = raw.partition(b"\r\n\r\n")
    events = tuple(event + b"\n\n" for event in body_of(body).split(b"\n\n")[:-1])
    usage = [rank for rank, event in enumerate(events) if b'"choices":[],"usage"' in event]
    assert len(usage) <= 1
    return RecordedStream(name, PATHS[path], head + blank, body, events, usage[0] if usage else None)


STREAMS = [_stream(each.name, each.path, each.raw) for each in recordings() if b"text/event-stream" in each.raw]

#: What the gateway adds: the last frame, or its stamp in the usage chunk.
FINAL_FRAME = re.compile(rb": sluicegate \{[^\n]*\}\n\n\Z")
STAMP = re.compile(rb',"sluicegate":\{[^}]*\}')


def without_additions(body: bytes) -> bytes:
    """`body` without the gateway's final frame and stamp."""
    return STAMP.sub(b"", FINAL_FRAME.sub(b"", body))
