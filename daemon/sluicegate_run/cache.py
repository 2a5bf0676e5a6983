"""The cache of prepared engines and models: what is in it is whole, or is not there.

    CACHE/engines/NAME/    a virtual environment with vLLM
    CACHE/models/NAME/     a model as vLLM loads it
    CACHE/downloads/       pip's cache while a preparation runs, so that an interrupted one need not download again
    CACHE/logs/            what pip, the engine and the gateway printed last
    CACHE/lock             held while a preparation runs

A virtual environment cannot be moved: its scripts name its path. So a part is made in its final place and its marker is
written last, after everything else is on the disk; a part without its marker counts as absent and is removed by the
next preparation. NAME carries the versions and a hash of the recipe: another recipe is another part.
"""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from .errors import EmbeddedError

MARKER = "COMPLETE"
# The parts of the cache in which everything is either whole or rubbish.
PARTS = ("engines", "models")


def default_cache(environ: Mapping[str, str]) -> Path:
    """$SLUICEGATE_CACHE, or `sluicegate` in $XDG_CACHE_HOME, or in ~/.cache."""
    if chosen := environ.get("SLUICEGATE_CACHE"):
        return Path(chosen).expanduser().absolute()
    # The XDG base directory specification: a relative path there is invalid and is to be ignored.
    base = Path(environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path("~/.cache").expanduser()) / "sluicegate"


def is_whole(part: Path) -> bool:
    """Whether this part was made to its end."""
    return (part / MARKER).exists()


def make(part: Path, fill: Callable[[Path], None]) -> None:
    """Have `fill` make the part in its place, then mark it whole. Under the lock. If `fill` raises, nothing is left."""
    discard(part)
    part.mkdir(parents=True)
    try:
        fill(part)
    except BaseException:
        discard(part)
        raise
    # Everything before the marker: a marker that survives a power cut must not speak for files that did not.
    os.sync()
    marker = part / MARKER
    pending = part / f"{MARKER}.pending"
    with pending.open("w") as file:
        file.write("Everything beside this file is whole; see sluicegate_run/cache.py.\n")
        file.flush()
        os.fsync(file.fileno())
    pending.rename(marker)
    for directory in (part, part.parent):
        _sync_directory(directory)


def leftovers(cache: Path) -> list[Path]:
    """Parts that a dead preparation left unfinished."""
    return [part for kind in PARTS for part in sorted((cache / kind).glob("*")) if not is_whole(part)]


def discard(part: Path) -> None:
    """Remove a part, the marker first: half removed, it must not count as whole."""
    (part / MARKER).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(part)


@contextlib.contextmanager
def lock(cache: Path, say: Callable[[str], None]) -> Iterator[int]:
    """One preparation at a time. Waits for another one's end and says so; gives the lock's descriptor.

    The kernel drops the lock with its last open descriptor. Give it to the programs that write into the cache
    (`Guarded(keep_open=...)`), and a preparation that is killed holds it until they are gone as well.
    """
    descriptor = os.open(cache / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode().strip() or "unknown"
            say(f"Another preparation (process {holder}) is at work in {cache}; waiting for its end.")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def free_bytes(directory: Path) -> int:
    """What an unprivileged writer may still write on the file system of `directory`."""
    return shutil.disk_usage(directory).free


def require_space(cache: Path, needed: int, free: Callable[[Path], int] = free_bytes) -> None:
    """Refuse before the first download what would end in the middle of the last."""
    if (left := free(cache)) < needed:
        raise EmbeddedError(
            f"The disk of {cache} has {left / 1e9:.1f} GB free and the engine needs {needed / 1e9:.1f} GB: "
            "free some space, or name a directory on a larger disk in SLUICEGATE_CACHE, and run it again."
        )


def disk_full(cache: Path) -> EmbeddedError:
    """The disk was large enough at the beginning, and somebody else has filled it since."""
    return EmbeddedError(
        f"The disk of {cache} is full before the engine is whole: free some space, or name a directory on a "
        "larger disk in SLUICEGATE_CACHE, and run it again."
    )


def unusable(cache: Path, error: OSError) -> EmbeddedError:
    """What the system says to a file in the cache, as a sentence."""
    if error.errno == errno.ENOSPC:
        return disk_full(cache)
    return EmbeddedError(
        f"The cache {cache} cannot be used ({error.strerror}: {error.filename}): mend that, or name another directory "
        "in SLUICEGATE_CACHE, and run it again."
    )


def usable(cache: Path) -> None:
    """Make the cache's directories, or say in a sentence why that is impossible."""
    try:
        for name in (*PARTS, "downloads", "logs"):
            (cache / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(cache, error) from error


def bytes_under(directory: Path) -> int:
    """What the files below `directory` hold, in bytes; what vanishes meanwhile counts nothing."""
    total = 0
    stack = [str(directory)]
    while stack:
        try:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                    else:
                        with contextlib.suppress(FileNotFoundError):
                            total += entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue
    return total


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
