"""`make demo-host`: a deployed host to look at, on this machine, with its ports on loopback, until Ctrl-C.

It is the host of the deployment tests: the gateway, a real vLLM on the CPU, Prometheus and the exporters as the
playbooks install them, with stand-ins for what needs a GPU. In Grafana's place, which would only be a stand-in too,
each panel of the dashboards leads to a graph of Prometheus' own.

    python -m tests.deploy.demo            boot it, build it, keep it
    python -m tests.deploy.demo traffic    be six clients of it, until Ctrl-C
"""

import contextlib
import itertools
import os
import shlex
import signal
import socket
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from sluicegate_run.progress import Progress
from tests.deploy import image, panels, visitors
from tests.deploy.deployment import prepared
from tests.deploy.forwarding import forwarded
from tests.deploy.host import Host, booted_host, enter_command, missing_tools, ssh_command
from tests.deploy.visitors import Gateway

LOOPBACK = "127.0.0.1"
#: The same ports as on the host, where the last is Grafana's.
GATEWAY, PROMETHEUS, PANELS = 8080, 9090, 9091
GATEWAY_URL, PROMETHEUS_URL = f"http://{LOOPBACK}:{GATEWAY}", f"http://{LOOPBACK}:{PROMETHEUS}"

#: Measured on two cores (seconds), for the bars: a boot, before it an image's preparation, the build, the removal.
BOOT_S, IMAGE_S, BUILD_S, REMOVAL_S = 5.0, 75.0, 300.0, 30.0
TICK_S = 0.5

#: How long the crowd goes on before it says what came of it (seconds).
ROUND_S = 10.0

#: How many graphs are named one by one.
SHOWN = 8

#: What a terminal of 80 columns has left for the name of a task.
DETAIL = 32

QUESTION = "What is the capital of France?"

# As shells report a program that SIGINT ended.
INTERRUPTED = 130


def main(argv: list[str]) -> int:
    """Do what `argv` says, and give the exit status; a sentence on standard error says why it is not 0."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        match argv:
            case []:
                return _demonstrate(Progress(sys.stderr))
            case ["traffic"]:
                return _traffic()
    except KeyboardInterrupt:
        return INTERRUPTED
    print(f"{shlex.join(argv)} is no command of this program: leave it out, or say traffic.", file=sys.stderr)
    return 2


def _demonstrate(progress: Progress) -> int:
    if problem := missing_tools() or _occupied():
        print(f"The host cannot be demonstrated here, for {problem}.", file=sys.stderr)
        return 1
    with contextlib.ExitStack() as stack:
        with _step(progress, "Booting a Debian 12", BOOT_S + (0 if image.is_made(image.DEBIAN_12) else IMAGE_S)):
            host = stack.enter_context(booted_host(image.DEBIAN_12))
            deployment = stack.enter_context(prepared(host, "demo-", {"grafana_manage": False}))
        with _step(progress, "Building it", BUILD_S) as doing:
            run = deployment.play(
                "site", log="site", on_task=lambda task: doing(textwrap.shorten(task, DETAIL, placeholder=" …"))
            )
        if run.status != 0:
            print(
                f"The host could not be built; build/deploy/demo-site.jsonl has it all:\n{run.report}", file=sys.stderr
            )
            return 1
        network = Path(host.network.path)
        stack.enter_context(forwarded((LOOPBACK, GATEWAY), (LOOPBACK, GATEWAY), network))
        stack.enter_context(forwarded((LOOPBACK, PROMETHEUS), (LOOPBACK, PROMETHEUS), network))
        listed = stack.enter_context(panels.served((LOOPBACK, PANELS), PROMETHEUS_URL))
        answer = Gateway(GATEWAY_URL).chat(QUESTION)["choices"][0]["message"]["content"]
        print(f"{QUESTION} {answer}\n\n{_directions(host, listed)}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
        # Ctrl-C is ignored from here on: an interrupted removal would leave something behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with _step(progress, "Removing it", REMOVAL_S):
            stack.close()
    return 0


def _occupied() -> str:
    """Which port another program uses, in one sentence; empty if none is in use."""
    for port in (GATEWAY, PROMETHEUS, PANELS):
        try:
            socket.create_server((LOOPBACK, port)).close()
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            return f"{LOOPBACK}:{port} cannot be listened on ({reason}): end what does (ss -tlnp) and try again"
    return ""


@contextlib.contextmanager
def _step(progress: Progress, title: str, expected_s: float) -> Iterator[Callable[[str], None]]:
    """Show a step for as long as the block lasts; gives a function that is told what is being done just now."""
    now = [""]
    over = threading.Event()
    with progress.bar(title, expected_s, "seconds") as bar:
        start = time.monotonic()

        def tick() -> None:
            while not over.wait(TICK_S):
                bar.update(time.monotonic() - start, now[0])

        ticking = threading.Thread(target=tick, daemon=True)
        ticking.start()
        try:
            yield lambda detail: now.__setitem__(0, detail)
        finally:
            over.set()
            ticking.join()


def _directions(host: Host, listed: str) -> str:
    """Where everything is, a line each."""
    boards = panels.dashboards()
    shown = itertools.islice(enumerate(boards["overview"], 1), SHOWN)
    return "\n".join(
        [
            "The host is up. Ctrl-C removes it.",
            f"  gateway      {GATEWAY_URL}/v1, an OpenAI-compatible API",
            f"  Prometheus   {PROMETHEUS_URL}",
            f"  all panels   {listed}",
            *(f"  {board:<12} {listed}/{board}, all graphs of this dashboard" for board in boards),
            *(f"  {'one graph':<12} {listed}/overview/{number}, {title}" for number, title in shown),
            f"  traffic      {shlex.join([sys.executable, '-m', 'tests.deploy.demo', 'traffic'])}",
            f"  enter        {shlex.join(enter_command(host))}",
            f"  SSH          {shlex.join(ssh_command(host))}",
        ]
    )


def _traffic() -> int:
    """Ask, stream, leave and ask nonsense, and say what came of it."""
    gateway = Gateway(GATEWAY_URL)
    if gateway.status("/ready") != 200:
        print(f"No gateway is ready at {GATEWAY_URL}: start one with make demo-host and try again.", file=sys.stderr)
        return 1
    total: Counter[str] = Counter()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            total += visitors.crowd(gateway, ROUND_S)
            print(", ".join(f"{what}: {times}" for what, times in sorted(total.items())), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
