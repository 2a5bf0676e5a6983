"""What a probe or a scrape may find at the engine's address."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio

from sluicegate.config.schema import TcpAddress
from tests.fakes.engine import FakeEngine


def tcp(base_url: str) -> TcpAddress:
    return TcpAddress("127.0.0.1", int(base_url.rpartition(":")[2]))


async def none_left(engine: FakeEngine) -> None:
    """Wait until the engine has seen the last connection closed."""
    with trio.fail_after(5):
        await engine.until(lambda: engine.connections == 0)


@asynccontextmanager
async def serving(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[TcpAddress]:
    """A server that is no engine."""
    async with trio.open_nursery() as nursery:
        (listener, *_) = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        yield TcpAddress("127.0.0.1", listener.socket.getsockname()[1])
        nursery.cancel_scope.cancel()


async def answer_all(body: bytes, stream: trio.SocketStream) -> None:
    """200 with `body` to whatever is asked."""
    while await stream.receive_some():
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
