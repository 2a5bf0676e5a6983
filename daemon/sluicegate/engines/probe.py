"""Health: a task per engine that probes it, at a steady pace while it is up and faster while it is not."""

from collections.abc import Awaitable, Callable

import httpx2
import msgspec
import trio

from ..config.schema import Address, UnixAddress
from ..shortage import shortage
from .engine import Engine

#: A probe that takes longer than this counts as failed (seconds). vLLM's API server answers /health from its event
#: loop, which heavy tokenization can hold up for most of a second.
PROBE_TIMEOUT_S = 2.0

#: Probes that may time out in a row before a ready engine counts as unreachable. A refused connection counts at once.
PROBE_TIMEOUTS_MAX = 3

#: Upper bound of the pause between probes of an engine that is not ready (seconds), so that a restarted engine serves
#: again well within two seconds.
NOT_READY_INTERVAL_S = 0.5

#: Largest answer to a probe that we read (bytes).
PROBE_ANSWER_MAX = 1 << 20


class ProbeTimeout(Exception):
    """The engine accepted the connection, perhaps, but did not answer in time."""


class ProbeRefused(Exception):
    """Nothing listens at the address, or the connection broke."""


class ProbeImpossible(Exception):
    """We could not ask: this process or its host has run out of something. Says nothing about the engine."""


class ProbeDenied(Exception):
    """The engine asks for a key, or for another one."""


class ProbeUnhealthy(Exception):
    """The engine answered, but not with health."""


#: Returns the ids of the loaded models and the raw answer to GET /v1/models; raises one of the five above.
Probe = Callable[[], Awaitable[tuple[tuple[str, ...], bytes]]]


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class HttpProbe:
    """Probes an engine over HTTP: GET /health, then GET /v1/models. Use as an async context manager."""

    def __init__(self, address: Address, authorization: Callable[[], bytes] = bytes) -> None:
        """`authorization`: the field of that name; empty: none."""
        self._authorization = authorization
        uds = address.path if isinstance(address, UnixAddress) else None
        self._client = httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(uds=uds, limits=httpx2.Limits(max_connections=1)),
            base_url="http://engine" if uds else f"http://{address}",
            timeout=None,  # the whole probe has one deadline, in __call__
            trust_env=False,
        )

    async def __aenter__(self) -> "HttpProbe":
        return self

    async def __aexit__(self, *exc: object) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await self._client.aclose()

    async def __call__(self) -> tuple[tuple[str, ...], bytes]:
        with trio.move_on_after(PROBE_TIMEOUT_S):
            await self._get("/health")
            body = await self._get("/v1/models")
            try:
                models = msgspec.json.decode(body, type=_Models)
            except msgspec.DecodeError:
                raise ProbeUnhealthy("its answer to /v1/models is not a list of models") from None
            return tuple(model.id for model in models.data), body
        raise ProbeTimeout

    async def _get(self, path: str) -> bytes:
        key = self._authorization()
        try:
            headers = {b"authorization": key} if key else None
            async with self._client.stream("GET", path, headers=headers) as response:
                body = bytearray()
                # To its end, whatever its size: httpx2's generators cannot be left in the middle without a warning.
                async for part in response.aiter_bytes():
                    if len(body) <= PROBE_ANSWER_MAX:
                        body += part
        except (httpx2.HTTPError, OSError, ExceptionGroup) as error:
            if short_of := shortage(error):
                raise ProbeImpossible(f"the gateway has no {short_of} left") from None
            raise ProbeRefused(str(error) or type(error).__name__) from None
        if response.status_code == 401:
            raise ProbeDenied("refuses the key of [engine] api_key" if key else "asks for a key: set [engine] api_key")
        if response.status_code != 200:
            raise ProbeUnhealthy(f"{path} answers {response.status_code}")
        if len(body) > PROBE_ANSWER_MAX:
            raise ProbeUnhealthy(f"its answer to {path} is larger than {PROBE_ANSWER_MAX} bytes")
        return bytes(body)


async def watch(engine: Engine, probe: Probe, interval_s: Callable[[], float]) -> None:
    """Keep `engine`'s state true by probing it each `interval_s()` seconds (faster while not ready), for ever."""
    timeouts = 0
    while True:
        # Set before the probe: a request that cannot reach the engine meanwhile is newer than the probe's answer.
        wake = trio.Event()
        engine.wake_prober = wake.set
        try:
            models, body = await probe()
        except ProbeTimeout:
            timeouts += 1
            if timeouts >= PROBE_TIMEOUTS_MAX or not engine.up:
                engine.unreachable("the engine does not answer", f"the engine at {engine.address} does not answer")
        except ProbeRefused as error:
            detail = f"the engine at {engine.address} cannot be reached ({error})"
            engine.unreachable("the engine cannot be reached", detail)
        except ProbeImpossible as error:
            if not engine.up:
                why = f"cannot be asked ({error})"
                engine.unreachable(f"the engine {why}", f"the engine at {engine.address} {why}")
        except ProbeDenied as error:
            engine.unhealthy(f"the engine {error}", f"the engine at {engine.address} {error}")
        except ProbeUnhealthy as error:
            detail = f"the engine at {engine.address} is unhealthy: {error}"
            engine.unhealthy(f"the engine is unhealthy: {error}", detail)
        else:
            timeouts = 0
            engine.ready(models, body)
        with trio.move_on_after(interval_s() if engine.up else min(interval_s(), NOT_READY_INTERVAL_S)):
            await wake.wait()
