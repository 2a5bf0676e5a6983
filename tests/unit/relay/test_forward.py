"""An exchange begun: what is sent for each kind of body, what is tried again, and when a connection is released."""

from collections.abc import AsyncGenerator

import pytest
import trio
from trio.testing import MockClock

from sluicegate.exchange import Dialect, Endpoint, Headers, Request
from sluicegate.relay.connection import EngineBroken
from sluicegate.relay.forward import COPY_MAX, Deadline, EngineUnreachable, begin
from sluicegate.relay.pool import Pool
from tests.harness import SimBody
from tests.unit.relay.scripted import ScriptedWire

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\nok"


class Engine:
    """Gives out wires with these answers, in order; none left: it cannot be reached."""

    def __init__(self, *wires: ScriptedWire) -> None:
        self.wires = list(wires)
        self.dialled = 0
        self.pool = Pool(self._dial)

    async def _dial(self) -> ScriptedWire:
        await trio.lowlevel.checkpoint()
        if self.dialled == len(self.wires):
            raise ConnectionRefusedError("refused")
        self.dialled += 1
        return self.wires[self.dialled - 1]

    async def once(self) -> None:
        """One whole exchange, whose connection is kept."""
        with await begin(self.pool, request(), b"{}") as exchange:
            assert await exchange.whole_body(100) == b"ok"
        assert (self.pool.busy, self.pool.idle) == (0, 1)


def request(headers: Headers | None = None) -> Request:
    return Request("id-1", Endpoint("/v1/x", Dialect.PLAIN), headers or [], SimBody(b""), 0.0)


async def pieces(*parts: bytes) -> AsyncGenerator[bytes, None]:
    for part in parts:
        await trio.lowlevel.checkpoint()
        yield part


def sent_body(wire: ScriptedWire) -> bytes:
    return wire.sent.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("size", [0, 2, COPY_MAX, COPY_MAX + 1])
async def test_a_body_goes_out_as_it_is_with_its_length(size: int) -> None:
    wire = ScriptedWire(ANSWER)
    with await begin(Engine(wire).pool, request(), b"x" * size) as exchange:
        assert exchange.head.status == 200
        assert exchange.headers == [(b"content-type", b"application/json")]
        assert not exchange.is_stream
    assert b"\r\ncontent-length: %d\r\n" % size in wire.sent
    assert sent_body(wire) == b"x" * size


@pytest.mark.parametrize(
    ("status", "media_type", "is_stream"),
    [
        ("200 OK", b"text/event-stream", True),
        ("200 OK", b"Text/Event-Stream", True),
        ("200 OK", b"TEXT/EVENT-STREAM;charset=utf-8", True),
        ("200 OK", b"text/event-stream ; Charset=UTF-8", True),
        ("200 OK", b" text/event-stream \t", True),
        ("200 OK", b"text/event-streams", False),
        ("200 OK", b"application/json; profile=text/event-stream", False),
        ("200 OK", b"", False),
        ("206 Partial", b"text/event-stream", False),
    ],
)
async def test_which_answers_are_streams(status: str, media_type: bytes, is_stream: bool) -> None:
    """A media type is compared without regard to case, and without its parameters (RFC 9110, 8.3.1)."""
    head = b"HTTP/1.1 %s\r\nContent-Type: %s\r\ncontent-length: 2\r\n\r\n" % (status.encode(), media_type)
    with await begin(Engine(ScriptedWire(head + b"ok")).pool, request(), b"{}") as exchange:
        assert exchange.is_stream is is_stream


async def test_streamed_body_of_known_length() -> None:
    """A body of known length is passed on as it comes."""
    wire = ScriptedWire(ANSWER)
    with await begin(Engine(wire).pool, request([(b"content-length", b"5")]), pieces(b"ab", b"", b"cde")):
        assert sent_body(wire) == b"abcde"
        assert b"\r\ncontent-length: 5\r\n" in wire.sent


async def test_a_body_in_pieces_of_unknown_length_is_chunked() -> None:
    wire = ScriptedWire(ANSWER)
    with await begin(Engine(wire).pool, request(), pieces(b"ab", b"", b"c" * 16)):
        assert sent_body(wire) == b"2\r\nab\r\n10\r\n" + b"c" * 16 + b"\r\n0\r\n\r\n"


