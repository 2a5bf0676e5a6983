"""A prepared vLLM running on this machine, for as long as somebody needs it."""

import contextlib
import os
import select
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from .errors import EmbeddedError
from .logs import how_it_ended, last_words
from .prepare import EnginePaths
from .process import Guarded
from .progress import Bar, Progress

# Measured on 2 cores: 54 s, of which importing vLLM is the larger part.
EXPECTED_START_S = 60.0
# vLLM's own limit for its engine core (VLLM_ENGINE_READY_TIMEOUT_S), and what comes before it.
START_DEADLINE_S = 900.0
POLL_S = 0.1
# A server that listens answers at once, unless it is frozen or wedged.
ANSWER_S = 1.0
# vLLM ends its engine core within 3 s of SIGTERM; with requests in flight it aborts them.
GRACE_S = 10.0
# <linux/un.h>: 108 bytes with the terminating zero.
SOCKET_PATH_MAX = 107

# What served SmolLM2-135M on 2 cores with 5 GB of memory: 2 GB of it hold 93,184 tokens of context, by vLLM's log.
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
    # 5 s by default: a gateway that keeps its connections as long meets closed ones.
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "3600",
    # The current directory holds nothing that vLLM should import.
    "PYTHONSAFEPATH": "1",
}
# The gateway's and this program's own variables, which vLLM warns of because of their prefix, and what would put
# foreign modules into its environment.
NOT_FOR_VLLM = ("VLLM_BASE_URL", "VLLM_VERSION", "PYTHONPATH", "PYTHONHOME")


