import fcntl
import os
import select
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from sluicegate.observe.sink import LINE_MAX_BYTES, Sink

LINE = b"x" * (LINE_MAX_BYTES - 1) + b"\n"


@dataclass
class Drops:
    count: int = 0
    on_drop: Callable[[], None] = field(init=False)

    def __post_init__(self) -> None:
        def one() -> None:
            self.count += 1

        self.on_drop = one


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        for fd in (reader, writer):
            try:
                os.close(fd)
            except OSError:
                assert fd == reader  # a test may have closed that end


def fill(sink: Sink, drops: Drops) -> int:
    """Write until a line is dropped; how many went out."""
    for written in range(100_000):
        sink.write(LINE)
        if drops.count:
            return written
    raise AssertionError("the descriptor takes everything")


def test_a_line_goes_out_in_one_piece(pipe: tuple[int, int]) -> None:
    drops = Drops()
    Sink(pipe[1], drops.on_drop).write(b"one\n")
    assert os.read(pipe[0], 100) == b"one\n"
    assert drops.count == 0


def test_full_pipe_drops_whole_lines(pipe: tuple[int, int]) -> None:
    """A pipe that nobody reads drops whole lines, and recovers when it is read."""
    drops = Drops()
    sink = Sink(pipe[1], drops.on_drop)
    written = fill(sink, drops)
    assert written > 0
    sink.write(LINE)
    assert drops.count == 2
    assert os.read(pipe[0], 1 << 20) == LINE * written
    sink.write(b"back\n")
    assert os.read(pipe[0], 100) == b"back\n"
    assert drops.count == 2


def test_a_socket_that_nobody_reads_drops_whole_lines() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        drops = Drops()
        sink = Sink(ours.fileno(), drops.on_drop)
        written = fill(sink, drops)
        sink.close()
        ours.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: theirs.recv(1 << 16), b""))
        assert received == LINE * written


def test_closed_reader_costs_lines_only(pipe: tuple[int, int]) -> None:
    """A reader that is gone costs lines and raises nothing."""
    drops = Drops()
    sink = Sink(pipe[1], drops.on_drop)
    os.close(pipe[0])
    sink.write(b"one\n")
    sink.write(b"two\n")
    assert drops.count == 2


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    drops = Drops()
    with open("/dev/full", "wb", buffering=0) as full:
        Sink(full.fileno(), drops.on_drop).write(b"one\n")
    assert drops.count == 1


def test_descriptor_never_open_drops_everything(pipe: tuple[int, int]) -> None:
    """A sink on a descriptor that was never open counts every line as dropped."""
    drops = Drops()
    sink = Sink(10_000_000, drops.on_drop)
    sink.write(b"one\n")
    sink.close()
    assert drops.count == 1


def test_reused_descriptor_gets_no_log_line(pipe: tuple[int, int]) -> None:
    """A client that gets the number of the closed log descriptor receives no log line."""
    reader, writer = os.pipe()
    drops = Drops()
    sink = Sink(writer, drops.on_drop)
    ours, client = socket.socketpair()
    with ours, client:
        client.setblocking(False)
        os.dup2(ours.fileno(), writer)  # other code closed it, and the next connection got its number
        sink.write(b"secret\n")
        with pytest.raises(BlockingIOError):
            client.recv(100)
    assert os.read(reader, 100) == b"secret\n"
    os.close(writer)
    os.close(reader)


def test_after_close_lines_are_dropped(pipe: tuple[int, int]) -> None:
    drops = Drops()
    sink = Sink(pipe[1], drops.on_drop)
    sink.close()
    sink.close()
    sink.write(b"one\n")
    assert drops.count == 1
    os.write(pipe[1], b"the caller's own is still open\n")


def test_partial_line_is_not_glued_to_the_next() -> None:
    """A line of which only a part was written is not joined to the next one."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the kernel's smallest
        drops = Drops()
        sink = Sink(ours.fileno(), drops.on_drop)
        flags = fcntl.fcntl(ours.fileno(), fcntl.F_GETFL)
        fcntl.fcntl(ours.fileno(), fcntl.F_SETFL, flags | os.O_NONBLOCK)  # as another process might
        sink.write(b"a" * 100_000 + b"\n")  # longer than allowed, to make the kernel take a part
        part = theirs.recv(200_000)
        assert drops.count == 1
        assert set(part) == {ord("a")}
        sink.write(b"next\n")
        assert theirs.recv(100) == b"\nnext\n"
        sink.write(b"after\n")
        assert theirs.recv(100) == b"after\n"
        assert drops.count == 1
        sink.close()


def test_a_reader_that_is_stuck_is_waited_for_once(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    drops = Drops()
    sink = Sink(pipe[1], drops.on_drop)
    fill(sink, drops)
    os.read(pipe[0], 1 << 20)
    sink.write(b"patient again\n")
    real_poll, waits = select.poll, list[float]()

    class WatchedPoll:
        def __init__(self) -> None:
            self._poll = real_poll()
            self.register = self._poll.register

        def poll(self, timeout_ms: float) -> list[tuple[int, int]]:
            waits.append(timeout_ms)
            return self._poll.poll(0)

    monkeypatch.setattr(select, "poll", WatchedPoll)
    drops.count = 0
    fill(sink, drops)
    sink.write(LINE)
    sink.write(LINE)
    os.read(pipe[0], 1 << 20)
    sink.write(b"through\n")
    sink.write(b"patient\n")
    assert drops.count == 3
    assert waits[0] > 0
    assert [bool(wait) for wait in waits[-5:]] == [True, False, False, False, True]
    assert max(waits) <= 5
