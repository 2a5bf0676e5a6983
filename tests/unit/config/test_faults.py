"""How faults read: one line each, nothing secret, nothing that a terminal would obey."""

import datetime

import pytest

from sluicegate.config.faults import SHOWN_MAX_CHARS, ConfigError, Fault, shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("reject", '"reject"'),
        (True, "true"),
        (4, "4"),
        (0.5, "0.5"),
        (float("nan"), "nan"),
        ([1, 2], "[…]"),
        ({"key": "secret"}, "{…}"),
        (datetime.date(2026, 1, 31), "2026-01-31"),
        ("two\nlines", r'"two\nlines"'),
        ("\x1b[2J\ud800", r'"\x1b[2J\ud800"'),
        ("http://bob:secret@gpu:8000/v1?key=secret", '"http://***@gpu:8000/v1?***"'),
        ("http://bob:sec/r@et@gpu:8000#secret\nsecret", '"http://***@gpu:8000#***"'),
        ("bob:secret@gpu:8000", '"***@gpu:8000"'),
        ("http://bob://secret@gpu:8000", '"http://***@gpu:8000"'),
        ("café\n", r'"café\n"'),
        ((1 << 256) - 1, str((1 << 256) - 1)),
        (1 << 256, "a very long number"),
        ("x" * SHOWN_MAX_CHARS, f'"{"x" * SHOWN_MAX_CHARS}"'),
    ],
)
def test_a_value_is_shown(value: object, text: str) -> None:
    assert shown(value) == text


def test_a_number_that_python_will_not_print() -> None:
    assert shown(1 << 100_000) == "a very long number"


def test_a_long_value_is_cut() -> None:
    text = shown("x" * 1000)
    assert text == f'"{"x" * (SHOWN_MAX_CHARS - 1)}…"'


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (Fault("f.toml", "log.level", '"loud"', "must be x"), 'f.toml: log.level = "loud": must be x'),
        (Fault("f.toml", "admision", None, "unknown table"), "f.toml: admision: unknown table"),
        (Fault("f.toml", "", None, "not TOML", 3), "f.toml:3: not TOML"),
        (Fault("a\nb.toml", "", None, "not TOML"), r"a\nb.toml: not TOML"),
    ],
)
def test_a_fault_is_one_line(fault: Fault, line: str) -> None:
    assert str(fault) == line


def test_the_error_holds_and_prints_every_fault() -> None:
    faults = [Fault("f", "a", None, "x"), Fault("f", "b", None, "y")]
    error = ConfigError(iter(faults))
    assert error.faults == faults
    assert str(error) == "f: a: x\nf: b: y"
