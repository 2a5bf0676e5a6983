"""The real vLLM that the tests share: one process, on a port of the loopback address, prepared if it must be."""

import os
import socket
from pathlib import Path

from sluicegate_run.engine import EmbeddedEngine
from sluicegate_run.prepare import EnginePaths
from tests.engine_contract.target import Target

#: With few places in its batch its own queue is in reach of a test. With few tokens to a step a long prompt takes many
#: steps: an engine drops an aborted request between two of them and not before, and the prompt of 1,900 tokens would
#: be one step of seconds on two cores, where a GPU needs some tens of milliseconds.
SEQUENCES = 4
STEP_TOKENS = 32
FLAGS = ("--max-num-seqs", str(SEQUENCES), "--max-num-batched-tokens", str(STEP_TOKENS))

#: OpenMP's threads wait by spinning otherwise, on the cores that the gateway and the tests need: measured beside other
#: work, 5 tokens/s with spinning and 23 without.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}

#: The engine takes a minute to start, and longer on a machine that has other work (seconds).
START_S = 300.0


def free_port() -> int:
    """A port of the loopback address on which no program listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def engine_environment() -> dict[str, str]:
    """The environment of an engine under test."""
    return {**os.environ, **ENVIRONMENT}


class RealEngine:
    """vLLM on the CPU with SmolLM2. It can be killed and started again, on the same port."""

    def __init__(self, paths: EnginePaths, log: Path) -> None:
        self.port = free_port()
        self.engine = EmbeddedEngine(paths, self.port, log=log, environ=engine_environment(), extra_args=FLAGS)
        self.base_url = self.engine.base_url
        self.model = self.engine.served_name
        self._started = False

    def __repr__(self) -> str:
        return f"<RealEngine {self.base_url}>"

    @property
    def pid(self) -> int:
        """The process id of its API server."""
        assert self.engine.program.pid is not None
        return self.engine.program.pid

    @property
    def target(self) -> Target:
        """What raw requests and questions are made with."""
        return Target(self.base_url, self.model)

    def ensure_running(self) -> None:
        """Start it unless it runs, and wait until it is ready: a test that kills it need not start it for the next."""
        if self.runs:
            return
        self.start()
        self.engine.wait_ready(START_S)

    @property
    def runs(self) -> bool:
        """Whether it was started and has not ended since."""
        return self._started and self.engine.program.wait(0) is None

    def start(self) -> None:
        """Start it without waiting for it."""
        self._started = True
        self.engine.start()

    def kill(self) -> None:
        """SIGKILL to its process group; returns when none of its processes is left."""
        self.engine.program.kill()

    def stop(self) -> None:
        """End it, if it was ever started."""
        if self._started:
            self.engine.stop()
