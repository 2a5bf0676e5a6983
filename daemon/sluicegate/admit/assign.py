"""Who gets which slot: one pure function, called after each change."""

from collections.abc import Iterable, Sequence

from ..engines.choose import choose, eligible
from ..engines.engine import Engine
from .claim import Ticket


def assign(queue: Iterable[Ticket], engines: Sequence[Engine]) -> list[tuple[Ticket, Engine]]:
    """The tickets that get a slot now, each with its engine. Changes nothing.

    `queue` in the order of service. A ticket is passed over only while all engines that may take it are full. After
    the slots are granted, no free slot and queued ticket that fit each other are left.
    """
    free = free_slots(engines)
    granted = []
    for ticket in queue:
        if not free:
            break
        engine = choose(free, eligible(ticket.claim.model, engines))
        if engine is not None:
            granted.append((ticket, engine))
            free[engine] -= 1
            if not free[engine]:
                del free[engine]
    return granted


def free_slots(engines: Iterable[Engine]) -> dict[Engine, int]:
    """How many slots are free, of the engines that have some."""
    free = {}
    for engine in engines:
        slots = int(engine.slots.available_tokens)
        if slots > 0:
            free[engine] = slots
    return free
