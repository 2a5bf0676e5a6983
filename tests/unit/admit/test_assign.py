"""Which ticket gets which slot: the pure function, over any queue and any engines."""

from hypothesis import given
from hypothesis import strategies as st

from sluicegate.admit.assign import assign
from sluicegate.admit.claim import Claim, Ticket
from sluicegate.engines.choose import eligible
from sluicegate.engines.engine import Engine
from tests.unit.engines.watched import make_engine

MODELS = ("m", "n", "unknown")


def queue_of(*models: str) -> list[Ticket]:
    return [Ticket(Claim(model=model), float(rank), rank) for rank, model in enumerate(models)]


def taken(engine: Engine, slots: int) -> Engine:
    for _ in range(slots):
        engine.slots.acquire_on_behalf_of_nowait(object())
    return engine


def test_slots_go_out_in_the_order_of_the_queue() -> None:
    engine = taken(make_engine("a", "m", slots=3), 1)
    first, second, third = queue_of("m", "m", "m")
    assert assign([first, second, third], [engine]) == [(first, engine), (second, engine)]


def test_nothing_to_assign() -> None:
    """Without a free slot, or without a queued request, nothing is assigned."""
    assert assign(queue_of("m"), [taken(make_engine("a", "m"), 1)]) == []
    assert assign([], [make_engine("a", "m")]) == []


def test_a_ticket_whose_engines_are_full_is_passed_over() -> None:
    full, free = taken(make_engine("a", "m"), 1), make_engine("b", "n")
    first, second = queue_of("m", "n")
    assert assign([first, second], [full, free]) == [(second, free)]


def test_fewer_slots_than_are_taken_give_none() -> None:
    engine = taken(make_engine("a", "m", slots=3), 3)
    engine.slots.total_tokens = 1
    assert assign(queue_of("m"), [engine]) == []


@given(
    queue=st.lists(st.sampled_from(MODELS), max_size=8),
    engines=st.lists(
        st.tuples(st.sampled_from([(), ("m",), ("n",), ("m", "n")]), st.integers(1, 3), st.integers(0, 3)),
        min_size=1,
        max_size=3,
    ),
)
def test_no_fitting_pair_is_left(queue: list[str], engines: list[tuple[tuple[str, ...], int, int]]) -> None:
    """No free slot is left beside a queued ticket that could use it."""
    made = [
        taken(make_engine(str(rank), *models, slots=slots), min(busy, slots))
        for rank, (models, slots, busy) in enumerate(engines)
    ]
    tickets = queue_of(*queue)
    granted = assign(tickets, made)
    free = {engine: engine.slots.available_tokens for engine in made}
    for ticket, engine in granted:
        assert engine in eligible(ticket.claim.model, made)
        free[engine] -= 1
    assert all(slots >= 0 for slots in free.values())
    assert [ticket for ticket in tickets if ticket in dict(granted)] == [ticket for ticket, _ in granted]
    for ticket in tickets:
        if ticket not in dict(granted):
            assert all(free[engine] == 0 for engine in eligible(ticket.claim.model, made))
            # and no later one took a slot that it could have had
            later = [engine for other, engine in granted if other.position > ticket.position]
            assert not set(later) & set(eligible(ticket.claim.model, made))


def test_it_changes_nothing() -> None:
    engine = make_engine("a", "m")
    (ticket,) = queue_of("m")
    assign([ticket], [engine])
    assert (engine.slots.borrowed_tokens, ticket.queued, ticket.engine) == (0, True, None)
