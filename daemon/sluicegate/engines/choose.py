"""Which engine a request goes to: pure functions over the engines' state, so that any state can be tried on them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """What a choice depends on."""

    @property
    def up(self) -> bool: ...

    @property
    def models(self) -> Collection[str]: ...


C = TypeVar("C", bound=Candidate)


def eligible(model: str, engines: Sequence[C]) -> Sequence[C]:
    """The engines that may take a request for `model`; never empty.

    Those that are up and serve it. If none does, all that are up: the engine's own 404 explains it best. If none is
    up, all: a request that gets a slot there is refused at once, with the reason, instead of waiting for nothing.
    """
    if len(engines) == 1:
        return engines
    up = [engine for engine in engines if engine.up] or engines
    return [engine for engine in up if model in engine.models] or up


def choose(free: Mapping[C, int], candidates: Iterable[C]) -> C | None:
    """Of the `candidates`, the one with the most free slots, the first of several; None if none has any.

    `free`: free slots of the engines that have some, each >= 1.
    """
    best, most = None, 0
    for engine in candidates:
        slots = free.get(engine, 0)
        if slots > most:
            best, most = engine, slots
    return best
