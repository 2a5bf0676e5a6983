"""The pump: carries streams from engine sockets to client sockets, in one thread of its own, two system calls an event.

It owns a level-triggered epoll in which each socket is registered once. For every ready engine socket: read, splice,
write. No task switch, no JSON, no lock: all that a flow consists of belongs to the pump once `carry` has registered it,
until it ends; the threads speak only through a deque and trio's run_sync_soon meanwhile. Both system calls release the
GIL.

Descriptors are the danger: a number that one part closes is another client's connection a moment later. The pump works
on its own duplicates, closes them itself, and only at the end of a round, so that no event of that round can meet a
number that was given out anew. It writes by the client's own socket object, which fails once it is closed.
"""

import collections
import contextlib
import enum
import os
import select
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

import trio

from ..exchange import ClientGone, ClientStalled, Splice
from .connection import EngineBroken, EngineConnection
from .splice import Splicer

#: Bytes per read: some dozen events. The buffer is allocated for each read, and a larger one is no longer in the cache.
READ_SIZE = 16384

#: Events per round; epoll gives the others in the next one.
EVENTS_MAX = 256

#: What a client that has fallen behind must take within stall_s (bytes); it need not take a large event at once.
PIECE = 65536

#: How often deadlines are looked at, as a part of the shortest one, and at most and at least (seconds).
TICK_PART = 0.1
TICK_MAX_S = 0.25
TICK_MIN_S = 0.01

#: How long the other thread may hold the GIL while the pump wants it (seconds). Python's 5 ms would be the p99 of every
#: event that comes while a request is parsed.
SWITCH_INTERVAL_S = 0.0005


_STOPPED = "the gateway's pump stopped"


class EngineIdle(Exception):
    """The engine sent nothing for idle_s in the middle of a stream."""


class _End(enum.Enum):
    NOT_BEGUN = enum.auto()
    HEALTHY = enum.auto()
    BROKEN = enum.auto()
    IDLE = enum.auto()
    GONE = enum.auto()
    STALLED = enum.auto()
    ABORTED = enum.auto()


class _Flow:
    """One stream in the pump. `engine` and `client`: its own duplicates of their sockets, -1 before there are any.

    `send`: of the client's own socket, which encrypts if the client speaks TLS.
    `pending`: framed bytes that the client's socket did not take yet; `wants`: the epoll event to wait for with them.
    `stalled_at`: since when no more than `due` bytes of it should be left.

    The trio side makes it and reads from it once its task was woken. In between, while `end` is None, it is the pump's.
    """

    __slots__ = (
        "client",
        "due",
        "end",
        "engine",
        "heard_at",
        "pending",
        "send",
        "splicer",
        "stalled_at",
        "task",
        "wants",
        "why",
    )

    def __init__(self, splicer: Splicer, task: trio.lowlevel.Task, send: Callable[[bytes], int]) -> None:
        self.engine = self.client = -1
        self.send = send
        self.splicer = splicer
        self.task = task
        self.pending = b""
        self.wants = 0
        self.heard_at = 0.0
        self.stalled_at = 0.0
        self.due = 0
        self.end: _End | None = _End.NOT_BEGUN
        self.why = ""

    def close(self) -> None:
        """Close the pump's duplicates."""
        for fd in (self.engine, self.client):
            if fd >= 0:
                os.close(fd)


