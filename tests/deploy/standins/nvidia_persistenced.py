#!/usr/bin/env python3
"""Stand-in for nvidia-persistenced: its options, its fork, and what it leaves of persistence mode for nvidia-smi."""

import argparse
import os
import signal
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--user")
parser.add_argument("--verbose", action="store_true")
parser.add_argument("--persistence-mode", action=argparse.BooleanOptionalAction, default=True)
options = parser.parse_args()

state = Path("/run/nvidia-persistenced")
state.mkdir(exist_ok=True)
(state / "mode").write_text("Enabled" if options.persistence_mode else "Disabled")
if os.fork() == 0:
    os.setsid()
    signal.sigwait([signal.SIGTERM])
