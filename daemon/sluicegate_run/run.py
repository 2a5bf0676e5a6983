"""`sluicegate run`: prepare an engine, put the gateway in front of it, ask one question, serve until Ctrl-C."""

import argparse
import contextlib
import json
import os
import select
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from sluicegate.config.address import TcpAddress
from sluicegate.config.load import ConfigError, resolve_file

from . import gateway
from .ask import ask, curl
from .cache import default_cache
from .engine import CPU_SEQUENCES, EmbeddedEngine
from .errors import EmbeddedError
from .logs import how_it_ended, last_words
from .parts import Outside, this_machine
from .prepare import prepare
from .process import Guarded
from .progress import for_stream
from .recipe import Device

QUESTION = "What is the capital of France?"
NEXT_QUESTION = "Tell me a joke about queues."
# On the CPU as many as the engine takes into one batch. On a GPU an estimate for a small model, not a measurement.
MAX_ACTIVE: Mapping[Device, int] = {"cpu": CPU_SEQUENCES, "gpu": 64}

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_FAULTS = 2
# As shells report a program that SIGINT ended.
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Machine:
    """Everything that a run touches outside of itself; tests put something else in its place."""

    outside: Outside = field(default_factory=this_machine)
    gateway: Sequence[str] = (sys.executable, "-m", "sluicegate", "serve")
    out: TextIO = field(default_factory=lambda: sys.stdout)
    err: TextIO = field(default_factory=lambda: sys.stderr)


def main(argv: Sequence[str], machine: Machine | None = None) -> int:
    """Run it, and return the exit code; whatever the end, nothing that was started here is left.

    0: served until Ctrl-C, answered (--once) or prepared (--prepare-only). 1: a sentence on stderr says why not.
    2: settings are at fault. 130: interrupted before it served.
    """
    options = _parser().parse_args(argv)
    machine = machine or Machine()
    serving = False
    try:
        with _one_signal_ends_it(), ExitStack() as stack:
            if options.prepare_only:
                _prepare_only(options, machine)
                return EXIT_OK
            running = _start(stack, options, machine)
            serving = True
            if not options.once:
                _serve(running, machine.out)
    except ConfigError as error:
        for fault in error.faults:
            print(fault, file=machine.err)
        return EXIT_FAULTS
    except EmbeddedError as error:
        print(f"sluicegate: {error}", file=machine.err)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_OK if serving else EXIT_INTERRUPTED
    return EXIT_OK


def _prepare_only(options: argparse.Namespace, machine: Machine) -> None:
    """For whoever starts the engine itself, as systemd does: what to start, as one JSON object on stdout."""
    environ = machine.outside.environ
    paths = prepare(default_cache(environ), for_stream(machine.err), cpu=options.cpu, outside=machine.outside)
    found = {
        "python": str(paths.python),
        "model": str(paths.model),
        "served_name": paths.served_name,
        "version": paths.version,
        "device": paths.device,
        "made": paths.made,
    }
    print(json.dumps(found), file=machine.out)


@dataclass(frozen=True)
class Running:
    """Both programs, once the first question is answered; `url` is the gateway's."""

    engine: EmbeddedEngine
    gateway: Guarded
    gateway_log: Path
    url: str


def _start(stack: ExitStack, options: argparse.Namespace, machine: Machine) -> Running:
    """Everything up to the first answer; what has to be ended later is put on `stack`."""
    environ, progress = machine.outside.environ, for_stream(machine.err)
    listen = _listen(environ)
    gateway.require_free(listen)
    cache = default_cache(environ)
    paths = prepare(cache, progress, cpu=options.cpu, outside=machine.outside)
    directory = stack.enter_context(_private_directory(environ))
    engine = EmbeddedEngine(
        paths,
        socket=directory / f"engine-{listen.port}.sock",
        log=cache / "logs" / f"engine-{listen.port}.log",
        environ=environ,
    )
    stack.enter_context(engine).wait_ready(progress=progress)
    settings = {
        "LISTEN": str(listen),
        "MAX_ACTIVE": environ.get("MAX_ACTIVE") or str(MAX_ACTIVE[paths.device]),
        "MODEL_NAME": engine.served_name,
        "VLLM_BASE_URL": engine.base_url,
    }
    log = cache / "logs" / f"gateway-{listen.port}.log"
    front = gateway.start(machine.gateway, listen, {**environ, **settings}, log)
    stack.callback(front.stop)
    url = gateway.url_of(listen)
    print(f"\n> {options.question}", file=machine.out)
    answer = ask(url, engine.served_name, options.question, partial(print, end="", file=machine.out, flush=True))
    print(f"\n\n{answer}", file=machine.out, flush=True)
    return Running(engine, front, log, url)


def _serve(running: Running, out: TextIO) -> None:
    """Say how to ask on; then there is nothing to do until a signal comes, or a program ends, which it should not."""
    command = curl(running.url, running.engine.served_name, NEXT_QUESTION)
    print(f"\nAsk it something else:\n  {command}\n\nServing at {running.url} until Ctrl-C.", file=out, flush=True)
    ended = select.select([running.engine.fileno(), running.gateway.fileno()], [], [])[0]
    # When both ended, the gateway did because of the engine, or somebody ended both.
    if running.engine.fileno() in ended:
        name, status, log = "engine", running.engine.wait(), running.engine.log
    else:
        name, status, log = "gateway", running.gateway.wait(), running.gateway_log
    raise EmbeddedError(
        f"The {name} ended while serving ({how_it_ended(status)}, “{last_words(log)}”): read {log} and run it again."
    )


def _listen(environ: Mapping[str, str]) -> TcpAddress:
    """Where the gateway will listen, by its own rules. Raises ConfigError for everything that it would refuse."""
    # The engine's address is ours to give; a foreign one may not even be valid.
    ours = {"VLLM_BASE_URL": "unix:/run/engine.sock", "MODEL_NAME": ""}
    listen = resolve_file(None, {**environ, **ours}).config.listen
    if not isinstance(listen, TcpAddress) or listen.port == 0:
        raise EmbeddedError(
            f"`sluicegate run` listens on a port that it can tell you, and LISTEN says {listen}: set it to one like "
            "127.0.0.1:8080 and run it again."
        )
    return listen


@contextlib.contextmanager
def _private_directory(environ: Mapping[str, str]) -> Iterator[Path]:
    """A directory for sockets that only this user may enter: vLLM has no other protection than that."""
    runtime = Path(environ.get("XDG_RUNTIME_DIR", ""))
    usable = runtime.is_absolute() and runtime.is_dir()
    directory = runtime / "sluicegate" if usable else Path(tempfile.gettempdir()) / f"sluicegate-{os.geteuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise EmbeddedError(f"{directory} is not a directory of this user's alone: remove it and run it again.")
    try:
        yield directory
    finally:
        with contextlib.suppress(OSError):  # another run's socket is in it
            directory.rmdir()


@contextlib.contextmanager
def _one_signal_ends_it() -> Iterator[None]:
    """The first of Ctrl-C, SIGTERM and SIGHUP raises KeyboardInterrupt; what follows them is cleanup, and undisturbed.

    That cleanup has deadlines of its own. A signal that was ignored when we were started (nohup) stays ignored.
    """
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]

    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous = [(number, signal.signal(number, end)) for number in numbers]
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
