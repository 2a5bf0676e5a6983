"""The ordinary way in: ASGI, as Hypercorn speaks it for HTTP/1.1 and HTTP/2.

Inference routes go from here straight to the pipeline; everything else goes on to Quart.
"""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import cast

import trio
from hypercorn.typing import (
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    HTTPResponseBodyEvent,
    HTTPResponseStartEvent,
    Scope,
    WebsocketResponseBodyEvent,
    WebsocketResponseStartEvent,
    WebsocketScope,
)

from .. import refusals
from ..config.live import Live
from ..config.schema import Config
from ..dialects.routes import find
from ..exchange import ClientGone, ClientStalled, Headers, Room, Splice
from ..outcome import Outcome, Refusal
from ..timing import server_timing
from . import cors
from .codings import decoded
from .handler import Handler, Peer, Unmatched, present_peer
from .http1.grammar import without_dots
from .intake import PIECE, Held, declared_length, dialect_of, make_request, request_id, too_large, too_slow
from .options import options
from .proxied import client_of
from .sockets import LINGER_S

#: Bytes that a request line cannot hold.
_UNSAFE = re.compile(rb"[^\x21-\x7e]")


class Gate:
    """ASGI application: the inference routes, with `inner` (Quart) behind it for all other paths and methods."""

    def __init__(
        self, config: Live, pipeline: Handler, unmatched: Unmatched, inner: Callable[..., Awaitable[None]]
    ) -> None:
        self._live = config
        self._pipeline = pipeline
        self._unmatched = unmatched
        self._inner = inner

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "websocket":
            await self._refuse_websocket(scope, send)
            return
        assert scope["type"] == "http"
        if "/." in scope["path"]:
            scope["path"] = without_dots(scope["path"])
        headers = cast(Headers, list(scope["headers"]))
        origins = self._live.current.cors.origins
        if scope["method"] == "OPTIONS" and await options(scope["path"], headers, origins, receive, send):
            return
        manners = _Manners(receive, send, cors.fields(origins, cors.origin_of(headers)) if origins else ())
        endpoint = find(scope["method"], scope["path"])
        receive, send = manners.receive, manners.send
        try:
            if endpoint is None:
                await self._inner(scope, receive, send)
                return
            async with trio.open_nursery() as nursery:
                config = self._live.current
                peer = present_peer.get()
                address = client_of(peer.address, headers, config.proxies.trusted)
                body = AsgiBody(receive, headers, config, nursery, peer)
                plain, headers = decoded(body, headers, config.limits)
                request = make_request(endpoint, headers, plain, _query(scope["query_string"]), address)
                client = AsgiClient(request.id, send, body, peer, config.timeouts.client_stall_s)
                with peer.watched(body.disconnected):
                    await self._pipeline.handle(request, client)
                nursery.cancel_scope.cancel()
        except* (ClientGone, ClientStalled):
            pass  # the client disconnected; the connection is closed already

    async def _refuse_websocket(self, scope: WebsocketScope, send: ASGISendCallable) -> None:
        """426, at which a client that can do without goes on over HTTP. It tries again at a 403."""
        received_at = trio.current_time()
        named = request_id(cast(Headers, list(scope["headers"])))
        message = "There is no WebSocket here. Send the request over HTTP, without Upgrade."
        refusal = Refusal(Outcome.INVALID, 426, message, code="upgrade_required")
        self._unmatched(named, refusal, "GET", scope["path"])
        made = refusals.answer(dialect_of(scope["path"]), refusal)
        length = (b"content-length", b"%d" % len(made.body))
        timing = (b"server-timing", server_timing(received_at))
        headers = [*made.headers, (b"x-request-id", named.encode("ascii")), timing, length]
        if scope["http_version"] == "1.1":  # RFC 9110, 15.5.22: a 426 names what would do. HTTP/2 has no such fields.
            headers += [(b"upgrade", b"HTTP/1.1"), (b"connection", b"upgrade, close")]
        await send(
            WebsocketResponseStartEvent(type="websocket.http.response.start", status=made.status, headers=headers)
        )
        await send(WebsocketResponseBodyEvent(type="websocket.http.response.body", body=made.body, more_body=False))


def _query(text: bytes) -> bytes:
    """A query for the engine's request line. HTTP/2 lets bytes through that may not stand there."""
    return b"?" + _UNSAFE.sub(lambda odd: b"%%%02X" % odd[0][0], text) if text else b""


