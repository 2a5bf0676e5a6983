"""pip as a program: what it says on its output is a progress bar while it runs and one sentence when it fails."""

import contextlib
import platform
import re
import sys
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from . import cache
from .errors import EmbeddedError
from .process import Guarded
from .progress import Progress
from .recipe import Sizes

# `--progress-bar raw`, which prints "Progress 1024 of 4096" for programs to read, came with pip 24.1.
RAW_PROGRESS = "pip>=24.1"
# How often the bytes on the disk are counted while pip installs: the walk over 38,000 files takes 0.2 s.
MEASURE_EVERY_S = 1.0
# What pip has fetched and unpacked; an interrupted pip has nothing that needs tidying by itself.
GRACE_S = 2.0

_DOWNLOADING = re.compile(r"\s*(Downloading|Using cached) (\S+)(?: \(([\d.]+) (bytes|kB|MB|GB)\))?")
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_PROCESSING = re.compile(r"Processing (/\S+)")
_NO_MATCH = re.compile(r"No matching distribution found for (\S+)")
_UNITS = {"bytes": 1, "kB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}
# What pip and urllib3 print when there is no way to the index, or a download broke off.
_TROUBLE = re.compile(
    r"connection broken by|Failed to establish a new connection|Connection (aborted|reset|refused|to \S+ timed out)|"
    r"Read timed out|ProxyError|NetworkConnectionError|ConnectionTimeoutError|incomplete-download|IncompleteRead"
)
_MOVING = re.compile(r"Collecting |\s*(Downloading|Using cached) |Processing |Progress |Installing ")


class NoMatchError(EmbeddedError):
    """pip reached its index, and `requirement` is not there for this machine."""

    def __init__(self, requirement: str, log: Path) -> None:
        super().__init__(
            f"pip finds no {requirement} for Python {sys.version_info.major}.{sys.version_info.minor} on "
            f"{platform.machine()}: name an index that has it in PIP_EXTRA_INDEX_URL and run it again. "
            f"pip's words are in {log}."
        )
        self.requirement = requirement


class PipOutput:
    """Reads pip's lines; pure. `received` and `current` describe the download, `installing` the phase after it."""

    def __init__(self) -> None:
        self.current = ""
        self.installing = False
        self.offline = False
        self.disk_full = False
        self.missing: str | None = None
        self.errors: deque[str] = deque(maxlen=5)
        self._before = 0  # bytes of the files before the current one
        self._file = 0  # bytes of the current one so far
        self._size = 0  # its size

    @property
    def received(self) -> int:
        """Bytes that came by the network, out of pip's cache or from a local directory, so far."""
        return self._before + self._file

    def feed(self, line: str) -> None:
        if match := _PROGRESS.match(line):
            self._file, self._size = int(match[1]), int(match[2])
        elif match := _DOWNLOADING.match(line):
            size = round(float(match[3]) * _UNITS[match[4]]) if match[3] else 0
            self._next_file(match[2], size)
            if match[1] == "Using cached":
                self._file = size
        elif match := _PROCESSING.match(line):
            path = Path(match[1])
            self._next_file(path.name, path.stat().st_size if path.is_file() else 0)
            self._file = self._size
        elif line.startswith("Installing collected packages"):
            self._next_file("", 0)
            self.installing = True
        elif line.startswith("ERROR:"):
            self.errors.append(line.removeprefix("ERROR:").strip())
        if match := _NO_MATCH.search(line):
            self.missing = match[1]
        if _TROUBLE.search(line):
            self.offline = True
        elif _MOVING.match(line) or ("(from versions: " in line and "(from versions: none)" not in line):
            # pip tried again and it went on: what it fails of later is something else.
            self.offline = False
        self.disk_full = self.disk_full or "No space left on device" in line

    def _next_file(self, name: str, size: int) -> None:
        self._before += max(self._size, self._file)
        self._file, self._size = 0, size
        self.current = name.split("-")[0]


class Pip:
    """pip of the virtual environment `python`, working in the cache `root` for as long as a preparation lasts."""

    def __init__(
        self, python: Path, root: Path, progress: Progress, environ: Mapping[str, str], keep_open: Sequence[int]
    ) -> None:
        self.python = python
        self._root = root
        self._progress = progress
        self._keep_open = keep_open
        self.log = root / "logs" / "prepare.log"
        self._temporary = root / "downloads" / "tmp"
        self.environ = {
            **{name: value for name, value in environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")},
            # On the disk that was measured, not on a small /tmp.
            "PIP_CACHE_DIR": str(root / "downloads"),
            "TMPDIR": str(self._temporary),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INPUT": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
            "PYTHONUNBUFFERED": "1",
        }

    def upgrade_itself(self) -> None:
        """The pip that came with Python 3.11 is too old to report its progress."""
        with contextlib.closing(self._events(["install", "--quiet", RAW_PROGRESS], "a newer pip")) as events:
            deque(events, maxlen=0)

    def install(self, requirements: Sequence[str], what: str, expected: Sizes) -> None:
        """Install into the environment.

        Not compiled: an engine imports a part of what is installed, and Python compiles that when it does.
        """
        site = self.python.parent.parent
        before = cache.bytes_under(site)
        words = ["install", "--progress-bar", "raw", "--no-compile", *requirements]
        with contextlib.closing(self._events(words, what)) as events:
            # Two bars in turn: pip downloads everything before it installs anything.
            with self._progress.bar(f"Downloading {what}", expected.download, "bytes") as bar:
                for output in events:
                    if output.installing:
                        break
                    bar.update(output.received, output.current)
            with self._progress.bar(f"Installing {what}", expected.installed, "bytes") as bar:
                for _ in events:
                    bar.update(cache.bytes_under(site) - before)

    def download(self, requirement: str, into: Path, what: str, size: int) -> Path:
        """Fetch the wheel of one requirement, without what it depends on."""
        words = [
            "download",
            "--progress-bar",
            "raw",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--dest",
            str(into),
            requirement,
        ]
        bars = self._progress.bar(f"Downloading {what}", size, "bytes")
        with bars as bar, contextlib.closing(self._events(words, what)) as events:
            for output in events:
                bar.update(output.received, output.current)
        return next(into.glob("*.whl"))

    def _events(self, words: Sequence[str], what: str) -> Generator[PipOutput, None, None]:
        """Run pip; its output after each line, and at least every MEASURE_EVERY_S. Raises if it fails.

        Whoever iterates closes it: pip must be gone before the directory that it fills is removed.
        """
        self._temporary.mkdir(parents=True, exist_ok=True)
        output = PipOutput()
        pip = Guarded([self.python, "-m", "pip", *words], env=self.environ, grace_s=GRACE_S, keep_open=self._keep_open)
        try:
            with self.log.open("a") as log:
                print(f"$ pip {' '.join(words)}", file=log)
                for line in pip.lines(MEASURE_EVERY_S):
                    if line is not None:
                        output.feed(line)
                        if not line.startswith("Progress "):
                            print(line, file=log)
                    yield output
            status = pip.wait()
        finally:
            pip.stop()
        if status != 0:
            raise explain(output, what, self._root, self.log)


def explain(output: PipOutput, what: str, root: Path, log: Path) -> EmbeddedError:
    """Why pip failed and what to do about it."""
    if output.disk_full:
        return cache.disk_full(root)
    if output.offline:
        return EmbeddedError(
            f"pip cannot reach its package index to download {what}: check the network (and https_proxy, or pip's own "
            f"configuration) and run it again; what has come so far is kept. pip's words are in {log}."
        )
    if output.missing:
        return NoMatchError(output.missing, log)
    reason = output.errors[-1] if output.errors else "it gave no reason"
    return EmbeddedError(f"pip could not install {what} ({reason}): read {log} and run it again.")
