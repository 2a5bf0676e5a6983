"""One stream in a pump, with both of its outer ends in the test's hands: the engine's and the client's."""

import os
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from sluicegate.account.meter import StreamMeter
from sluicegate.dialects.sse import EventSplitter
from sluicegate.exchange import Dialect
from sluicegate.relay.connection import EngineConnection
from sluicegate.relay.pump import EngineIdle, Pump
from sluicegate.relay.splice import Splicer, framed
from sluicegate.relay.wire import SocketWire
from tests.unit.relay.framing import HEAD, chunks_of

END = b"0\r\n\r\n"
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
#: A whole healthy stream as the engine sends it.
STREAM = framed(TOKEN) * 3 + framed(DONE) + END
EVENT = b"data: %s\n\n" % (b"x" * 3000)
#: Enough to fill tight buffers many times.
MUCH = framed(EVENT) * 1000

#: Sizes of buffers (bytes; the kernel doubles them). A TCP window below a segment makes loopback wait for timers.
TIGHT: dict[int, int] = {socket.AF_UNIX: 8192, socket.AF_INET: 131_072}
AHEAD = 131_072

#: Nothing here takes that long; what fails by it names what it waited for.
PATIENCE_S = 10.0

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def open_fds() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


async def until(predicate: Callable[[], bool]) -> None:
    """Wait for what another thread does without a notification."""
    while not predicate():
        await trio.lowlevel.checkpoint()


def spin(predicate: Callable[[], bool]) -> None:
    """Wait in the same way, and let no other task run meanwhile."""
    deadline = time.monotonic() + PATIENCE_S
    while not predicate():
        assert time.monotonic() < deadline


def reset(sock: socket.socket) -> None:
    """Close with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


def connected(family: int) -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection, neither of them blocking."""
    if family == socket.AF_UNIX:
        pair = socket.socketpair()
    else:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            one = socket.create_connection(listener.getsockname())
            pair = one, listener.accept()[0]
        for sock in pair:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for sock in pair:
        sock.setblocking(False)
    return pair


class SpliceableClient:
    """The gateway's side of a client, as the pump knows it. Keeps what it is told."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.owed = b""
        self.has_ended = False

    def owe(self, data: bytes) -> None:
        self.owed = data

    def ended(self) -> None:
        self.has_ended = True


@dataclass
class Flow:
    """A stream on its way through a pump. `engine` and `client` are the far ends; `error` is how `carry` ended."""

    engine: socket.socket
    client: socket.socket
    connection: EngineConnection
    splice: SpliceableClient
    splicer: Splicer
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    over: trio.Event = field(default_factory=trio.Event)
    error: Exception | None = None
    received: bytes = b""

    async def carry(self, pump: Pump, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run it until it is over; `started` once the pump has been told."""
        with self.scope:
            try:
                task_status.started()
                await pump.carry(self.connection, self.splicer, self.splice)
            except Exception as error:
                self.error = error
        self.over.set()

    async def ended(self) -> Exception | None:
        """Wait until `carry` is over; the exception that it raised."""
        with trio.fail_after(PATIENCE_S):
            await self.over.wait()
        return self.error

    async def send(self, data: bytes) -> None:
        """Send from the engine."""
        with trio.fail_after(PATIENCE_S):
            while data:
                try:
                    data = data[self.engine.send(data) :]
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self.engine)

    def send_all_that_fits(self, data: bytes) -> int:
        """Send from the engine until its socket takes no more; how many bytes it took."""
        sent = 0
        while sent < len(data):
            try:
                sent += self.engine.send(data[sent:])
            except BlockingIOError:
                break
        return sent

    async def receive(self, size: int = 65_536) -> bytes:
        """Bytes at the client; b"" at their end. What came so far is `received`."""
        with trio.fail_after(PATIENCE_S):
            while True:
                try:
                    data = self.client.recv(size)
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(self.client)
                else:
                    self.received += data
                    return data

    async def receive_tokens(self, count: int) -> None:
        """Wait until so many TOKENs have come to the client, and nothing else."""
        while self.received.count(TOKEN) < count or not self.received.endswith(b"\n\n\r\n"):
            assert await self.receive(), self.received[-200:]
        assert b"".join(chunks_of(self.received)) == TOKEN * count

    async def receive_to_the_end(self) -> None:
        """Wait for the end of the body."""
        while not self.received.endswith(END):
            assert await self.receive(), self.received[-200:]

    async def receive_or_over(self) -> bool:
        """Receive something, unless the flow is over first; whether it was not."""
        came = []

        async def receive() -> None:
            came.append(await self.receive())
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await self.over.wait()
            nursery.cancel_scope.cancel()
        return bool(came)

    def drained(self) -> bytes:
        """Everything that has come to the client by now."""
        while True:
            try:
                data = self.client.recv(65_536)
            except (BlockingIOError, ConnectionError):
                return self.received
            if not data:
                return self.received
            self.received += data

    def events(self) -> bytes:
        """The payload of what has come, which must be whole chunks."""
        return b"".join(chunks_of(self.drained()))

    def close(self) -> None:
        """Close all four sockets."""
        self.connection.close()
        for sock in (self.engine, self.client, self.splice.sock):
            sock.close()


