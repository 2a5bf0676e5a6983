"""The cache of prepared engines and models: a part that counts as present is complete.

    CACHE/engines/NAME/    a virtual environment with vLLM
    CACHE/models/NAME/     a model as vLLM loads it
    CACHE/downloads/       pip's cache during a preparation, so that the next one need not download everything again
    CACHE/logs/            the last output of pip, the engine and the gateway
    CACHE/lock             held during a preparation

A virtual environment cannot be moved: its scripts name its path. So a part is made in its final place and its marker is
written last, after everything else is on the disk; a part without its marker counts as absent, and the next preparation
removes it. NAME contains the versions and a hash of the recipe: another recipe makes another part.
"""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from .failure import RunError

MARKER = "COMPLETE"
PARTS = ("engines", "models")


def default_cache(environ: Mapping[str, str]) -> Path:
    """$SLUICEGATE_CACHE, or `sluicegate` in $XDG_CACHE_HOME, or in ~/.cache."""
    if chosen := environ.get("SLUICEGATE_CACHE"):
        return Path(chosen).expanduser().absolute()
    # The XDG base directory specification: a relative path there is invalid and must be ignored.
    base = Path(environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path("~/.cache").expanduser()) / "sluicegate"


def is_whole(part: Path) -> bool:
    """Whether this part is complete."""
    return (part / MARKER).exists()


def make(part: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` make the part in its place, then mark it complete. Needs the lock. Leaves nothing if `fill` raises."""
    discard(part)
    part.mkdir(parents=True)
    try:
        fill(part)
    except BaseException:
        discard(part)
        raise
    # First everything else: after a power cut, a marker must not vouch for files that were not written.
    os.sync()
    pending = part / f"{MARKER}.pending"
    with pending.open("w") as file:
        file.write("Everything beside this file is complete; see daemon/sluicegate_run/cache.py.\n")
        file.flush()
        os.fsync(file.fileno())
    pending.rename(part / MARKER)
    for directory in (part, part.parent):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def leftovers(cache: Path) -> list[Path]:
    """Parts that an interrupted preparation left incomplete."""
    return [part for kind in PARTS for part in sorted((cache / kind).glob("*")) if not is_whole(part)]


def discard(part: Path) -> None:
    """Remove a part, the marker first: half removed, it must not count as complete."""
    (part / MARKER).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(part)


@contextlib.contextmanager
def lock(cache: Path, say: Callable[[str], None]) -> Iterator[int]:
    """Run one preparation at a time: wait for another one to end, and say so. Gives the lock's descriptor.

    The kernel drops the lock with its last open descriptor. The programs that write into the cache inherit it
    (`Guarded(keep_open=...)`), so a preparation that is killed holds the lock until they have ended too.
    """
    descriptor = os.open(cache / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode().strip() or "unknown"
            say(f"Another preparation (process {holder}) uses {cache}; waiting until it ends.")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def free_bytes(directory: Path) -> int:
    """What an unprivileged program may still write to the file system of `directory`."""
    return shutil.disk_usage(directory).free


def unusable(cache: Path, error: OSError) -> RunError:
    """The system's error about a file in the cache, as a sentence."""
    if error.errno == errno.ENOSPC:
        return RunError(
            f"The disk of {cache} became full before the engine was complete: free some space, or name a directory on "
            "a larger disk in SLUICEGATE_CACHE, and run it again."
        )
    return RunError(
        f"The cache {cache} cannot be used ({error.strerror}: {error.filename}): correct that, or name another "
        "directory in SLUICEGATE_CACHE, and run it again."
    )


def bytes_under(directory: Path) -> int:
    """The sizes of the files below `directory`, in bytes; files that vanish meanwhile count nothing."""
    total = 0
    for folder, _, files in os.walk(directory):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(f"{folder}/{name}").st_size
    return total
