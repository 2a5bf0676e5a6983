"""Memory for request bodies: what clients may take of it before, and until, their requests are with the engine."""

from collections.abc import Callable

from .config.live import Live
from .shortage import exhausted


class Bodies:
    """How many bytes of bodies are in memory. Never more than limits.bodies_max_bytes, or one body of the largest."""

    def __init__(self, config: Live) -> None:
        self._config = config
        self.held = 0

    def check(self, length: int) -> None:
        """Refusal (503) if there is no room for `length` bytes more."""
        limits = self._config.current.limits
        if self.held + length > max(limits.bodies_max_bytes, limits.body_max_bytes):
            raise exhausted("memory for request bodies")

    def take(self, length: int) -> None:
        """Hold `length` bytes more, or Refusal."""
        self.check(length)
        self.held += length

    def release(self, length: int) -> None:
        """Return what was taken."""
        self.held -= length

    def __repr__(self) -> str:
        return f"<Bodies {self.held} bytes held>"


class Room:
    """Where bodies of one kind of request go: `Bodies`, and what must hold before one of them is read."""

    def __init__(self, bodies: Bodies, *checks: Callable[[], None]) -> None:
        """`checks` raise Refusal for every request of that kind, whatever stands in its body."""
        self._bodies = bodies
        self._checks = checks
        self.take = bodies.take
        self.release = bodies.release

    def begin(self, length: int) -> None:
        """Refusal if a body of `length` bytes (0: unknown) is not to be read."""
        for check in self._checks:
            check()
        self._bodies.check(length)
