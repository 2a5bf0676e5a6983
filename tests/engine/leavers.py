"""Clients that leave before their answer is whole, on each of the ways into the gateway."""

import json
import socket
from abc import ABC, abstractmethod
from typing import Any
from urllib.parse import urlsplit

import h2.config
import h2.connection
import h2.events
import trio

from tests.contract.raw import RawClient, post


class Leaver(ABC):
    """One client with one request. `stream` is its connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        # The time of leaving is what is measured: Nagle's algorithm may not hold a request back.
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = stream

    async def __aenter__(self) -> "Leaver":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stream.aclose()

    @abstractmethod
    async def ask(self, path: str, body: dict[str, Any]) -> None:
        """Send the request."""

    @abstractmethod
    async def receive_events(self, count: int) -> None:
        """Wait for at least so many events of the answer's stream."""

    async def leave(self) -> None:
        """Go away."""
        await self.stream.aclose()


class FastLeaver(Leaver):
    """HTTP/1.1 with a declared length: the gateway's own way in."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self._raw = RawClient(stream)

    async def ask(self, path: str, body: dict[str, Any]) -> None:
        await self.stream.send_all(post(path, body))

    async def receive_events(self, count: int) -> None:
        await self._raw.until_events(count)


class AsgiLeaver(FastLeaver):
    """HTTP/1.1 with a chunked body, which Hypercorn takes in and ASGI hands on."""

    async def ask(self, path: str, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: gate\r\ncontent-type: application/json\r\ntransfer-encoding: chunked"
        await self.stream.send_all(b"%b\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (head.encode(), len(data), data))


class Http2Leaver(Leaver):
    """HTTP/2 with prior knowledge. It resets its stream and keeps the connection, as HTTP/2 clients do to cancel."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._id = 0
        self._received = b""

    async def ask(self, path: str, body: dict[str, Any]) -> None:
        self._h2.initiate_connection()
        self._id = self._h2.get_next_available_stream_id()
        names = {":method": "POST", ":path": path, ":scheme": "http", ":authority": "gate"}
        self._h2.send_headers(self._id, [*names.items(), ("content-type", "application/json")])
        self._h2.send_data(self._id, json.dumps(body).encode(), end_stream=True)
        await self._flush()

    async def receive_events(self, count: int) -> None:
        while self._received.count(b"\n\n") < count:
            data = await self.stream.receive_some()
            assert data, "the gateway closed the connection"
            for event in self._h2.receive_data(data):
                assert not isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated), event
                if isinstance(event, h2.events.DataReceived):
                    self._received += event.data
                    self._h2.acknowledge_received_data(event.flow_controlled_length, self._id)
            await self._flush()

    async def leave(self) -> None:
        self._h2.reset_stream(self._id)
        await self._flush()

    async def _flush(self) -> None:
        await self.stream.send_all(self._h2.data_to_send())


WAYS: dict[str, type[Leaver]] = {"fast": FastLeaver, "asgi": AsgiLeaver, "http2": Http2Leaver}


async def come(way: str, base_url: str) -> Leaver:
    """A client that is connected to the gateway at `base_url`."""
    url = urlsplit(base_url)
    assert url.hostname
    assert url.port
    return WAYS[way](await trio.open_tcp_stream(url.hostname, url.port))