class Pump:
    """Use as a context manager within trio: the thread runs inside the block. `carry` may be called from many tasks."""

    def __init__(self, idle_s: float, stall_s: float) -> None:
        """`idle_s`: longest silence of an engine; `stall_s`: longest that a client may take nothing (seconds)."""
        self.set_deadlines(idle_s, stall_s)
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # Edge-triggered: each write wakes the thread, and nobody has to read what was written.
        self._epoll.register(self._wake, select.EPOLLIN | select.EPOLLET)
        self._orders: collections.deque[_Flow | trio.Event] = collections.deque()
        self._by_engine: dict[int, _Flow] = {}
        self._by_client: dict[int, _Flow] = {}
        self._ended: list[_Flow] = []
        self._stopping = False
        self._over = False
        self._now = 0.0
        self._clock_offset = 0.0
        self._token: trio.lowlevel.TrioToken
        self._crash: BaseException | None = None
        self._crashed = trio.Event()
        self._thread = threading.Thread(target=self._run, name="sluicegate-pump", daemon=True)

    def __enter__(self) -> "Pump":
        self._token = trio.lowlevel.current_trio_token()
        self._clock_offset = trio.current_time() - time.perf_counter()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._end_all()
        self._epoll.close()
        os.close(self._wake)

    def set_deadlines(self, idle_s: float, stall_s: float) -> None:
        """From now on these hold, also for the streams that are in it; the thread looks at them at its next tick."""
        self._idle_s = idle_s
        self._stall_s = stall_s
        self._tick = min(TICK_MAX_S, max(TICK_MIN_S, TICK_PART * min(idle_s, stall_s)))

    async def prove(self) -> None:
        """Return once the thread has taken up an order that is given now, and said so: for the watchdog."""
        done = trio.Event()
        self._order(done)
        await done.wait()

    def clock(self) -> float:
        """trio's time, in any thread (seconds)."""
        return time.perf_counter() + self._clock_offset

    @property
    def flows(self) -> int:
        """Streams in the pump now."""
        return len(self._by_client)

    async def watch(self) -> None:
        """Wait for ever; raises what the thread died of, if it does: the daemon is useless then and must restart."""
        await self._crashed.wait()
        raise RuntimeError("the pump's thread died") from self._crash

    async def carry(self, connection: EngineConnection, splicer: Splicer, client: Splice) -> None:
        """Carry the rest of a chunked answer to the client, its end included.

        Raises OSError if the kernel has no descriptors or no epoll entries left for it, and has touched nothing then.
        Raises EngineBroken, EngineIdle, ClientGone or ClientStalled. After the first two, and when cancelled, only
        whole events have gone out, and what the client's socket has not taken of them is owed by `client`.
        Both sockets stay their owners', who must not use them before this returns.
        """
        assert connection.sock is not None
        if self._over:
            raise EngineBroken(_STOPPED)
        _acknowledge_later(connection.sock)
        flow = _Flow(splicer, trio.lowlevel.current_task(), client.sock.send)
        try:
            flow.engine = os.dup(connection.sock.fileno())
            flow.client = os.dup(client.sock.fileno())
            self._take_up(flow)
        except OSError:
            flow.close()
            raise

        def abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            self._order(flow)
            return trio.lowlevel.Abort.FAILED  # the pump will say when it has let go

        await trio.lowlevel.wait_task_rescheduled(abort)
        match flow.end:
            case _End.HEALTHY:
                connection.exchanged()
                client.ended()
            case _End.GONE:
                raise ClientGone
            case _End.STALLED:
                raise ClientStalled
            case _End.IDLE:
                client.owe(flow.pending)
                raise EngineIdle
            case _:
                client.owe(flow.pending)
                await trio.lowlevel.checkpoint_if_cancelled()
                raise EngineBroken(flow.why)

    def _take_up(self, flow: _Flow) -> None:
        """Register a flow. The thread finds it there with its first event, and need not be woken for it."""
        by_engine, by_client, epoll = self._by_engine, self._by_client, self._epoll
        by_engine[flow.engine] = by_client[flow.client] = flow
        try:
            epoll.register(flow.client, select.EPOLLRDHUP)
            epoll.register(flow.engine, select.EPOLLIN)
        except OSError:
            with contextlib.suppress(OSError):
                epoll.unregister(flow.client)
            del by_engine[flow.engine], by_client[flow.client]
            raise
        flow.heard_at = time.perf_counter()
        flow.end = None  # from here on the thread heeds its events
        if len(by_client) == 1:  # it may be asleep without a deadline
            os.eventfd_write(self._wake, 1)

    def _order(self, order: _Flow | trio.Event) -> None:
        """Put a flow before the pump, to be let go; or an event, to be set."""
        if self._over:
            return  # nobody is there to see to it, and what it would ask for is done
        self._orders.append(order)
        os.eventfd_write(self._wake, 1)

    def _end_all(self) -> None:
        """The thread is gone, or at its last statement: nobody else is left to end what it had.

        A flow that is never ended is a task that cannot even be cancelled, and the daemon could not exit.
        """
        if self._over:
            return
        self._over = True
        for flow in self._by_client.values():
            self._finish(flow, _End.BROKEN, _STOPPED)
        self._orders.clear()
        self._let_go()
        if self._crash is not None:
            self._crashed.set()

    # -- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._rounds()
        except BaseException as error:
            self._crash = error
        self._soon(self._end_all)

    def _rounds(self) -> None:
        by_engine, by_client, poll = self._by_engine, self._by_client, self._epoll.poll
        looked_at = 0.0
        while not self._stopping:
            events = poll(self._tick if by_client else None, EVENTS_MAX)
            self._now = now = time.perf_counter()
            for fd, what in events:
                if (flow := by_engine.get(fd)) is not None:
                    if flow.end is None:
                        self._from_engine(flow)
                elif (flow := by_client.get(fd)) is not None and flow.end is None:
                    self._about_client(flow, what)
            if now - looked_at >= self._tick:
                looked_at = now
                self._check_deadlines()
            if self._orders:
                self._take_orders()
            if self._ended:
                self._let_go()

    def _from_engine(self, flow: _Flow) -> None:
        try:
            data = os.read(flow.engine, READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self._finish(flow, _End.BROKEN, f"the connection to the engine broke ({error})")
            return
        flow.heard_at = self._now
        if flow.splicer.passes(data):  # nearly every event: it goes out as it came, so nothing has ended with it
            self._to_client(flow, data)
        elif not data:
            self._finish(flow, _End.BROKEN, "the engine closed the connection in the middle of its answer")
        else:
            self._reframed(flow, data)

    def _reframed(self, flow: _Flow, data: bytes) -> None:
        try:
            out = flow.splicer.reframed(data)
        except EngineBroken as error:
            self._finish(flow, _End.BROKEN, error.why)
            return
        if not flow.splicer.complete:
            if out:
                self._to_client(flow, out)
        elif flow.splicer.healthy:
            self._to_client(flow, out + flow.splicer.closing())
            if not flow.pending:
                self._finish(flow, _End.HEALTHY)
        else:
            if out:
                self._to_client(flow, out)
            self._finish(flow, _End.BROKEN, "the engine ended its stream before the end of the answer")

    def _to_client(self, flow: _Flow, out: bytes) -> None:
        try:
            sent = flow.send(out)
        except OSError as error:
            self._hold(flow, out, _wanted(error))
            return
        if sent < len(out):
            self._hold(flow, out[sent:], select.EPOLLOUT)

    def _hold(self, flow: _Flow, rest: bytes, wants: int) -> None:
        """The client's socket does not take `rest` now; it may when it has what it `wants`."""
        if not wants:
            self._finish(flow, _End.GONE)
            return
        flow.pending = rest
        self._expect(flow)
        # Nothing more is read from the engine until the client has taken this: the kernel pushes back.
        del self._by_engine[flow.engine]
        self._epoll.unregister(flow.engine)
        self._want(flow, wants)

    def _about_client(self, flow: _Flow, what: int) -> None:
        """The client left, or it can take some of what is pending."""
        if what & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
            self._finish(flow, _End.GONE)
            return
        wants = select.EPOLLOUT
        try:
            flow.pending = flow.pending[flow.send(flow.pending) :]
        except OSError as error:
            if not (wants := _wanted(error)):
                self._finish(flow, _End.GONE)
                return
        if flow.pending:
            if wants != flow.wants:
                self._want(flow, wants)
            if len(flow.pending) <= flow.due:
                self._expect(flow)
            return
        if flow.splicer.complete:
            self._finish(flow, _End.HEALTHY)
            return
        flow.heard_at = self._now
        self._by_engine[flow.engine] = flow
        self._epoll.register(flow.engine, select.EPOLLIN)
        self._epoll.modify(flow.client, select.EPOLLRDHUP)

    def _want(self, flow: _Flow, wants: int) -> None:
        flow.wants = wants
        self._epoll.modify(flow.client, select.EPOLLRDHUP | wants)

    def _expect(self, flow: _Flow) -> None:
        """From now on the client has stall_s for the next piece of what is pending."""
        flow.stalled_at = self._now
        flow.due = max(0, len(flow.pending) - PIECE)

    def _check_deadlines(self) -> None:
        now = self._now
        for flow in list(self._by_client.values()):  # to which the other thread may add meanwhile
            if flow.pending:
                if now - flow.stalled_at >= self._stall_s:
                    self._finish(flow, _End.STALLED)
            elif now - flow.heard_at >= self._idle_s:
                self._finish(flow, _End.IDLE)

    def _take_orders(self) -> None:
        while self._orders:
            order = self._orders.popleft()
            if isinstance(order, trio.Event):
                self._soon(order.set)
            else:
                self._finish(order, _End.ABORTED)  # unless it has ended by itself before its abort came

    def _finish(self, flow: _Flow, end: _End, why: str = "") -> None:
        if flow.end is None:
            flow.end, flow.why = end, why
            self._ended.append(flow)

    def _let_go(self) -> None:
        """Close the duplicates of the flows that ended, and wake their tasks."""
        tasks = []
        try:
            while self._ended:
                flow = self._ended.pop()
                tasks.append(flow.task)
                # A descriptor leaves an epoll by itself only with its last duplicate, and these have originals.
                if self._by_engine.pop(flow.engine, None) is not None:
                    self._epoll.unregister(flow.engine)
                if self._by_client.pop(flow.client, None) is not None:
                    self._epoll.unregister(flow.client)
                flow.close()
        finally:
            if tasks:
                self._soon(lambda: [trio.lowlevel.reschedule(task) for task in tasks])

    def _soon(self, call: Callable[[], object]) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(call)

    def __repr__(self) -> str:
        return f"<Pump {self.flows} flows>"


def _wanted(error: OSError) -> int:
    """What to wait for at the client's socket that raised `error` in `send`; 0: nothing, it broke.

    OpenSSL wants to read there if the client asks for something in the middle of a stream that must be answered first.
    """
    if isinstance(error, ssl.SSLWantReadError):
        return select.EPOLLIN
    return select.EPOLLOUT if isinstance(error, (BlockingIOError, ssl.SSLWantWriteError)) else 0


def _acknowledge_later(engine: socket.socket) -> None:
    """Have the kernel acknowledge every other event of a TCP stream, at most 40 ms late, instead of each one at once.

    An acknowledgement of its own is a packet that the pump's read has to carry through the whole stack: 3 us of 50 per
    event. It delays nothing, for vLLM writes without waiting for one (TCP_NODELAY, as each asyncio server). The kernel
    returns to its usual way by itself if the stream turns out to be slower than that.
    """
    if engine.family != socket.AF_UNIX:
        engine.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
