"""The choice of an engine: pure functions over plain data."""

from dataclasses import dataclass

from sluicegate.engines.choose import choose, eligible


@dataclass(frozen=True)
class Candidate:
    name: str
    up: bool = True
    models: tuple[str, ...] = ("m",)


A, B = Candidate("a"), Candidate("b", models=("m", "n"))
DOWN = Candidate("down", up=False, models=("m", "o"))


def test_eligible_engines_serve_the_model() -> None:
    """Engines that are up and serve the model are eligible."""
    assert eligible("m", [DOWN, A, B]) == [A, B]
    assert eligible("n", [DOWN, A, B]) == [B]


def test_any_engine_for_an_unknown_model() -> None:
    """For a model that no engine serves, all engines that are up are eligible."""
    assert eligible("o", [DOWN, A, B]) == [A, B]


def test_eligible_are_all_while_none_is_up() -> None:
    other = Candidate("other", up=False, models=())
    assert eligible("m", [DOWN, other]) == [DOWN]
    assert eligible("x", [DOWN, other]) == [DOWN, other]


def test_eligible_is_the_only_one_whatever_its_state() -> None:
    assert eligible("x", [DOWN]) == [DOWN]


def test_choose_takes_the_most_free_slots() -> None:
    """Of several engines with the most free slots, the first is chosen."""
    assert choose({A: 1, B: 2}, [A, B]) is B
    assert choose({A: 2, B: 2}, [A, B]) is A
    assert choose({A: 2, B: 2}, [B, A]) is B


def test_choose_takes_no_candidate_without_a_free_slot() -> None:
    assert choose({A: 1}, [B]) is None
    assert choose({}, [A, B]) is None