async def test_who_cannot_be_reached_is_said_so() -> None:
    engine = Engine()
    with pytest.raises(EngineUnreachable) as caught:
        await begin(engine.pool, request(), b"{}")
    assert caught.value.why == "refused"
    assert engine.pool.busy == 0


@pytest.mark.parametrize("fails", ["sending", "answering"])
async def test_dead_kept_connection_is_retried_once(fails: str) -> None:
    """On a kept connection that died, the request is tried once more on a fresh one."""
    kept, fresh = ScriptedWire(ANSWER), ScriptedWire(ANSWER)
    engine = Engine(kept, fresh)
    await engine.once()
    if fails == "sending":
        kept.fails_to_send = BrokenPipeError("gone")
    with await begin(engine.pool, request(), b"{}") as exchange:
        assert await exchange.whole_body(100) == b"ok"
    assert (kept.closed, engine.dialled) == (True, 2)
    assert (engine.pool.busy, engine.pool.idle) == (0, 1)


async def test_retry_on_an_unreachable_engine() -> None:
    """If the fresh connection cannot be made, the engine is unreachable."""
    engine = Engine(ScriptedWire(ANSWER))
    await engine.once()
    with pytest.raises(EngineUnreachable):
        await begin(engine.pool, request(), b"{}")
    assert (engine.pool.busy, engine.pool.idle) == (0, 0)


async def test_if_the_fresh_one_dies_too_the_engine_is_broken() -> None:
    engine = Engine(ScriptedWire(ANSWER), ScriptedWire(), ScriptedWire(ANSWER))
    await engine.once()
    with pytest.raises(EngineBroken, match="without an answer"):
        await begin(engine.pool, request(), b"{}")
    assert (engine.dialled, engine.pool.busy) == (2, 0)


async def test_no_retry_within_an_answer() -> None:
    """A kept connection that died within its answer is not tried again."""
    engine = Engine(ScriptedWire(ANSWER, ANSWER[:9]), ScriptedWire(ANSWER))
    await engine.once()
    with pytest.raises(EngineBroken):
        await begin(engine.pool, request(), b"{}")
    assert engine.dialled == 1


async def test_a_fresh_connection_that_dies_is_not_tried_again() -> None:
    engine = Engine(ScriptedWire(), ScriptedWire(ANSWER))
    with pytest.raises(EngineBroken):
        await begin(engine.pool, request(), b"{}")
    assert (engine.dialled, engine.pool.busy) == (1, 0)


async def test_unread_body_is_closed() -> None:
    """The body's generator is closed when the engine takes no more of it."""
    closed = []

    async def body() -> AsyncGenerator[bytes, None]:
        try:
            yield b"first"
            yield b"second"
        finally:
            closed.append(True)

    wire = ScriptedWire(ANSWER)
    engine = Engine(wire)
    wire.fails_to_send = BrokenPipeError("gone")
    with pytest.raises(EngineBroken):
        await begin(engine.pool, request(), pieces(b"never begun"))
    engine = Engine(StopsAfterOneSend(ANSWER))
    with pytest.raises(EngineBroken):
        await begin(engine.pool, request(), body())
    assert closed == [True]
    assert engine.pool.busy == 0


class StopsAfterOneSend(ScriptedWire):
    """Takes the head and nothing of the body."""

    async def send_all(self, data: bytes) -> None:
        await super().send_all(data)
        self.fails_to_send = BrokenPipeError("gone")


async def test_cancelled_while_waiting_for_the_head(autojump_clock: MockClock) -> None:
    """The pool gets the connection back, and it is closed."""

    class Silent(ScriptedWire):
        async def receive_some(self) -> bytes:
            await trio.sleep_forever()
            raise AssertionError

    wire = Silent()
    engine = Engine(wire)
    with trio.move_on_after(1) as scope:
        await begin(engine.pool, request(), b"{}")
    assert scope.cancelled_caught
    assert (wire.closed, engine.pool.busy) == (True, 0)


async def test_deadline_is_never_longer_than_its_limit(mock_clock: MockClock) -> None:
    now = trio.current_time()
    deadline = Deadline(now + 10.0)
    assert deadline.scope.deadline == now + 10.0
    deadline.extend(3.0)
    assert deadline.scope.deadline == now + 3.0
    deadline.extend(float("inf"))
    assert deadline.scope.deadline == now + 10.0
    assert not deadline.limit_reached
    assert Deadline(now).limit_reached
