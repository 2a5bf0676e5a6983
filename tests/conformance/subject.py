"""What is under test, a gateway by its URL, and the engine behind it; and the shape of what clients must get."""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import trio

from tests.engine_contract.raw import RawAnswer, RawClient, post
from tests.engine_contract.target import DIALECTS, Target
from tests.fakes.engine import FakeEngine
from tests.fakes.script import Behaviour

#: Those that end with `[DONE]`, and whose usage comes in a chunk of its own if the client asks for it.
WITH_DONE = ("chat", "completions")

#: Far longer than anything here takes; a wait that fails names what it waited for (seconds).
PATIENCE_S = 20.0

_IDS = re.compile(rb'"((?:chatcmpl|cmpl|resp|msg)[-_])[^"]*"')
_FINGERPRINT = re.compile(rb',?"system_fingerprint":(?:"[^"]*"|null)')
_FINAL_FRAME = re.compile(rb": sluicegate (\{.*\})")
_STAMP = re.compile(rb',"sluicegate":\{[^}]*\}')


@dataclass(frozen=True)
class Subject:
    """A gateway, and what its engine says when it is asked directly.

    `idle_s`, `first_token_s`: how long the gateway waits for a silent engine (seconds); None: not known.
    `final_frame`: its last word on a stream is Sluicegate's.
    """

    gateway: Target
    engine: Target
    idle_s: float | None
    first_token_s: float | None
    final_frame: bool

    def question(self, dialect: str, **members: Any) -> bytes:
        """A streamed request in `dialect`."""
        return post(DIALECTS[dialect], self.gateway.question(dialect, **({"stream": True} | members)))

    async def stream(self, dialect: str, **members: Any) -> RawAnswer:
        """A streamed answer, through the gateway."""
        return await self.ask(self.question(dialect, **members))

    async def ask(self, request: bytes) -> RawAnswer:
        """One request to the gateway on a connection of its own."""
        with trio.fail_after(PATIENCE_S):
            async with await self.gateway.connect() as client:
                return await client.ask(request)

    async def directly(self, dialect: str, **members: Any) -> RawAnswer:
        """The same answer, from the engine itself."""
        with trio.fail_after(PATIENCE_S):
            async with await self.engine.connect() as client:
                return await client.ask(self.question(dialect, **members))


@dataclass(frozen=True)
class FakeSubject(Subject):
    """A gateway before the suite's own engine, which fails on command."""

    fake: FakeEngine

    async def meeting(self, behaviour: Behaviour, dialect: str, **members: Any) -> RawAnswer:
        """The answer to a request that meets `behaviour`, however often it is retried."""
        usual, self.fake.script.default = self.fake.script.default, behaviour
        try:
            return await self.stream(dialect, **members)
        finally:
            self.fake.script.default = usual

    @asynccontextmanager
    async def client(self) -> AsyncIterator[RawClient]:
        """A client of the gateway that does as it likes."""
        with trio.fail_after(PATIENCE_S):
            async with await self.gateway.connect() as client:
                yield client


def plain(events: Sequence[bytes]) -> list[bytes]:
    """Events as they compare: without comments, and without ids, which come from a request's own id.

    `system_fingerprint` is left out as well: vLLM puts it into the last chunk, and that is the usage chunk where the
    gateway has asked for one.
    """
    return [_FINGERPRINT.sub(b"", _IDS.sub(rb'"\1ID"', event)) for event in events if not event.startswith(b":")]


def without_stamp(events: Sequence[bytes]) -> list[bytes]:
    """Events without what Sluicegate adds to a usage chunk."""
    return [_STAMP.sub(b"", event) for event in events]


def final_frame(answer: RawAnswer) -> dict[str, Any]:
    """Sluicegate's comment at the end of a stream; {} if there is none."""
    frames = [_FINAL_FRAME.fullmatch(event) for event in answer.events()]
    assert not any(frames[:-1]), "it is the last word"
    return msgspec.json.decode(frames[-1][1], type=dict[str, Any]) if frames and frames[-1] else {}


def is_error_event(dialect: str, event: bytes) -> bool:
    """Whether `event` is what ends a broken stream of that dialect. Raises AssertionError if it only resembles one."""
    name, _, data = event.rpartition(b"data: ")
    if b'"error"' not in data or not data.startswith(b"{"):
        return False
    body = msgspec.json.decode(data, type=dict[str, Any])
    if not isinstance(body.get("error"), dict):
        return False
    assert name == (b"" if dialect in WITH_DONE else b"event: error\n"), event
    check_error(dialect, body)
    return True


def check_error(dialect: str, body: dict[str, Any]) -> None:
    """An error object as the dialect's own clients expect it, in a body or in an event."""
    error = body["error"]
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    if dialect == "messages":
        assert body["type"] == "error"
    else:
        assert "code" in error


def check_refused(dialect: str, answer: RawAnswer) -> None:
    """Nothing was begun: a status that says so, and the dialect's error as a whole body."""
    assert 500 <= answer.status <= 504, answer
    assert answer.complete
    assert (answer.header("content-type") or "").startswith("application/json")
    check_error(dialect, msgspec.json.decode(answer.body, type=dict[str, Any]))
    assert b"data:" not in answer.body


def check_broken(dialect: str, answer: RawAnswer, direct: Sequence[bytes]) -> int:
    """A stream that broke says so, and has nothing in it that the engine did not say; how many events it has of it.

    `direct`: the events of the whole stream, as the engine sends them.
    """
    assert answer.status == 200
    assert (answer.header("content-type") or "").startswith("text/event-stream")
    assert not answer.reset
    assert answer.complete, "the body must end, or a client would wait"
    assert answer.body.endswith(b"\n\n")
    *events, last = plain(answer.events())
    assert is_error_event(dialect, last), last
    assert not any(is_error_event(dialect, event) for event in events)
    assert b"[DONE]" not in answer.body
    assert not final_frame(answer), "it would pass for a seal of completeness"
    assert events == plain(direct)[: len(events)]
    return len(events)
