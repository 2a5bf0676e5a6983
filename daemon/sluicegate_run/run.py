"""`sluicegate run`: prepare an engine, put the gateway in front of it, ask one question, serve until Ctrl-C."""

import argparse
import contextlib
import dataclasses
import json
import os
import select
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from sluicegate.config.address import TcpAddress
from sluicegate.config.load import ConfigError, resolve_file

from .ask import ask, curl
from .cache import default_cache
from .engine import CPU_SEQUENCES, EmbeddedEngine
from .failure import RunError, ended
from .prepare import Outside, prepare
from .process import Guarded, wait_ready
from .progress import Progress
from .recipe import Device

QUESTION = "What is the capital of France?"
NEXT_QUESTION = "Tell me a joke about queues."
# On the CPU as many as the engine takes into one batch. On a GPU an estimate for a small model, not a measurement.
MAX_ACTIVE: Mapping[Device, int] = {"cpu": CPU_SEQUENCES, "gpu": 64}
# The gateway is ready in a second; if it needs a minute, something is wrong with it and not with the machine.
GATEWAY_START_DEADLINE_S = 60.0
# After Ctrl-C, requests in flight have no engine left to finish on.
GATEWAY_GRACE_S = 5.0

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIGURATION = 2
# As shells report a program that SIGINT ended.
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Machine:
    """Everything outside that a run touches; tests replace it."""

    outside: Outside = field(default_factory=Outside)
    gateway: Sequence[str] = (sys.executable, "-m", "sluicegate", "serve")
    out: TextIO = field(default_factory=lambda: sys.stdout)
    err: TextIO = field(default_factory=lambda: sys.stderr)


def main(argv: Sequence[str], machine: Machine | None = None) -> int:
    """Run it, and return the exit code; in every case nothing that was started here is left.

    0: served until Ctrl-C, answered (--once) or prepared (--prepare-only). 1: a sentence on stderr gives the reason.
    2: configuration error. 130: interrupted before it served.
    """
    options = _parser().parse_args(argv)
    machine = machine or Machine()
    serving = False
    try:
        with _first_signal_interrupts(), ExitStack() as stack:
            if options.prepare_only:
                _prepare_only(options, machine)
                return EXIT_OK
            serve = _start(stack, options, machine)
            serving = True
            if not options.once:
                serve()
    except ConfigError as error:
        print(*error.faults, sep="\n", file=machine.err)
        return EXIT_CONFIGURATION
    except RunError as error:
        print(f"sluicegate: {error}", file=machine.err)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_OK if serving else EXIT_INTERRUPTED
    return EXIT_OK


def _prepare_only(options: argparse.Namespace, machine: Machine) -> None:
    """For a caller that starts the engine itself, as systemd does: what to start, as one JSON object on stdout."""
    outside = machine.outside
    paths = prepare(default_cache(outside.environ), Progress(machine.err), cpu=options.cpu, outside=outside)
    print(json.dumps(dataclasses.asdict(paths), default=str), file=machine.out)


