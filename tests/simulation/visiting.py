"""Clients of a simulated gateway: each a request in a task of its own, and what came of it."""

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import trio
from trio.testing import wait_all_tasks_blocked

from sluicegate.exchange import Headers, Room
from sluicegate.outcome import Outcome
from sluicegate.relay.pool import Pool
from sluicegate.relay.wire import Wire
from tests.harness import CHAT, Running, SimClient, sim_request
from tests.unit.relay.scripted import ScriptedWire


class Visitor:
    """One request through the pipeline. Start `run` in a nursery; `leave` does what a client does that disconnects."""

    def __init__(
        self,
        running: Running,
        body: dict[str, Any] | bytes,
        path: str = CHAT,
        client: SimClient | None = None,
        headers: Headers | None = None,
    ) -> None:
        self.client = client or SimClient()
        self.request = sim_request(body, path, headers)
        self.came_at = self.left_at = trio.current_time()
        self._running = running
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        with self._scope:
            await self._running.gateway.pipeline.handle(self.request, self.client)
        self.left_at = trio.current_time()

    def leave(self) -> None:
        self._scope.cancel()

    @property
    def took_s(self) -> float:
        """From its arrival to its end, in virtual seconds."""
        return self.left_at - self.came_at

    @property
    def outcome(self) -> str:
        """The one that was logged for it: there must be one, and not two."""
        lines = [line for line in self._running.log_lines("request") if line["request_id"] == self.request.id]
        assert len(lines) == 1, lines
        return str(lines[0]["outcome"])

    @property
    def log(self) -> dict[str, Any]:
        (line,) = [line for line in self._running.log_lines("request") if line["request_id"] == self.request.id]
        return line

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.client.body)

    @property
    def events(self) -> list[bytes]:
        """The events of a stream, which must end with a whole one."""
        *events, rest = self.client.body.split(b"\n\n")
        assert rest == b"", "cut off in the middle of an event"
        return events

    def data(self) -> list[Any]:
        """The data of the stream's events, decoded; [DONE] as it is."""
        lines = [line[6:] for event in self.events for line in event.split(b"\n") if line.startswith(b"data: ")]
        return [line.decode() if line == b"[DONE]" else msgspec.json.decode(line) for line in lines]

    @property
    def retry_after(self) -> bytes | None:
        return self.client.header(b"retry-after")

    def assert_ended(self, outcome: str, after_s: float) -> None:
        assert self.outcome == outcome
        assert abs(self.took_s - after_s) < 0.001, f"took {self.took_s} s"

    def refused(self, outcome: Outcome, status: int) -> bool:
        """Whether it was refused with these, in the log, in the header and in the body."""
        header = self.client.header(b"x-sluicegate-outcome")
        seen = (self.outcome, self.client.status, header, self.client.finished)
        assert seen == (outcome.value, status, outcome.value.encode(), True), f"{seen} {self.client.body!r}"
        return True


async def visit(running: Running, body: dict[str, Any] | bytes, path: str = CHAT, **more: Any) -> Visitor:
    """One request, from beginning to end."""
    visitor = Visitor(running, body, path, **more)
    await visitor.run()
    return visitor


async def arrive(nursery: trio.Nursery, *visitors: Visitor) -> None:
    """Start them one after the other, each as far as it gets without time."""
    for visitor in visitors:
        nursery.start_soon(visitor.run)
        await wait_all_tasks_blocked()


class NeverWholeBody:
    """A body that raises instead of arriving."""

    held = 0

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def whole(self, room: Room) -> bytes:
        await trio.lowlevel.checkpoint()
        raise self._error

    async def parts(self, room: Room) -> AsyncGenerator[bytes, None]:
        yield await self.whole(room)

    def release(self) -> None: ...


def answer_with(running: Running, *parts: bytes | Exception) -> None:
    """From now on, each connection to the engine gets these bytes as its answer, piece by piece, and then the end."""

    async def dial() -> Wire:
        await trio.lowlevel.checkpoint()
        return ScriptedWire(*parts)

    running.gateway.engines.default.connections = Pool(dial)
