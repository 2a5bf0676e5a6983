"""The idle connections to one engine. Busy ones belong to the request that uses them."""

import trio

from .connection import EngineConnection
from .message import TO_ENGINE
from .wire import Dial

#: Idle connections kept per engine. More than this many slots are rare, and opening one costs ~0.2 ms on loopback.
IDLE_MAX = 256

#: An idle connection older than this is closed instead of used (seconds). Ours must be the side that gives up first;
#: vLLM is told to keep connections for an hour (VLLM_HTTP_TIMEOUT_KEEP_ALIVE), its default is 5 s.
IDLE_S = 60.0


class Pool:
    """Last in, first out, so that surplus connections grow old and go.

    `dial`, and `passed`, the client headers that the engine gets, may be replaced at any time.
    """

    def __init__(self, dial: Dial, passed: frozenset[bytes] = TO_ENGINE) -> None:
        self.dial = dial
        self.passed = passed
        self._idle: list[EngineConnection] = []
        self._busy = 0

    async def acquire(self, *, fresh: bool = False) -> EngineConnection:
        """A connection that is now the caller's, who must `release` it. OSError if the engine cannot be reached.

        `fresh`: open a new one, for the retry after a kept one turned out dead.
        """
        connection = None if fresh else self._take_idle()
        if connection is None:
            connection = EngineConnection(await self.dial())
        self._busy += 1
        return connection

    def release(self, connection: EngineConnection) -> None:
        """Return what `acquire` gave: kept if it can be used again, closed if not."""
        self._busy -= 1
        if connection.reusable and len(self._idle) < IDLE_MAX:
            connection.idle_since = trio.current_time()
            connection.reused = True
            self._idle.append(connection)
        else:
            connection.close()

    def close_idle(self) -> None:
        """Close idle connections; for the end, and for an engine that was found dead."""
        while self._idle:
            self._idle.pop().close()

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def busy(self) -> int:
        return self._busy

    def _take_idle(self) -> EngineConnection | None:
        oldest = trio.current_time() - IDLE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since >= oldest and connection.looks_alive():
                return connection
            connection.close()
            if connection.idle_since < oldest:  # all below it are older still
                self.close_idle()
        return None

    def __repr__(self) -> str:
        return f"<Pool {self._busy} busy, {len(self._idle)} idle>"
