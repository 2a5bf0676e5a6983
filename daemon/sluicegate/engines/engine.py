"""Engines: an address with its state, models, connections and slots; and all of them together."""

import enum
from collections.abc import Callable, Collection, Sequence

import trio

from ..config.schema import Address
from ..outcome import Outcome, Refusal
from ..relay.pool import Pool
from .choose import eligible

#: Longest that a request waits for an engine's first probe (seconds): a little more than a probe may take.
FIRST_PROBE_S = 3.0

#: Retry-After of a refusal because no engine is up (seconds). Probes find a restarted engine well within it.
RETRY_AFTER_S = 5


class EngineState(enum.Enum):
    """What the last probes said.

    STARTING: never ready since the gateway started. UP: healthy, with a model loaded. DEGRADED: it answers, but has no
    model or reports that it is unhealthy. DOWN: was ready once, and cannot be reached now.
    """

    STARTING = "starting"
    UP = "ok"
    DEGRADED = "degraded"
    DOWN = "down"


class Engine:
    """One engine. The prober writes its state, and `failed` does when a request cannot reach it.

    `slots` is the only truth about how many requests it may have at one time; `total_tokens` may change at any time.
    `authorization` is what it gets in that field; empty: what the client sent.
    `models_body` is its own answer to GET /v1/models. `why` it is not up may be told to clients, and so has no address;
    `detail` is the same for the log, and has one.
    """

    def __init__(
        self,
        name: str,
        address: Address,
        connections: Pool,
        slots: trio.CapacityLimiter,
        changed: Callable[["Engine"], None] = lambda _: None,
    ) -> None:
        """`changed` is called after each change of `state`; `Engines` sets `noted`, called after each probe."""
        self.name = name
        self.address = address
        self.connections = connections
        self.authorization = b""
        self.slots = slots
        self.state = EngineState.STARTING
        self.why = self.detail = "it has not answered a probe yet"
        self.models: tuple[str, ...] = ()
        self.models_body = b""
        self.wake_prober: Callable[[], None] = lambda: None
        self._was_up = False
        self._probed = trio.Event()
        self._changed = changed
        self.noted: Callable[[], None] = lambda: None

    @property
    def up(self) -> bool:
        return self.state is EngineState.UP

    @property
    def probed(self) -> bool:
        """Whether a first probe has ended, in whatever way. Until then nothing is known of the engine."""
        return self._probed.is_set()

    async def first_probe(self) -> None:
        """Return once the first probe has ended."""
        await self._probed.wait()

    def ready(self, models: tuple[str, ...], models_body: bytes) -> None:
        """A probe found it healthy."""
        self.models, self.models_body = models, models_body
        if models:
            self._was_up = True
            self._become(EngineState.UP)
        else:
            self._become(EngineState.DEGRADED, "the engine has no model loaded")

    def unhealthy(self, why: str, detail: str = "") -> None:
        """It answered a probe, but not with health."""
        self._become(EngineState.DEGRADED, why, detail)

    def unreachable(self, why: str, detail: str = "") -> None:
        """It did not answer a probe."""
        self._become(EngineState.DOWN if self._was_up else EngineState.STARTING, why, detail)

    def failed(self, why: str, detail: str = "") -> None:
        """A request could not reach it: send no more until a probe succeeds, and probe at once."""
        self.unreachable(why, detail)
        self.connections.close_idle()
        self.wake_prober()

    def _become(self, state: EngineState, why: str = "", detail: str = "") -> None:
        before, self.state = self.state, state
        self.why, self.detail = why, detail or why
        self.noted()
        if state is not before:
            self._changed(self)
        self._probed.set()

    def __repr__(self) -> str:
        return f"<Engine {self.name} {self.state.value} models={list(self.models)} {self.detail}>"


class Engines:
    """All engines, at least one. The first is the default: it speaks for all of them while none is up.

    What is true of all together is kept ready for the requests, and worked out anew after each probe:
    `state`: UP if any engine is up, else the default's state. `why`: why the first engine that is not up is not, for
    clients; `detail`: the same for the log, with the engine's address; both empty if all are up. `models`: names of
    the models of the engines that are up, each once, in order of first appearance. `models_body`: the answer to GET
    /v1/models, that of the first engine that is up.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.all = tuple(engines)
        self._all_probed = False
        for engine in self.all:
            engine.noted = self._note
        self._note()

    def _note(self) -> None:
        up = [engine for engine in self.all if engine.up]
        self.state = EngineState.UP if up else self.default.state
        not_up = next((engine for engine in self.all if not engine.up), None)
        self.why, self.detail = (not_up.why, not_up.detail) if not_up else ("", "")
        self.models = tuple(dict.fromkeys(model for engine in up for model in engine.models))
        self.models_body = up[0].models_body if up else b""

    @property
    def default(self) -> Engine:
        return self.all[0]

    async def probed(self) -> None:
        """Return once a request can be told whether it can be served: when an engine is up, or all were probed once.

        At most FIRST_PROBE_S after the call. Without a task switch unless there is something to wait for.
        """
        if self._all_probed:
            return
        with trio.move_on_after(FIRST_PROBE_S):
            for engine in self.all:
                if self.state is not EngineState.UP:
                    await engine.first_probe()
        self._all_probed = all(engine.probed for engine in self.all)

    def check(self) -> None:
        """Refusal (503) if no engine is up."""
        if self.state is not EngineState.UP:
            raise self.unavailable()

    def unavailable(self) -> Refusal:
        """The refusal of a request that no engine can take now."""
        said = "No engine can take requests now"
        message, detail = f"{said}: {self.why}. Retry in a few seconds.", f"{said}: {self.detail}."
        return Refusal(Outcome.ENGINE_UNAVAILABLE, 503, message, retry_after_s=RETRY_AFTER_S, detail=detail)

    def first(self, model: str) -> Engine:
        """The engine for a request for `model` that needs no slot."""
        return self.other(model, ()) or self.default

    def other(self, model: str, tried: Collection[Engine]) -> Engine | None:
        """The same, not among `tried`; None if no other is up."""
        untried = [engine for engine in self.all if engine.up and engine not in tried]
        return eligible(model, untried)[0] if untried else None