async def open_flow(engine: int = socket.AF_UNIX, client: int = socket.AF_UNIX, *, tight: bool = False) -> Flow:
    """A flow whose head has been read and whose first token has passed; not yet in a pump.

    `engine`, `client`: families of their sockets. `tight`: the client's buffers are small and do not grow.
    """
    engine_side, ours = connected(engine)
    client_side, clients = connected(client)
    if tight:
        clients.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, TIGHT[client])
        client_side.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, TIGHT[client])
    # However far the engine may run ahead, the kernel shall not hold megabytes of it.
    engine_side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, AHEAD)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, AHEAD)
    connection = EngineConnection(SocketWire(ours))
    await connection.send(b"POST")
    engine_side.recv(4)
    engine_side.send(HEAD + framed(TOKEN))
    await connection.head()
    meter, splitter = StreamMeter(Dialect.CHAT, False, lambda: 2.0, 1.0), EventSplitter()
    part = await connection.body_part()
    assert part == TOKEN
    assert meter.pass_on(splitter.feed(part)) == TOKEN
    splicer = Splicer(connection.answer, splitter, meter)
    return Flow(engine_side, client_side, connection, SpliceableClient(clients), splicer)


async def beat(idle_s: float) -> None:
    """Let a while pass by a clock that is not the test's: an idle flow of a pump that gives up after so long."""
    with Pump(idle_s, idle_s) as pump:
        flow = await open_flow()
        await flow.carry(pump)
        assert isinstance(flow.error, EngineIdle)
        flow.close()


class Flows:
    """A pump, and the flows that a test puts into it."""

    def __init__(self, pump: Pump, nursery: trio.Nursery) -> None:
        self.pump = pump
        self._nursery = nursery
        self._all: list[Flow] = []

    async def open(self, engine: int = socket.AF_UNIX, client: int = socket.AF_UNIX, *, tight: bool = False) -> Flow:
        """A flow that is in the pump already; see `open_flow`."""
        flow = await open_flow(engine, client, tight=tight)
        self._all.append(flow)
        await self._nursery.start(flow.carry, self.pump)
        return flow

    async def stall(self, flow: Flow, data: bytes) -> int:
        """Send `data` from the engine until the client has not taken it and the pump has stopped to read.

        How many bytes of it the engine's socket took.
        """
        sent, before = 0, -1
        with trio.fail_after(PATIENCE_S):
            # Over TCP the kernels pass on what they have in their own time, and may then take more.
            while sent != before or not self.pending(flow):
                before = sent
                await beat(0.02)
                sent += flow.send_all_that_fits(data[sent:])
                assert sent < len(data), "not enough bytes to fill the buffers"
        return sent

    def pending(self, flow: Flow) -> int:
        """Bytes that the pump holds for the client of `flow`."""
        held = (each for each in list(self.pump._by_client.values()) if each.splicer is flow.splicer)
        return sum(len(each.pending) for each in held)

    async def empty(self) -> None:
        """Wait until the pump holds no flow."""
        with trio.fail_after(PATIENCE_S, shield=True):
            await until(lambda: self.pump.flows == 0)

    def close(self) -> None:
        """Close the sockets of all flows."""
        for flow in self._all:
            flow.close()


@asynccontextmanager
async def open_pump(*, idle_s: float = 60.0, stall_s: float = 60.0) -> AsyncIterator[Flows]:
    """A running pump; at the end of the block what is still in it is cancelled, and no descriptor may be left."""
    before = open_fds()
    with Pump(idle_s, stall_s) as pump:
        async with trio.open_nursery() as nursery:
            flows = Flows(pump, nursery)
            try:
                yield flows
            finally:
                nursery.cancel_scope.cancel()
                await flows.empty()
                flows.close()
    assert open_fds() == before


def freeze(pump: Pump) -> threading.Event:
    """Have the pump's thread stand still before the next order, until what is returned is set."""
    thaw, take_orders = threading.Event(), pump._take_orders

    def stand_still() -> None:
        assert thaw.wait(PATIENCE_S)
        take_orders()

    pump._take_orders = stand_still  # type: ignore[method-assign]
    return thaw
