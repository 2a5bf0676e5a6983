"""The Quart application: a route table for everything that needs no slot and no engine of its own."""

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
import trio
from quart import Response, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import BaseConverter

from .. import refusals
from ..dialects.models import one, public
from ..dialects.routes import allowed, meant
from ..engines.engine import RETRY_AFTER_S
from ..outcome import Outcome, Refusal
from ..timing import server_timing
from .handler import Unmatched
from .intake import dialect_of, request_id

_JSON = "application/json"


class Status(Protocol):
    """What /health, /ready and /v1/models tell."""

    @property
    def draining(self) -> bool: ...

    @property
    def health(self) -> str:
        """ "ok", "starting", "degraded" or "down"."""
        ...

    @property
    def why(self) -> str: ...

    async def probed(self) -> None:
        """Return once the engines have answered a first probe, or have had the time for it."""
        ...

    @property
    def models(self) -> tuple[str, ...]: ...

    @property
    def models_body(self) -> bytes: ...


class _Name(BaseConverter):
    """A model's name, which may hold slashes and, if it is a path, begin with one."""

    regex = ".+"
    part_isolating = False


#: Takes an Accept header, returns a body and its content type.
Expose = Callable[[str | None], tuple[bytes, str]]

#: The same for the engine's own metrics. Raises Refusal.
Scrape = Callable[[str | None], Awaitable[tuple[bytes, str]]]


def make_app(status: Status, expose: Expose, scrape: Scrape, unmatched: Unmatched) -> QuartTrio:
    """The application. Every answer carries x-request-id and server-timing."""
    app = QuartTrio("sluicegate", static_folder=None)
    app.url_map.merge_slashes = False  # a redirect is none of the answers that clients of these APIs expect
    app.url_map.converters["name"] = _Name
    app.config["MAX_CONTENT_LENGTH"] = 0  # no route here reads a body: Quart keeps none of it in memory
    app.config["RESPONSE_TIMEOUT"] = None  # the socket's own deadline (hypercorn.py) is the one that counts

    @app.before_request
    async def identify() -> None:
        value = request.headers.get("x-request-id", "")
        g.request_id = request_id([(b"x-request-id", value.encode("latin-1", "replace"))])
        g.received_at = trio.current_time()
        if request.path != request.scope["path"]:  # Quart drops slashes in front
            raise NotFound

    @app.get("/health")
    @app.route("/ping", methods=["GET", "POST"])
    async def health() -> Response:
        if status.health == "ok":
            return _json({"status": "ok", "models": status.models})
        return _json({"status": status.health, "why": status.why, "models": status.models}, 503)

    @app.get("/ready")
    async def ready() -> Response:
        if status.draining:
            return _json({"ready": False, "why": "shutting down"}, 503)
        if status.health != "ok":
            return _json({"ready": False, "why": status.why}, 503)
        return _json({"ready": True})

    @app.get("/metrics")
    async def metrics() -> Response:
        body, content_type = expose(request.headers.get("accept"))
        return Response(body, content_type=content_type)

    @app.get("/engine/metrics")
    async def engine_metrics() -> Response:
        body, content_type = await scrape(request.headers.get("accept"))
        return Response(body, content_type=content_type)

    async def models_body() -> bytes:
        await status.probed()
        if status.health != "ok":
            message = f"No engine can be asked for its models now: {status.why}. Retry in a few seconds."
            raise Refusal(Outcome.ENGINE_UNAVAILABLE, 503, message, retry_after_s=RETRY_AFTER_S)
        return status.models_body

    @app.get("/v1/models")
    async def models() -> Response:
        return Response(public(await models_body()), content_type=_JSON)

    @app.get("/v1/models/<name:model>")
    async def model(model: str) -> Response:
        card = one(await models_body(), model)
        if card is None:
            raise Refusal(Outcome.INVALID, 404, "No such model. GET /v1/models lists what is here.", code="not_found")
        return Response(card, content_type=_JSON)

    @app.errorhandler(Refusal)
    async def refused(refusal: Refusal) -> Response:
        return _refused(refusal)

    @app.errorhandler(HTTPException)
    async def wrong(error: HTTPException) -> Response:
        path = request.scope["path"]
        refusal = _why(error, path)
        unmatched(g.request_id, refusal, request.method, path)
        return _refused(refusal)

    @app.after_request
    async def stamp(response: Response) -> Response:
        response.headers["x-request-id"] = g.request_id
        response.headers["server-timing"] = server_timing(g.received_at).decode("ascii")
        return response

    return app


def _why(error: HTTPException, path: str) -> Refusal:
    """Why there is no answer to the present request, of which Quart says `error`."""
    methods = _methods(error) or allowed(path)
    if methods:
        fields = ((b"allow", methods.encode("ascii")),)
        message = f"This route takes {methods} only."
        return Refusal(Outcome.INVALID, 405, message, code="method_not_allowed", headers=fields)
    if error.code == 404:
        route = meant(path)
        hint = f"Did you mean {route}? Check the client's base URL." if route else "docs/routes.md lists them all."
        return Refusal(Outcome.INVALID, 404, f"This gateway has no such route. {hint}", code="not_found")
    return Refusal(Outcome.INVALID, error.code or 500, error.name)


def _methods(error: HTTPException) -> str:
    """The methods that a route of ours takes, if that is what is wrong; else ""."""
    if not isinstance(error, MethodNotAllowed):
        return ""
    return ", ".join(sorted(set(error.valid_methods or ()) - {"HEAD", "OPTIONS"}))


def _json(data: object, code: int = 200) -> Response:
    return Response(msgspec.json.encode(data), status=code, content_type=_JSON)


def _refused(refusal: Refusal) -> Response:
    made = refusals.answer(dialect_of(request.path), refusal)
    headers = {name.decode("ascii"): value.decode("ascii") for name, value in made.headers}
    return Response(made.body, status=made.status, headers=headers)
