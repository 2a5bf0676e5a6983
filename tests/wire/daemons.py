"""The real daemon: `sluicegate serve` as a process."""

import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

from sluicegate.config.settings import SETTINGS
from tests.engine_contract.raw import RawClient, post
from tests.fakes.engine import FakeEngine, open_engine
from tests.fakes.script import Behaviour
from tests.harness import CHAT, question

#: No test needs as long (seconds): one that hangs fails instead.
PATIENCE_S = 30.0

#: A configuration for tests, of which each test says what it needs otherwise: probes are frequent.
TOML = "[engine]\nprobe_interval_s = 0.1\n"

STREAM = post(CHAT, question(stream=True), "x-request-id: stream")

#: Becomes the command in its arguments, with a socket where systemd puts it.
_HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}
os.execv(sys.argv[2], sys.argv[2:])
"""


class Daemon:
    """A running `sluicegate serve` and what it has logged so far."""

    def __init__(self, process: trio.Process, stderr: trio.abc.ReceiveStream) -> None:
        self.process = process
        self.output = b""
        self._stderr = stderr
        self._news = trio.lowlevel.ParkingLot()

    async def read(self) -> None:
        """Take in the log, to its end."""
        try:
            async for part in self._stderr:
                self.output += part
                self._news.unpark_all()
        except (OSError, trio.BrokenResourceError):
            pass  # how a terminal ends

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The log lines of `event`, parsed."""
        parsed = [msgspec.json.decode(line) for line in self.output.splitlines() if line.startswith(b"{")]
        return [line for line in parsed if line["event"] == event]

    async def logged(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait for so many lines of `event`."""
        while len(self.lines(event)) < count:
            await self._news.park()
        return self.lines(event)

    async def says(self, text: bytes) -> None:
        """Wait for `text` in what it writes."""
        while text not in self.output:
            await self._news.park()

    async def dial(self) -> RawClient:
        """A connection to it; it must have logged where it listens."""
        port = int((await self.logged("listening"))[0]["detail"].partition(",")[0].rpartition(":")[2])
        return RawClient(await trio.open_tcp_stream("127.0.0.1", port))

    async def ask(self, request: bytes) -> Any:
        """One request on a connection of its own."""
        async with await self.dial() as client:
            return await client.ask(request)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def reload(self, config: Path, text: str) -> None:
        """Write `text` to its configuration and have it read."""
        await trio.Path(config).write_text(text)
        self.process.send_signal(signal.SIGHUP)

    @property
    def resident_kib(self) -> int:
        """VmRSS."""
        return self._memory_kib("VmRSS")

    @property
    def most_resident_kib(self) -> int:
        """VmHWM: the largest value that VmRSS has had."""
        return self._memory_kib("VmHWM")

    def _memory_kib(self, name: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition(f"{name}:")[2].split()[0])


@asynccontextmanager
async def run(
    engine: str,
    config: Path,
    text: str = TOML,
    environ: dict[str, str] | None = None,
    *,
    terminal: bool = False,
    sock: socket.socket | None = None,
    nofile: tuple[int, int] | None = None,
) -> AsyncIterator[Daemon]:
    """`sluicegate serve` before `engine`, with `text` in the file `config`, on a free port. It is killed if it is left.

    `terminal`: its stderr is one. `sock`: handed over as systemd does it. `nofile`: soft and hard limit of open files.
    """
    await trio.Path(config).write_text(text)
    names = {setting.env for setting in SETTINGS.values()}
    clean = {name: value for name, value in os.environ.items() if name not in names}
    env = clean | {"LISTEN": "127.0.0.1:0", "VLLM_BASE_URL": engine} | (environ or {})
    command = [sys.executable, "-m", "sluicegate", "serve", "--config", str(config)]
    if nofile is not None:
        command = ["/bin/sh", "-c", f'ulimit -Sn {nofile[0]}; ulimit -Hn {nofile[1]}; exec "$@"', "sh", *command]
    descriptors = () if sock is None else (sock.fileno(),)
    if sock is not None:
        command = [sys.executable, "-c", _HAND_OVER, str(sock.fileno()), *command]
    stderr: trio.abc.ReceiveStream
    if terminal:
        ours, theirs = pty.openpty()
        process = await trio.lowlevel.open_process(command, env=env, stderr=theirs, pass_fds=descriptors)
        os.close(theirs)
        stderr = trio.lowlevel.FdStream(ours)
    else:
        process = await trio.lowlevel.open_process(command, env=env, stderr=subprocess.PIPE, pass_fds=descriptors)
        assert process.stderr is not None
        stderr = process.stderr
    daemon = Daemon(process, stderr)
    with trio.fail_after(PATIENCE_S):
        async with stderr, trio.open_nursery() as nursery:
            nursery.start_soon(daemon.read)
            try:
                yield daemon
            finally:
                if process.returncode is None:
                    process.kill()
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                    await process.wait()
                nursery.cancel_scope.cancel()


@asynccontextmanager
async def started(
    config: Path, text: str = TOML, environ: dict[str, str] | None = None, *, sock: socket.socket | None = None
) -> AsyncIterator[tuple[FakeEngine, Daemon]]:
    """A daemon before a fake engine, which it has found."""
    async with open_engine() as engine, run(await engine.listen_tcp(), config, text, environ, sock=sock) as daemon:
        await daemon.logged("engine_up")
        yield engine, daemon


async def streaming(engine: FakeEngine, daemon: Daemon) -> tuple[RawClient, trio.Event]:
    """A client in the middle of a stream, which goes on when the event is set."""
    hold = trio.Event()
    engine.script.next(Behaviour(hold=hold, hold_at=3))
    client = await daemon.dial()
    await client.stream.send_all(STREAM)
    await client.until_events(3)
    return client, hold
