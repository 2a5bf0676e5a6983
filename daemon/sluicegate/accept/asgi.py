"""The ordinary way in: ASGI, as Hypercorn speaks it for HTTP/1.1 and HTTP/2.

Inference routes go from here straight to the pipeline; everything else goes on to Quart.
"""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import cast

import trio
from hypercorn.typing import (
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    HTTPResponseBodyEvent,
    HTTPResponseStartEvent,
    HTTPScope,
    Scope,
    WebsocketScope,
)

from .. import refusals
from ..config.live import Live
from ..config.schema import Config
from ..dialects.routes import ENDPOINTS
from ..exchange import ClientGone, ClientStalled, Dialect, Headers, Splice
from ..outcome import Outcome, Refusal
from .handler import Handler, Peer, Unmatched, present_peer
from .intake import LINGER_S, PIECE, declared_length, is_host, make_request, request_id, too_large, too_slow


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
            self._unmatched(request_id(_headers(scope)), 403)
            await send({"type": "websocket.close", "code": 1000, "reason": None})  # before "accept": a plain 403
            return
        assert scope["type"] == "http"
        scope = _in_origin_form(scope)
        if (scope["method"], scope["path"]) == ("OPTIONS", "*"):  # of the server as a whole
            named = request_id(_headers(scope))
            await _answer(scope, send, 200, [(b"allow", b"GET, POST, OPTIONS")], b"", named)
            return
        if (refusal := _refusal(scope)) is not None:
            await self._refuse(scope, send, refusal)
            return
        endpoint = ENDPOINTS.get(scope["path"]) if scope["method"] == "POST" else None
        manners = _Manners(receive, send)
        receive, send = manners.receive, manners.send
        try:
            if endpoint is None:
                await self._inner(scope, receive, send)
                return
            async with trio.open_nursery() as nursery:
                headers = _headers(scope)
                config = self._live.current
                body = AsgiBody(receive, headers, config, nursery)
                request = make_request(endpoint, headers, body)
                peer = present_peer.get()
                client = AsgiClient(request.id, send, body, peer, config.timeouts.client_stall_s)
                with peer.watched(body.leave):
                    await self._pipeline.handle(request, client)
                nursery.cancel_scope.cancel()
        except* (ClientGone, ClientStalled):
            pass  # the client has disconnected; its connection is closed already

    async def _refuse(self, scope: HTTPScope, send: ASGISendCallable, refusal: Refusal) -> None:
        """Answer what is no request that this server takes, and close its connection."""
        named = request_id(_headers(scope))
        self._unmatched(named, refusal.status)
        answer = refusals.answer(Dialect.CHAT, refusal)
        await _answer(scope, send, answer.status, answer.headers, answer.body, named)


def _headers(scope: HTTPScope | WebsocketScope) -> Headers:
    return cast(Headers, list(scope["headers"]))


async def _answer(
    scope: HTTPScope, send: ASGISendCallable, status: int, headers: Headers, body: bytes, named: str
) -> None:
    """Answer without reading the request, and close its connection."""
    fields = [*headers, (b"content-length", b"%d" % len(body)), (b"x-request-id", named.encode("ascii"))]
    if scope["http_version"] != "2":  # where a field of a connection is an error
        fields.append((b"connection", b"close"))
    await send(HTTPResponseStartEvent(type="http.response.start", status=status, headers=fields, trailers=False))
    await send(HTTPResponseBodyEvent(type="http.response.body", body=body, more_body=False))


def _in_origin_form(scope: HTTPScope) -> HTTPScope:
    """`scope` with its target's authority in place of the Host, if it has one (RFC 9112, section 3.2.2)."""
    match = _ABSOLUTE_FORM.match(scope["path"])
    if match is None:
        return scope
    authority = match["authority"].encode("ascii", "replace")
    headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
    path = scope["path"][match.end() :] or "/"
    return {**scope, "path": path, "raw_path": path.encode(), "headers": [(b"host", authority), *headers]}


_ABSOLUTE_FORM = re.compile(r"https?://(?P<authority>[^/?#]*)", re.IGNORECASE)


def _refusal(scope: HTTPScope) -> Refusal | None:
    """Why a request is none that this server takes, where Hypercorn lets it through."""
    if scope["http_version"] not in ("1.0", "1.1", "2"):
        message = "This gateway speaks HTTP/1.1 and HTTP/2. Use one of them."
        return Refusal(Outcome.INVALID, 505, message)
    if any(name == b"host" and not is_host(value) for name, value in scope["headers"]):
        return Refusal(Outcome.INVALID, 400, "The request's Host is neither a name nor an address.")
    if not scope["path"].startswith("/"):
        return Refusal(Outcome.INVALID, 400, "The request's target is neither a path nor an absolute URL.")
    return None


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

    def __init__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        self._receive = receive
        self._send = send
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


class AsgiBody:
    """The body of a request, from ASGI's events, and the watch over the client once the body is in.

    `nursery` is cancelled when the client leaves.
    """

    def __init__(self, receive: ASGIReceiveCallable, headers: Headers, config: Config, nursery: trio.Nursery) -> None:
        self._receive = receive
        self._headers = headers
        self._config = config
        self._nursery = nursery
        self._watching = False
        self.ending = False

    async def whole(self) -> bytes:
        parts = [part async for part in self.parts()]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def parts(self) -> AsyncGenerator[bytes, None]:
        limits, seconds = self._config.limits, self._config.timeouts.body_read_s
        declared_length(self._headers, limits)
        size, more = 0, True
        deadline = trio.current_time() + seconds
        while more:
            event = None
            with trio.move_on_at(deadline):
                event = await self._receive()
            if event is None:
                raise too_slow(seconds)
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
        through one bounded channel, and its connection would hang for ever on a full one.
        """
        if not self._watching:
            self._watching = True
            self._nursery.start_soon(self._watch)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.leave()

    def leave(self) -> None:
        """The client left. Once the end of its answer is being sent it may: it has everything."""
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
        self.started = False
        self.splice: Splice | None = None

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        await self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self.send(body)
        await self.finish()

    async def start(self, status: int, headers: Headers) -> None:
        self.started = True
        self._body.watch()
        fields = [*headers, (b"x-request-id", self._request_id.encode("ascii"))]
        await self._emit(
            HTTPResponseStartEvent(type="http.response.start", status=status, headers=fields, trailers=False)
        )

    async def send(self, data: bytes) -> None:
        # The deadline is for each piece, or a client would have to take a large answer as fast as a small one.
        for at in range(0, len(data), PIECE):
            piece = data[at : at + PIECE]
            await self._emit(HTTPResponseBodyEvent(type="http.response.body", body=piece, more_body=True))

    async def finish(self) -> None:
        self._body.ending = True
        await self._emit(HTTPResponseBodyEvent(type="http.response.body", body=b"", more_body=False))

    async def _emit(self, event: ASGISendEvent) -> None:
        # HTTP/2's flow control blocks here, above the socket whose own deadline is in hypercorn.py.
        with trio.move_on_after(self._stall_s) as deadline:
            await self._send(event)
        if deadline.cancelled_caught:
            # On HTTP/2 with all its streams: Hypercorn has no way to give up a single one that is not taken.
            self._peer.abort()
            raise ClientStalled
