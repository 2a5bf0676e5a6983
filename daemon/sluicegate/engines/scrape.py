"""The engine's own metrics, for a Prometheus that cannot reach an engine on a Unix socket."""

from collections.abc import Callable

import httpx2
import trio

from ..config.schema import Address, UnixAddress
from ..observe.exposition import wants_openmetrics
from ..outcome import Outcome, Refusal
from ..shortage import exhausted, shortage
from .engine import RETRY_AFTER_S

#: Longest that a scrape may take (seconds); Prometheus gives up after its own scrape_timeout, 10 s unless told.
SCRAPE_TIMEOUT_S = 5.0

#: Largest answer that is passed on (bytes). vLLM's is some hundred kilobytes with every label in use.
SCRAPE_MAX_BYTES = 16 * 1024 * 1024

#: What we ask for, so that nothing that a client sent goes to the engine.
_OPENMETRICS = "application/openmetrics-text; version=1.0.0, text/plain; q=0.5"
_TEXT = "text/plain; version=0.0.4"


class Scrape:
    """GET /metrics of an engine, over one connection of its own: scrapes never stand in the way of probes.

    Its maker must `aclose` it.
    """

    def __init__(self, address: Address, authorization: Callable[[], bytes] = bytes) -> None:
        """`authorization`: the field of that name; empty: none."""
        self.address = address
        self._authorization = authorization
        self._client: httpx2.AsyncClient | None = None

    async def aclose(self) -> None:
        """Close its connection."""
        client, self._client = self._client, None
        if client is not None:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await client.aclose()

    async def __call__(self, accept: str | None) -> tuple[bytes, str]:
        """The body and its content type, in the format that this Accept header asks for. Refusal (503) if it fails."""
        with trio.move_on_after(SCRAPE_TIMEOUT_S):
            try:
                return await self._get(_OPENMETRICS if wants_openmetrics(accept) else _TEXT)
            except (httpx2.HTTPError, OSError, ExceptionGroup) as error:
                if short_of := shortage(error):
                    raise exhausted(short_of) from None
                raise self._refusal("cannot be reached", f" ({str(error) or type(error).__name__})") from None
        raise self._refusal(f"did not tell its metrics within {SCRAPE_TIMEOUT_S:g} s")

    async def _get(self, accept: str) -> tuple[bytes, str]:
        if self._client is None:  # made by the first scrape: where nobody scrapes, there is none
            self._client = _client(self.address)
        headers = {b"accept": accept.encode("ascii")}
        if key := self._authorization():
            headers[b"authorization"] = key
        async with self._client.stream("GET", "/metrics", headers=headers) as response:
            body = bytearray()
            # To its end, whatever its size: httpx2's generators cannot be left in the middle without a warning.
            async for part in response.aiter_bytes():
                if len(body) <= SCRAPE_MAX_BYTES:
                    body += part
        if response.status_code != 200:
            raise self._refusal(f"answers /metrics with {response.status_code}")
        if len(body) > SCRAPE_MAX_BYTES:
            raise self._refusal(f"tells more than {SCRAPE_MAX_BYTES} bytes of metrics")
        return bytes(body), response.headers.get("content-type", "text/plain; charset=utf-8")

    def _refusal(self, what: str, why: str = "") -> Refusal:
        detail = f"The engine at {self.address} {what}{why}."
        return Refusal(
            Outcome.ENGINE_UNAVAILABLE, 503, f"The engine {what}.", retry_after_s=RETRY_AFTER_S, detail=detail
        )


def _client(address: Address) -> httpx2.AsyncClient:
    uds = address.path if isinstance(address, UnixAddress) else None
    return httpx2.AsyncClient(
        # Without TLS, which is never spoken to an engine, no certificates need to be loaded.
        transport=httpx2.AsyncHTTPTransport(uds=uds, verify=False, limits=httpx2.Limits(max_connections=1)),
        base_url="http://engine" if uds else f"http://{address}",
        headers={"accept-encoding": "identity"},  # on this host, packing costs more than sending
        timeout=None,  # the whole scrape has one deadline
        trust_env=False,
    )
