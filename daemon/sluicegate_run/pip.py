"""What pip prints, read for two purposes: the words beside a progress bar, and one sentence when it fails."""

import platform
import re
import sys
from pathlib import Path

from .failure import RunError

_FETCHING = re.compile(r"\s*(?:Downloading|Using cached) ([^\s-]+)")
_NO_MATCH = re.compile(r"No matching distribution found for (\S+)")
# What pip and urllib3 print when there is no way to the index, or a download broke off.
_TROUBLE = re.compile(
    r"connection broken by|Failed to establish a new connection|Connection (aborted|reset|refused|to \S+ timed out)|"
    r"Read timed out|ProxyError|NetworkConnectionError|ConnectionTimeoutError|incomplete-download|IncompleteRead"
)
_MOVING = re.compile(r"Collecting |\s*(Downloading|Using cached) |Processing |Installing ")


class NoMatchError(RunError):
    """pip reached its index, which has no `requirement` for this machine."""

    def __init__(self, requirement: str, log: Path) -> None:
        super().__init__(
            f"pip finds no {requirement} for Python {sys.version_info.major}.{sys.version_info.minor} on "
            f"{platform.machine()}: name an index that has it in PIP_EXTRA_INDEX_URL and run it again. "
            f"pip's output is in {log}."
        )
        self.requirement = requirement


class PipOutput:
    """Reads pip's lines; pure. `current` is the package that is being downloaded, `installing` the phase after that."""

    def __init__(self) -> None:
        self.current = ""
        self.installing = False
        self.offline = False
        self.disk_full = False
        self.missing: str | None = None
        self.error = "it gave no reason"

    def feed(self, line: str) -> None:
        """Take the next line."""
        if match := _FETCHING.match(line):
            self.current = match[1]
        elif line.startswith("Installing collected packages"):
            self.installing = True
        elif line.startswith("ERROR:"):
            self.error = line.removeprefix("ERROR:").strip()
        if match := _NO_MATCH.search(line):
            self.missing = match[1]
        if _TROUBLE.search(line):
            self.offline = True
        elif _MOVING.match(line) or ("(from versions: " in line and "(from versions: none)" not in line):
            # pip tried again and went on: if it fails later, the reason is another one.
            self.offline = False
        self.disk_full = self.disk_full or "No space left on device" in line

    def failure(self, what: str, log: Path) -> RunError:
        """Why pip could not install `what`, and what to do about it. A full disk is the caller's to tell."""
        if self.offline:
            return RunError(
                f"pip cannot reach its package index to download {what}: check the network (and https_proxy, or pip's "
                f"own configuration) and run it again; what was downloaded so far is kept. pip's output is in {log}."
            )
        if self.missing:
            return NoMatchError(self.missing, log)
        return RunError(f"pip could not install {what} ({self.error}): read {log} and run it again.")
