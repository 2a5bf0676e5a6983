"""Backends: the engines that we know, what state each is in, and the choice of one."""

import enum
from collections.abc import Callable, Collection, Sequence

from ..config.schema import Address
from ..outcome import Outcome, Refusal


class EngineState(enum.Enum):
    """What the last probes said.

    STARTING: never yet ready since the gateway started. UP: healthy, with a model loaded. DEGRADED: it answers, but has
    no model or says that it is unwell. DOWN: was ready once, and is not reachable now.
    """

    STARTING = "starting"
    UP = "ok"
    DEGRADED = "degraded"
    DOWN = "down"


class Backend:
    """One engine. Its state is written by the prober, and by `failed` when a request finds it dead."""

    def __init__(self, name: str, address: Address, changed: Callable[["Backend"], None] = lambda _: None) -> None:
        """`changed` is called after each change of `state`."""
        self.name = name
        self.address = address
        self.state = EngineState.STARTING
        self.why = "it has not answered a probe yet"
        self.models: tuple[str, ...] = ()
        self.models_body = b""
        self._was_up = False
        self._changed = changed
        self.wake_prober: Callable[[], None] = lambda: None

    @property
    def up(self) -> bool:
        return self.state is EngineState.UP

    def ready(self, models: tuple[str, ...], models_body: bytes) -> None:
        """A probe found it healthy; `models_body` is its own answer to GET /v1/models."""
        self.models, self.models_body = models, models_body
        if models:
            self._was_up = True
            self._become(EngineState.UP, "")
        else:
            self._become(EngineState.DEGRADED, "the engine has no model loaded")

    def unwell(self, why: str) -> None:
        """It answered a probe, but not with health."""
        self._become(EngineState.DEGRADED, why)

    def unreachable(self, why: str) -> None:
        """Nobody answered a probe."""
        self._become(EngineState.DOWN if self._was_up else EngineState.STARTING, why)

    def failed(self, why: str) -> None:
        """A request could not reach it: send no more until a probe succeeds, and probe at once."""
        self.unreachable(why)
        self.wake_prober()

    def _become(self, state: EngineState, why: str) -> None:
        before, self.state, self.why = self.state, state, why
        if state is not before:
            self._changed(self)

    def __repr__(self) -> str:
        return f"<Backend {self.name} {self.state.value} models={list(self.models)} {self.why}>"


class Backends:
    """All engines, at least one."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self.all = tuple(backends)

    def choose(self, tried: Collection[Backend] = ()) -> Backend:
        """The first ready backend that is not among `tried`. Refusal (503) if there is none."""
        for backend in self.all:
            if backend.up and backend not in tried:
                return backend
        raise Refusal(
            Outcome.ENGINE_UNAVAILABLE,
            503,
            f"No engine can take requests now: {self.why}. Retry in a few seconds.",
            retry_after_s=5,
        )

    @property
    def state(self) -> EngineState:
        """UP if any engine is; else the state of the first."""
        return EngineState.UP if any(b.up for b in self.all) else self.all[0].state

    @property
    def why(self) -> str:
        """Why the first engine that is not up is not; empty if all are."""
        return next((b.why for b in self.all if not b.up), "")

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that ready engines serve, each once, in order of first appearance."""
        return tuple(dict.fromkeys(m for b in self.all if b.up for m in b.models))

    @property
    def models_body(self) -> bytes:
        """The answer to GET /v1/models: the first ready engine's own."""
        return next((b.models_body for b in self.all if b.up), b"")
