"""What counts as our own shortage, and how many descriptors are whose."""

import errno

import pytest

from sluicegate.config.settings import build
from sluicegate.outcome import Outcome
from sluicegate.shortage import OWN, PER_SLOT, exhausted, reserved, shortage, warning


def _nested(error: Exception) -> BaseException:
    """As libraries hand it on."""
    try:
        try:
            raise ExceptionGroup("several tries", [ConnectionRefusedError(), error])
        except ExceptionGroup as group:
            raise OSError("all tries failed") from group
    except OSError as outer:
        try:
            raise RuntimeError("connection failed") from None
        except RuntimeError as last:
            last.__context__ = outer
            return last


@pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL, errno.EBUSY]
)
def test_ours(number: int) -> None:
    error = OSError(number, "x")
    assert shortage(error) == shortage(_nested(error)) != ""


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError(errno.ECONNREFUSED, "x"), TimeoutError(), OSError("x"), ValueError(), KeyError()]
)
def test_not_ours(error: Exception) -> None:
    assert shortage(error) == shortage(_nested(error)) == ""


def test_a_circle_of_causes_ends() -> None:
    one, other = ValueError(), KeyError()
    one.__context__, other.__context__ = other, one
    assert shortage(one) == ""


def test_refusal() -> None:
    refusal = exhausted("local ports")
    assert (refusal.outcome, refusal.status, refusal.retry_after_s) == (Outcome.SHED_EXHAUSTED, 503, 1)
    assert refusal.message == "The gateway has no local ports left. Retry after 1 s."


def test_reserved() -> None:
    assert reserved(65536, 10) == OWN + 10 * PER_SLOT
    assert reserved(100, 10) == 50
    assert reserved(1024, 65536) == 512


@pytest.mark.parametrize(("limit", "told"), [(64 + 6 + 200, False), (64 + 6 + 199, True)])
def test_warning(limit: int, told: bool) -> None:
    config = build({"limits.connections_max": 100, "admission.max_active": 2})
    text = warning(config, limit)
    assert bool(text) == told
    if told:
        assert "connections_max = 100 and 2 slots may take 270 file descriptors, but the limit is 269" in text
        assert "lower connections_max to 99" in text
