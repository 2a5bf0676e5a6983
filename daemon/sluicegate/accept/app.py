"""The Quart application: a route table for everything that needs no slot and no engine of its own."""

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
from quart import Response, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from .. import refusals
from ..dialects.routes import ENDPOINTS
from ..engines.engine import RETRY_AFTER_S
from ..outcome import Outcome, Refusal
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


#: Takes an Accept header, returns a body and its content type.
Expose = Callable[[str | None], tuple[bytes, str]]

#: The same for the engine's own metrics. Raises Refusal.
Scrape = Callable[[str | None], Awaitable[tuple[bytes, str]]]


def make_app(status: Status, expose: Expose, scrape: Scrape, unmatched: Unmatched) -> QuartTrio:
    """The application. Every answer carries x-request-id."""
    app = QuartTrio("sluicegate")
    app.config["RESPONSE_TIMEOUT"] = None  # the socket's own deadline (hypercorn.py) is the one that counts

    @app.before_request
    async def identify() -> None:
        value = request.headers.get("x-request-id", "")
        g.request_id = request_id([(b"x-request-id", value.encode("latin-1", "replace"))])

    @app.get("/health")
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
        try:
            body, content_type = await scrape(request.headers.get("accept"))
        except Refusal as refusal:
            return _refused(refusal)
        return Response(body, content_type=content_type)

    @app.get("/v1/models")
    async def models() -> Response:
        await status.probed()
        if status.health != "ok":
            message = f"No engine can be asked for its models now: {status.why}. Retry in a few seconds."
            return _refused(Refusal(Outcome.ENGINE_UNAVAILABLE, 503, message, retry_after_s=RETRY_AFTER_S))
        return Response(status.models_body, content_type=_JSON)

    @app.errorhandler(HTTPException)
    async def wrong(error: HTTPException) -> Response:
        refusal, allowed = _why(error.code or 500, error.name)
        unmatched(g.request_id, refusal.status, request.method, request.path)
        response = _refused(refusal)
        if allowed:
            response.headers["allow"] = allowed
        return response

    @app.after_request
    async def stamp(response: Response) -> Response:
        response.headers["x-request-id"] = g.request_id
        return response

    return app


def _why(code: int, name: str) -> tuple[Refusal, str]:
    """The refusal of the present request, of which Quart says `code` and `name`; and the method that its path takes."""
    if code == 405 or (request.path in ENDPOINTS and request.method != "POST"):
        allowed = "POST" if request.path in ENDPOINTS else "GET"
        message = f"{request.path} takes {allowed} only."
        return Refusal(Outcome.INVALID, 405, message, code="method_not_allowed"), allowed
    if code == 404:
        message = "This gateway has no such route. See GET /v1/models for what it serves."
        return Refusal(Outcome.INVALID, 404, message, code="not_found"), ""
    return Refusal(Outcome.INVALID, code, name), ""


def _json(data: object, code: int = 200) -> Response:
    return Response(msgspec.json.encode(data), status=code, content_type=_JSON)


def _refused(refusal: Refusal) -> Response:
    made = refusals.answer(dialect_of(request.path.encode("utf-8", "replace")), refusal)
    headers = {name.decode("ascii"): value.decode("ascii") for name, value in made.headers}
    return Response(made.body, status=made.status, headers=headers)
