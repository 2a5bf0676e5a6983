"""A prepared vLLM that runs on this machine while somebody needs it."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from .failure import RunError
from .prepare import EnginePaths
from .process import Guarded, wait_ready
from .progress import Progress

# Measured on 2 cores: 54 s, most of it for importing vLLM.
EXPECTED_START_S = 60.0
# vLLM's own limit for its engine core (VLLM_ENGINE_READY_TIMEOUT_S), and what comes before it.
START_DEADLINE_S = 900.0
# vLLM ends its engine core within 3 s of SIGTERM; it aborts requests in flight.
GRACE_S = 10.0
# <linux/un.h>: 108 bytes with the terminating zero.
SOCKET_PATH_MAX = 107

# This served SmolLM2-135M on 2 cores with 5 GB of memory: 2 GB of it hold 93,184 tokens of context, by vLLM's log.
CPU_SEQUENCES = 16
CPU_ARGUMENTS = (
    "--enforce-eager",
    *("--max-model-len", "2048"),
    *("--max-num-seqs", str(CPU_SEQUENCES)),
    *("--dtype", "bfloat16"),
)
CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # 5 s by default: a gateway that keeps its connections for so long would find them closed.
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "3600",
    # vLLM must not import modules from the current directory.
    "PYTHONSAFEPATH": "1",
}
# The gateway's and this program's own variables, which vLLM warns of because of their prefix, and those that would
# bring other modules into its environment.
NOT_FOR_VLLM = ("VLLM_BASE_URL", "VLLM_VERSION", "PYTHONPATH", "PYTHONHOME")


class EmbeddedEngine:
    """vLLM on a Unix socket (`address` is its path) or on a port of the loopback address (`address` is its number).

    `extra_args` come last on vLLM's command line, so they win over the flags chosen here. `log` gets its output.
    It is started at the beginning of a `with`, and nothing of it is left at the end; `start` and `stop` do the same.
    When this process dies without either, guard.py ends the engine.
    """

    def __init__(
        self,
        paths: EnginePaths,
        address: Path | int,
        *,
        log: Path,
        environ: Mapping[str, str],
        extra_args: Sequence[str] = (),
    ) -> None:
        #: What VLLM_BASE_URL must be.
        self.base_url = f"unix:{address}" if isinstance(address, Path) else f"http://127.0.0.1:{address}"
        #: What requests put into their `model`.
        self.served_name = paths.served_name
        self.log = log
        self._paths = paths
        self._address = address
        self._environ = environ
        self._extra_args = extra_args
        self._program: Guarded | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def program(self) -> Guarded:
        """The started engine; its `pid` is vLLM's API server and its process group. RuntimeError before the start."""
        if self._program is None:
            raise RuntimeError("the engine has not been started")
        return self._program

    def start(self) -> None:
        """Start vLLM; it answers a minute later, see `wait_ready`. A socket that a dead engine left is replaced."""
        if isinstance(self._address, Path):
            if len(os.fsencode(self._address)) > SOCKET_PATH_MAX:
                raise RunError(
                    f"{self._address} is too long for a Unix socket, whose path has at most {SOCKET_PATH_MAX} bytes: "
                    "set XDG_RUNTIME_DIR to a shorter path and run it again."
                )
            self._address.unlink(missing_ok=True)
        self.log.write_bytes(b"")
        self._program = Guarded(self._command(), env=self._environment(), log=self.log, grace_s=GRACE_S)

    def wait_ready(self, timeout_s: float = START_DEADLINE_S, progress: Progress | None = None) -> None:
        """Wait until vLLM has loaded the model and answers. Raises RunError if it ends or takes longer."""
        address = str(self._address) if isinstance(self._address, Path) else f"127.0.0.1:{self._address}"
        shown = progress.bar("Starting vLLM", EXPECTED_START_S, "seconds") if progress else contextlib.nullcontext()
        with shown as bar:
            wait_ready(self.program, "vLLM", address, "/health", timeout_s, self.log, bar)

    def stop(self) -> None:
        """End the engine: SIGTERM, SIGKILL after the grace; afterwards nothing of it is left. May be repeated."""
        if self._program is not None:
            self._program.stop()
        if isinstance(self._address, Path):
            self._address.unlink(missing_ok=True)

    def _command(self) -> list[str]:
        if isinstance(self._address, Path):
            where = ["--uds", str(self._address)]
        else:
            where = ["--host", "127.0.0.1", "--port", str(self._address)]
        return [
            *(str(self._paths.python), "-m", "vllm.entrypoints.cli.main", "serve", str(self._paths.model)),
            *where,
            *("--served-model-name", self.served_name),
            *(CPU_ARGUMENTS if self._paths.device == "cpu" else ()),
            *self._extra_args,
        ]

    def _environment(self) -> dict[str, str]:
        environment = {name: value for name, value in self._environ.items() if name not in NOT_FOR_VLLM} | ENVIRONMENT
        if self._paths.device == "cpu":
            environment |= CPU_ENVIRONMENT | {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
        return environment
