"""Waiting for what another process does: ask until it is so, with a deadline, and say what was seen instead."""

import time
from collections.abc import Callable
from typing import TypeVar

#: Each question starts a process on the host (about 15 ms of a core), so they are not asked back to back (seconds).
POLL_S = 0.1

T = TypeVar("T")


class NotYet(Exception):
    """What a check raises while it is not so; its text is the last thing that is printed if it never becomes so."""


def eventually(check: Callable[[], T], within: float, poll: float = POLL_S) -> T:
    """Call `check` until it raises neither NotYet nor AssertionError, and give what it returned.

    After `within` seconds the last refusal is raised as an AssertionError with the time that was waited.
    """
    deadline = time.monotonic() + within
    while True:
        try:
            return check()
        except (NotYet, AssertionError) as refusal:
            if time.monotonic() >= deadline:
                raise AssertionError(f"not within {within:g} s: {refusal}") from refusal
        time.sleep(poll)