class EmbeddedEngine:
    """vLLM on a Unix socket (`socket`, or one in a private directory of its own) or on a port of the loopback address.

    `extra_args` come last on vLLM's command line and so win over the flags chosen here.
    `log` takes its output, from its start on; by default a file in the private directory, gone with the engine.
    In a `with` it is started at the beginning and nothing of it is left at the end; the same holds for `start` and
    `stop`. When this process dies without either, guard.py ends the engine.
    """

    def __init__(
        self,
        paths: EnginePaths,
        *,
        socket: Path | None = None,
        port: int | None = None,
        extra_args: Sequence[str] = (),
        log: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        if socket is not None and port is not None:
            raise ValueError("an engine listens on a socket or on a port, not on both")
        self._paths = paths
        self._directory: Path | None = None
        self._socket = socket
        self._port = port
        self._extra_args = extra_args
        self._log = log
        self._environ = os.environ if environ is None else environ
        self._program: Guarded | None = None

    def __repr__(self) -> str:
        return f"<EmbeddedEngine {self.base_url if self._program else 'not started'} {self._program}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def base_url(self) -> str:
        """Where it listens, as VLLM_BASE_URL wants it: `unix:/path` or `http://127.0.0.1:port`."""
        return f"http://127.0.0.1:{self._port}" if self._port is not None else f"unix:{self.socket}"

    @property
    def socket(self) -> Path | None:
        """The Unix socket, None if it listens on a port."""
        if self._port is None and self._socket is None:
            self._socket = self._private_directory() / "engine.sock"
        return self._socket

    @property
    def log(self) -> Path:
        """What vLLM has printed since the start."""
        if self._log is None:
            self._log = self._private_directory() / "engine.log"
        return self._log

    @property
    def served_name(self) -> str:
        """What requests put into their `model`."""
        return self._paths.served_name

    @property
    def pid(self) -> int | None:
        """The process id of vLLM's API server, which is its process group's too; None if it could not be started."""
        return self._started.pid

    def fileno(self) -> int:
        """Becomes readable when the engine has ended."""
        return self._started.fileno()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for the engine's end; its exit status (128 + signal for a signal), None if it still runs by then."""
        return self._started.wait(timeout_s)

    def start(self) -> None:
        """Start vLLM; it answers a minute later, see `wait_ready`. A socket that a dead engine left is replaced."""
        if self.socket is not None:
            if len(os.fsencode(self.socket)) > SOCKET_PATH_MAX:
                raise EmbeddedError(
                    f"{self.socket} is too long for a Unix socket, whose path has at most {SOCKET_PATH_MAX} bytes."
                )
            self.socket.unlink(missing_ok=True)
        self.log.write_bytes(b"")
        self._program = Guarded(self._command(), env=self._environment(), log=self.log, grace_s=GRACE_S)

    def wait_ready(self, timeout_s: float = START_DEADLINE_S, progress: Progress | None = None) -> None:
        """Wait until vLLM has loaded the model and answers. Raises EmbeddedError if it ends or takes longer."""
        shown = progress.bar("Starting vLLM", EXPECTED_START_S, "seconds") if progress else contextlib.nullcontext()
        with shown as bar, self.client(timeout=ANSWER_S) as client:
            self._wait_ready(client, timeout_s, bar)

    def client(self, timeout: float) -> httpx2.Client:
        """An HTTP client for this engine: the paths of its requests begin with a slash. `timeout` in seconds."""
        if self.socket is None:
            return httpx2.Client(base_url=self.base_url, timeout=timeout, trust_env=False)
        transport = httpx2.HTTPTransport(uds=str(self.socket))
        return httpx2.Client(base_url="http://engine", transport=transport, timeout=timeout, trust_env=False)

    def signal(self, number: signal.Signals) -> None:
        """Signal every process of the engine, to freeze and thaw it for one."""
        self._started.signal(number)

    def kill(self) -> None:
        """End every process of the engine at once, as an out-of-memory kill would."""
        self._started.kill()

    def stop(self) -> None:
        """End the engine: SIGTERM, SIGKILL after the grace; afterwards nothing of it is left. May be repeated."""
        if self._program is not None:
            self._program.stop()
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def _started(self) -> Guarded:
        if self._program is None:
            raise RuntimeError("the engine has not been started")
        return self._program

    def _private_directory(self) -> Path:
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="sluicegate-"))
        return self._directory

    def _command(self) -> list[str]:
        where = (
            ["--uds", str(self.socket)] if self._port is None else ["--host", "127.0.0.1", "--port", str(self._port)]
        )
        return [
            *(str(self._paths.python), "-m", "vllm.entrypoints.cli.main", "serve", str(self._paths.model)),
            *where,
            *("--served-model-name", self._paths.served_name),
            *(CPU_ARGUMENTS if self._paths.device == "cpu" else ()),
            *self._extra_args,
        ]

    def _environment(self) -> dict[str, str]:
        environment = {name: value for name, value in self._environ.items() if name not in NOT_FOR_VLLM}
        environment.update(ENVIRONMENT)
        if self._paths.device == "cpu":
            environment.update(CPU_ENVIRONMENT)
            environment["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
        return environment

    def _listens(self) -> bool:
        """Whether a connection can be made. Asked before httpx2 is, which leaves a refused Unix socket unclosed."""
        try:
            if self.socket is None:
                socket.create_connection(("127.0.0.1", self._port or 0), ANSWER_S).close()
            else:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.settimeout(ANSWER_S)
                    probe.connect(os.fspath(self.socket))
        except OSError:
            return False
        return True

    def _wait_ready(self, client: httpx2.Client, timeout_s: float, bar: Bar | None) -> None:
        start = time.monotonic()
        while not (self._listens() and _healthy(client)):
            # Readable at its end: the wait between two questions is cut short by that.
            if select.select([self], [], [], POLL_S)[0]:
                raise EmbeddedError(
                    f"vLLM ended before it was ready ({how_it_ended(self._started.wait())}, “{last_words(self.log)}”): "
                    f"read {self.log} and run it again."
                )
            passed = time.monotonic() - start
            if passed > timeout_s:
                raise EmbeddedError(f"vLLM was not ready after {passed:.0f} s: read {self.log} and run it again.")
            if bar is not None:
                bar.update(passed)


def _healthy(client: httpx2.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx2.TransportError:
        return False
