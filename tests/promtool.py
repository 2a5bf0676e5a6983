"""Prometheus' own judge of configurations, rules and expressions (Debian: apt-get install prometheus)."""

import shutil
import subprocess
from pathlib import Path


def promtool(*args: str | Path) -> str:
    """What promtool says, which must be that all is well."""
    program = shutil.which("promtool")
    assert program, "promtool is missing: install Prometheus (Debian and Ubuntu: apt-get install prometheus)"
    ran = subprocess.run([program, *args], capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    return ran.stdout + ran.stderr