def _start(stack: ExitStack, options: argparse.Namespace, machine: Machine) -> Callable[[], NoReturn]:
    """Everything up to the first answer; `stack` gets what must be ended later. Returns what serves until the end."""
    environ, progress = machine.outside.environ, Progress(machine.err)
    listen = _listen(environ)
    cache = default_cache(environ)
    paths = prepare(cache, progress, cpu=options.cpu, outside=machine.outside)
    # Only this user may enter it: vLLM itself asks nobody for a key.
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    place = runtime if os.path.isabs(runtime) and os.path.isdir(runtime) else None
    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="sluicegate-", dir=place))
    log = cache / "logs" / f"engine-{listen.port}.log"
    engine = EmbeddedEngine(paths, Path(directory) / "engine.sock", log=log, environ=environ)
    stack.enter_context(engine).wait_ready(progress=progress)
    settings = {
        "LISTEN": str(listen),
        "MAX_ACTIVE": environ.get("MAX_ACTIVE") or str(MAX_ACTIVE[paths.device]),
        "MODEL_NAME": engine.served_name,
        "VLLM_BASE_URL": engine.base_url,
    }
    log = cache / "logs" / f"gateway-{listen.port}.log"
    log.write_bytes(b"")
    gateway = Guarded(machine.gateway, env={**environ, **settings}, log=log, grace_s=GATEWAY_GRACE_S)
    stack.callback(gateway.stop)
    here = reached_at(listen)
    wait_ready(gateway, "The gateway", here, "/ready", GATEWAY_START_DEADLINE_S, log)
    print(f"\n> {options.question}", file=machine.out)
    url = f"http://{here}"
    answer = ask(url, engine.served_name, options.question, partial(print, end="", file=machine.out, flush=True))
    print(f"\n\n{answer}", file=machine.out, flush=True)

    def serve() -> NoReturn:
        """Say how to ask more, then wait for a signal, or for a program that ends, which it should not."""
        command = curl(url, engine.served_name, NEXT_QUESTION)
        print(f"\nAsk it something else:\n  {command}\n\nServing at {url} until Ctrl-C.", file=machine.out, flush=True)
        stopped = select.select([engine.program, gateway], [], [])[0]
        # If both ended, the gateway did because of the engine, or somebody ended both.
        if engine.program in stopped:
            raise ended("The engine", "while serving", engine.program.wait(), engine.log)
        raise ended("The gateway", "while serving", gateway.wait(), log)

    return serve


def _listen(environ: Mapping[str, str]) -> TcpAddress:
    """Where the gateway will listen. Raises ConfigError for everything that the gateway would refuse."""
    # The engine's address is chosen here; the one in the environment need not even be valid.
    ours = {"VLLM_BASE_URL": "unix:/run/engine.sock", "MODEL_NAME": ""}
    listen = resolve_file(None, {**environ, **ours}).config.listen[0]
    if not isinstance(listen, TcpAddress) or listen.port == 0:
        raise RunError(
            f"`sluicegate run` needs a TCP port to show, and LISTEN is {listen}: set it to an address such as "
            "127.0.0.1:8080 and run it again."
        )
    require_free(listen)
    return listen


def require_free(listen: TcpAddress) -> None:
    """Refuse at once, and not after the preparation, an address that the gateway could not listen on."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the gateway does it: connections in TIME_WAIT do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            # Two sockets may be bound with SO_REUSEADDR as long as neither listens.
            probe.listen(1)
    except OSError as error:
        raise RunError(
            f"Cannot listen on {listen} ({error.strerror or error}): free it, or set another address "
            "(LISTEN=127.0.0.1:8081), and run it again."
        ) from error


def reached_at(listen: TcpAddress) -> str:
    """`host:port` at which a client on this machine reaches a gateway that listens there."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)  # noqa: S104 -- compared, not bound
    return str(TcpAddress(host, listen.port))


@contextlib.contextmanager
def _first_signal_interrupts() -> Iterator[None]:
    """The first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt; later ones are ignored, for the cleanup's sake.

    The cleanup has its own deadlines. A signal that was ignored when this program started (nohup) stays ignored.
    """
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous = [(number, signal.signal(number, interrupt)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in previous:
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sluicegate run",
        description="Prepare a vLLM, put the gateway in front of it, ask it one question and serve until Ctrl-C.",
        epilog="Environment: LISTEN and the gateway's other settings; SLUICEGATE_CACHE, where the engine is kept; "
        "MODEL, the model's repository or directory; MODEL_NAME, what clients call it; VLLM_VERSION, on a GPU.",
    )
    parser.add_argument("--question", default=QUESTION, help="what to ask first (default: %(default)s)")
    how_far = parser.add_mutually_exclusive_group()
    how_far.add_argument("--once", action="store_true", help="end after the first answer instead of serving")
    how_far.add_argument(
        "--prepare-only",
        action="store_true",
        help="start nothing: print where the prepared engine is, as one JSON object (python, model, served_name, "
        "version, device, made: whether it had to be prepared just now)",
    )
    parser.add_argument("--cpu", action="store_true", help="use the CPU even where there is an NVIDIA GPU")
    return parser
