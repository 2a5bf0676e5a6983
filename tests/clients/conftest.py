"""The clients run against the real engine, as in tests/engine."""

from tests.engine.conftest import _patience, engine

__all__ = ["_patience", "engine"]
