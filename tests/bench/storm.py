"""The cancel storm: thousands of streams, each left by its client at a random moment and in a random manner."""

import random
import re
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import trio

from tests.engine_contract.raw import RESET_ON_CLOSE, post

#: Streams under way at one time, and what the gateway has for them: some leave the queue, a few are shed.
AT_ONCE = 64
SLOTS = 32
QUEUE = 28

#: What the engine sends: long enough to be left in the middle, in as many writes as events.
TOKENS = 30
#: A pause of the engine's after every fifth of them (seconds).
PACE_S = 0.002
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


#: How many bytes an answer has at the client, more or less: where a client may leave.
_ANSWER_BYTES = 2700

_LAST_CHUNK = b"\r\n0\r\n\r\n"
_TOKEN = re.compile(rb'"content":"([^".]*)\.(\d+)"')

Connect = Callable[[], Awaitable["trio.socket.SocketType"]]


def token(name: bytes, rank: int) -> bytes:
    """An event in its chunk, which says whose it is."""
    event = b'data: {"choices":[{"index":0,"delta":{"content":"%s.%d"}}]}\n\n' % (name, rank)
    return b"%x\r\n%s\r\n" % (len(event), event)


async def engine(stream: trio.SocketStream, body: bytes) -> None:
    """The engine's answer to a stormer's question (an Upstream's script)."""
    name = body.partition(b'"user":"')[2].partition(b'"')[0]
    await stream.send_all(HEAD)
    for rank in range(TOKENS):
        await stream.send_all(token(name, rank))
        if rank % 5 == 0:
            await trio.sleep(PACE_S)
    await stream.send_all(END)


@dataclass
class Storm:
    """`count` streams through `connect`, `at_once` at a time. `left` counts where and how clients left."""

    connect: Connect
    count: int
    seed: int
    at_once: int = AT_ONCE
    left: Counter[str] = field(default_factory=Counter)
    complete: int = 0
    refused: int = 0

    async def run(self) -> None:
        """Until the last client has left."""
        numbers = iter(range(self.count))
        async with trio.open_nursery() as nursery:
            for each in range(self.at_once):
                nursery.start_soon(self._worker, numbers, random.Random(f"{self.seed}.{each}"))

    async def _worker(self, numbers: Iterator[int], rng: random.Random) -> None:
        for number in numbers:
            await self._one(number, rng)

    async def _one(self, number: int, rng: random.Random) -> None:
        name = b"%d-%d" % (self.seed, number)
        members = {"model": "smollm2", "messages": [], "stream": True, "user": name.decode()}
        request = post("/v1/chat/completions", members, f"x-request-id: {name.decode()}")
        moment = rng.choice(["asking", "asked", "answered", "answered", "answered", "end"])
        how = rng.choice(["close", "reset", "half-close"])
        self.left[f"{moment}, {how}"] += 1
        sock = await self.connect()
        received = b""
        with sock:
            if moment == "asking":
                await sock.send(request[: rng.randrange(len(request))])
            else:
                await sock.send(request)
                if moment != "asked":
                    received = await self._read(sock, None if moment == "end" else rng.randrange(_ANSWER_BYTES))
            if how == "half-close":
                sock.shutdown(socket.SHUT_WR)
                received += await _drain(sock)
            elif how == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        tokens = _TOKEN.findall(received)
        assert tokens == [(name, b"%d" % rank) for rank in range(len(tokens))], received
        if received.endswith(_LAST_CHUNK):
            self.complete += 1
            assert len(tokens) == TOKENS
            assert received.count(b"data: [DONE]") == 1
        self.refused += received.startswith((b"HTTP/1.1 429", b"HTTP/1.1 503"))

    async def _read(self, sock: "trio.socket.SocketType", enough: int | None) -> bytes:
        """`enough` bytes of the answer, or all of it."""
        received = b""
        while (enough is None or len(received) < enough) and not received.endswith(_LAST_CHUNK):
            data = await sock.recv(65_536 if enough is None else enough - len(received))
            assert data, f"the gateway hung up first, after {received!r}"
            received += data
            if received.startswith(b"HTTP/1.1 4") and b'"error"' in received:
                break
        return received


async def _drain(sock: "trio.socket.SocketType") -> bytes:
    """The rest of a connection: the gateway takes a half-close for leaving, and closes its side."""
    received = b""
    try:
        while data := await sock.recv(65_536):
            received += data
    except ConnectionResetError:
        pass
    return received
