#!/usr/bin/python3
"""Stands in for DCGM's host engine: it listens where the exporter looks for it, and has nothing to say."""

import argparse
import signal
import socket
import sys

parser = argparse.ArgumentParser()
parser.add_argument("-n", action="store_true", help="stay in the foreground")
parser.add_argument("-b", dest="interface", default="127.0.0.1")
parser.add_argument("-p", dest="port", type=int, default=5555)
parser.add_argument("--service-account")


def main() -> None:
    """Accept and close."""
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with socket.create_server((given.interface, given.port)) as server:
        while True:
            server.accept()[0].close()


if __name__ == "__main__":
    main()