class _Manners:
    """ASGI's two ends, without Hypercorn's habits around the end of an answer.

    It forgets a request when its answer ends. On HTTP/1.1 it then closes the connection, and with bytes unread that
    resets it under the answer; on HTTP/2 what still comes of the request breaks the whole connection. So no answer
    ends before its request has, or LINGER_S have passed. An application that answers must go on receiving meanwhile, as
    AsgiBody.watch and Quart do.

    It says "disconnect" at the proper end of an answer, too, in the middle of the last send. An application that is
    cancelled by that cannot finish the send, and its connection is left without a close and without an idle deadline.
    So a disconnect waits until that send is over.
    """

    def __init__(
        self, receive: ASGIReceiveCallable, send: ASGISendCallable, fields: Iterable[tuple[bytes, bytes]]
    ) -> None:
        """`fields`: further ones of each head."""
        self._receive = receive
        self._send = send
        self._fields = fields
        self._heard_out = trio.Event()
        self._last_send: trio.Event | None = None

    async def receive(self) -> ASGIReceiveEvent:
        event = await self._receive()
        if event["type"] != "http.request" or not event["more_body"]:
            self._heard_out.set()
        if event["type"] == "http.disconnect" and self._last_send is not None:
            await self._last_send.wait()
        return event

    async def send(self, event: ASGISendEvent) -> None:
        if event["type"] == "http.response.start":
            event["headers"] = [*event["headers"], *self._fields]
        if event["type"] != "http.response.body" or event["more_body"]:
            await self._send(event)
            return
        if not self._heard_out.is_set():
            await self._send(HTTPResponseBodyEvent(type="http.response.body", body=event["body"], more_body=True))
            with trio.move_on_after(LINGER_S):
                await self._heard_out.wait()
            event = HTTPResponseBodyEvent(type="http.response.body", body=b"", more_body=False)
        self._last_send = trio.Event()
        try:
            await self._send(event)
        finally:
            self._last_send.set()


class AsgiBody(Held):
    """The body of a request, from ASGI's events, and the watch over the client once the body is in.

    `nursery` is cancelled when the client disconnects.
    """

    def __init__(
        self, receive: ASGIReceiveCallable, headers: Headers, config: Config, nursery: trio.Nursery, peer: Peer
    ) -> None:
        self._receive = receive
        self._headers = headers
        self._config = config
        self._nursery = nursery
        self._peer = peer
        self._watching = False
        self.ending = False

    async def whole(self, room: Room) -> bytes:
        room.begin(declared_length(self._headers, self._config.limits) or 0)
        parts = []
        async with aclosing(self.parts(room)) as arriving:
            async for part in arriving:
                self.hold(room, len(part))
                parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def parts(self, room: Room) -> AsyncGenerator[bytes, None]:  # noqa: ARG002 -- nothing is held
        limits, seconds = self._config.limits, self._config.timeouts.body_read_s
        declared_length(self._headers, limits)
        await self._peer.go_on()
        size, more = 0, True
        deadline = trio.current_time() + seconds
        while more:
            event = None
            with trio.move_on_at(deadline):
                event = await self._receive()
            if event is None:
                raise too_slow(seconds)
            if self._peer.refusal is not None:
                raise self._peer.refusal
            if event["type"] != "http.request":
                raise ClientGone
            size += len(event["body"])
            if size > limits.body_max_bytes:
                raise too_large(limits)
            if event["body"]:
                yield event["body"]
            more = event["more_body"]
        self.watch()

    def watch(self) -> None:
        """From now on take whatever comes: nothing more is read of the body, and a disconnect cancels the nursery.

        Must be on before an answer is sent to a request whose body was not read: Hypercorn delivers body and disconnect
        through one bounded channel, and its connection would hang on a full one.
        """
        if not self._watching:
            self._watching = True
            self._nursery.start_soon(self._watch)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.disconnected()

    def disconnected(self) -> None:
        """The client disconnected. Not an abort once the end of its answer is being sent."""
        if not self.ending:
            self._nursery.cancel_scope.cancel()


class AsgiClient:
    """The client's end of an exchange, over ASGI's send."""

    def __init__(self, request_id: str, send: ASGISendCallable, body: AsgiBody, peer: Peer, stall_s: float) -> None:
        self._request_id = request_id
        self._peer = peer
        self._send = send
        self._body = body
        self._stall_s = stall_s
        self.timing: Callable[[], bytes] | None = None
        self.started = False
        self.splice: Splice | None = None

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        await self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
        last = max(len(body) - PIECE, 0)
        await self.send(body[:last])
        await self._end(body[last:])

    async def start(self, status: int, headers: Headers) -> None:
        self.started = True
        self._body.watch()
        fields = [*headers, (b"x-request-id", self._request_id.encode("ascii"))]
        if self.timing is not None:
            fields.append((b"server-timing", self.timing()))
        await self._emit(
            HTTPResponseStartEvent(type="http.response.start", status=status, headers=fields, trailers=False)
        )

    async def send(self, data: bytes) -> None:
        # The deadline is for each piece, or a client would have to take a large answer as fast as a small one.
        for at in range(0, len(data), PIECE):
            piece = data[at : at + PIECE]
            await self._emit(HTTPResponseBodyEvent(type="http.response.body", body=piece, more_body=True))

    async def finish(self) -> None:
        await self._end(b"")

    async def _end(self, data: bytes) -> None:
        """Send the last of the answer. A client may close at its last byte: from here on that is no abort."""
        self._body.ending = True
        await self._emit(HTTPResponseBodyEvent(type="http.response.body", body=data, more_body=False))

    async def _emit(self, event: ASGISendEvent) -> None:
        # HTTP/2's flow control blocks here, above the socket whose own deadline is in hypercorn.py.
        with trio.move_on_after(self._stall_s) as stall:
            await self._send(event)
        if stall.cancelled_caught:
            # On HTTP/2 with all its streams: Hypercorn has no way to give up a single one that is not taken.
            self._peer.abort()
            raise ClientStalled
