"""OPTIONS: what a route takes, and the preflights of browsers. Answered without the engine and without a slot."""

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPResponseBodyEvent, HTTPResponseStartEvent

from ..dialects.routes import methods
from ..exchange import Headers
from ..timing import server_timing
from . import cors
from .intake import request_id
from .sockets import LINGER_S


async def options(
    path: str, headers: Headers, origins: tuple[str, ...], receive: ASGIReceiveCallable, send: ASGISendCallable
) -> bool:
    """Answer an OPTIONS; False, and nothing was done, if there is no such route and it is no preflight.

    A preflight for an unknown route is answered: the page is then told in words that there is no such route.
    `origins`: cors.origins.
    """
    allow = "GET, POST" if path == "*" else methods(path)  # RFC 9110, 9.3.7: * is the server as a whole
    preflight = cors.preflight(origins, headers)
    if preflight is None and not allow:
        return False
    received_at = trio.current_time()
    with trio.move_on_after(LINGER_S):  # it may have a body, which says nothing
        while (event := await receive())["type"] == "http.request" and event["more_body"]:
            pass
    fields = list(cors.fields(origins, cors.origin_of(headers)) if preflight is None else preflight)
    fields += [(b"x-request-id", request_id(headers).encode("ascii")), (b"server-timing", server_timing(received_at))]
    if allow:
        fields.append((b"allow", f"{allow}, OPTIONS".encode("ascii")))
    if path == "*":
        fields.append((b"content-length", b"0"))
    status = 200 if path == "*" else 204
    await send(HTTPResponseStartEvent(type="http.response.start", status=status, headers=fields, trailers=False))
    await send(HTTPResponseBodyEvent(type="http.response.body", body=b"", more_body=False))
    return True
