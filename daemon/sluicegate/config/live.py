"""The configuration in force, which a reload replaces."""

from .schema import Config


class Live:
    """What follows a reload holds this, and reads `current` at the moment at which it needs a value."""

    __slots__ = ("current",)

    def __init__(self, config: Config) -> None:
        self.current = config
