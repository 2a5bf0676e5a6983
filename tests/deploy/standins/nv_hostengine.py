#!/usr/bin/python3
"""Stands in for DCGM's host engine: it holds the GPUs, listens where the exporter looks for it, and has nothing to say.

As the real one it opens the devices of all GPUs through NVML before it listens, and it keeps its clients' connections
until it ends. While the file HOLD exists it does not listen yet, as the real one while its GPUs are initialised.
"""

import argparse
import glob
import signal
import socket
import sys
import time
from pathlib import Path

HOLD = Path("/run/nv-hostengine.hold")
#: Between two looks at HOLD (seconds).
POLL_S = 0.05

parser = argparse.ArgumentParser()
parser.add_argument("-n", "--no-daemon", action="store_true", help="stay in the foreground")
parser.add_argument("-b", "--bind-interface", default="127.0.0.1")
parser.add_argument("-p", "--port", type=int, default=5555)
parser.add_argument("--service-account", default="")


def main() -> None:
    """Hold the devices, wait, accept, and keep what was accepted."""
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    held: list[object] = [open(path, "rb") for path in glob.glob("/dev/nvidia[0-9]*")]  # noqa: SIM115 (until it ends)
    while HOLD.exists():
        time.sleep(POLL_S)
    with socket.create_server((given.bind_interface, given.port)) as server:
        while True:
            held.append(server.accept()[0])


if __name__ == "__main__":
    main()
