"""The socket below a connection: sending, receiving, looking, closing; and how it is made."""

import socket
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from sluicegate.config.schema import Address, TcpAddress, UnixAddress
from sluicegate.relay.wire import SocketWire, dialer
from tests.unit.relay.scripted import stream_sockets


async def test_bytes_go_through_both_ways() -> None:
    ours, theirs = stream_sockets()
    wire = SocketWire(ours)
    with theirs:
        await wire.send_all(b"question")
        assert theirs.recv(100) == b"question"
        theirs.send(b"answer")
        assert await wire.receive_some() == b"answer"
        theirs.close()
        assert await wire.receive_some() == b""
    wire.close()


async def test_large_send_goes_out_as_the_peer_reads() -> None:
    """Data that the socket does not take at once goes out as the peer reads."""
    ours, theirs = stream_sockets()
    data = bytes(range(256)) * 8192
    wire = SocketWire(ours)
    received = bytearray()
    with theirs, trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.send_all, data)
            await wait_all_tasks_blocked()
            while len(received) < len(data):
                await trio.lowlevel.wait_readable(theirs)
                received += theirs.recv(100_000)
    assert received == data
    wire.close()


async def test_receiving_waits_for_bytes() -> None:
    ours, theirs = stream_sockets()
    wire = SocketWire(ours)
    with theirs, trio.fail_after(5):
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                assert await wire.receive_some() == b"late"

            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            theirs.send(b"late")
    wire.close()


async def test_a_broken_peer_is_an_os_error() -> None:
    ours, theirs = stream_sockets()
    wire = SocketWire(ours)
    theirs.close()
    with pytest.raises(OSError, match="Broken pipe"):
        await wire.send_all(b"question")
    wire.close()


async def test_idle_wire_looks_alive() -> None:
    """An idle wire looks alive until it is closed or receives unrequested bytes."""
    ours, theirs = stream_sockets()
    wire = SocketWire(ours)
    assert wire.looks_alive()
    theirs.send(b"unasked")
    assert not wire.looks_alive()
    assert await wire.receive_some() == b"unasked", "looking takes nothing"
    assert wire.looks_alive()
    theirs.close()
    assert not wire.looks_alive()
    wire.close()
    assert not wire.looks_alive()
    assert repr(wire) == "<SocketWire fd=-1>"


async def test_close_wakes_readers() -> None:
    """close() wakes a task that is receiving, and may be called twice."""
    ours, theirs = stream_sockets()
    wire = SocketWire(ours)
    with theirs, trio.fail_after(5):
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await wire.receive_some()

            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            wire.close()
    wire.close()


async def ask_once(address: Address) -> bytes:
    with trio.fail_after(5):
        wire = await dialer(address, 5.0)()
        try:
            await wire.send_all(b"question")
            return await wire.receive_some()
        finally:
            wire.close()


async def echo(stream: trio.SocketStream) -> None:
    await stream.send_all(await stream.receive_some())


async def test_dialling_over_tcp() -> None:
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, echo, [listener])
        address = TcpAddress("127.0.0.1", listener.socket.getsockname()[1])
        assert await ask_once(address) == b"question"
        wire = await dialer(address, 5.0)()
        assert isinstance(wire, SocketWire)
        assert wire.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not wire.sock.getblocking()
        wire.close()
        nursery.cancel_scope.cancel()


async def test_dialling_over_a_unix_socket(tmp_path: Path) -> None:
    path = f"{tmp_path}/engine.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        listening.setblocking(False)
        async with trio.open_nursery() as nursery:
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
            nursery.start_soon(trio.serve_listeners, echo, [listener])
            assert await ask_once(UnixAddress(path)) == b"question"
            nursery.cancel_scope.cancel()


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="connect"):
        await dialer(TcpAddress("127.0.0.1", 1), 5.0)()
    with pytest.raises(FileNotFoundError):
        await dialer(UnixAddress(f"{tmp_path}/nobody.sock"), 5.0)()


async def test_engine_that_accepts_nobody() -> None:
    """The dialler gives up in time on an engine that does not accept the connection."""
    # A listening socket whose backlog is full: the kernel answers no more connection attempts.
    with socket.socket() as full, trio.fail_after(5):
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = TcpAddress("127.0.0.1", full.getsockname()[1])
        first = await dialer(address, 5.0)()
        with pytest.raises(TimeoutError, match=r"no connection to 127.0.0.1:\d+ within 0.1 s"):
            await dialer(address, 0.1)()
        first.close()


async def test_an_engine_whose_queue_is_full_is_waited_for(tmp_path: Path) -> None:
    path = f"{tmp_path}/engine.sock"
    with socket.socket(socket.AF_UNIX) as full, trio.fail_after(5):
        full.bind(path)
        full.listen(0)
        first = await dialer(UnixAddress(path), 5.0)()
        with pytest.raises(TimeoutError, match=r"within 0.1 s"):
            await dialer(UnixAddress(path), 0.1)()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect, UnixAddress(path))
            await wait_all_tasks_blocked()
            full.accept()[0].close()  # there is room now
        full.accept()[0].close()
        first.close()


async def connect(address: Address) -> None:
    (await dialer(address, 5.0)()).close()
