"""The base image: Debian 12 as an installer leaves it, made once by debootstrap and kept in the cache.

    CACHE/deploy/base-HASH/    the whole root file system; never written to after it is made

Every host runs on an overlay over it, so a new host costs milliseconds. The cache is never required: without it the
next run makes the image again, about a minute.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from sluicegate.embedded.cache import default_cache
from tests.deploy.outside import Outside

SUITE = "bookworm"

#: What a Debian server has after its installation, and Ansible's two needs, SSH and Python. What the roles need beyond
#: this they have to install themselves, or the test would not see that they forgot it.
PACKAGES = (
    "ca-certificates,dbus,iproute2,kmod,libpam-systemd,openssh-server,procps,python3,sudo,systemd,systemd-sysv,udev,"
    "unattended-upgrades"
)

#: Raise it when what `_make` does changes.
RECIPE = 1

#: A slow mirror is no error (seconds).
DEBOOTSTRAP_S = 900.0


def cache() -> Path:
    """Where the image and the files of running hosts are kept."""
    directory = default_cache(os.environ) / "deploy"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def base_image(outside: Outside) -> Path:
    """The image's root directory, made if it is not there. One preparation at a time."""
    recipe = f"{RECIPE} {SUITE} {PACKAGES}"
    base = cache() / f"base-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not base.exists():
            for stale in cache().glob("base-*"):
                shutil.rmtree(stale)
            pending = base.with_name(f"pending-{base.name}")
            shutil.rmtree(pending, ignore_errors=True)
            _make(pending, outside)
            # The name is the mark of a whole image.
            pending.rename(base)
    return base


def _make(root: Path, outside: Outside) -> None:
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root)]
    command += [outside.debian] if outside.debian else []
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEBOOTSTRAP_S)
    assert result.returncode == 0, (
        f"debootstrap failed; its last lines:\n{result.stdout[-3000:]}{result.stderr[-1000:]}"
    )
    for package in (root / "var/cache/apt/archives").glob("*.deb"):
        package.unlink()
    # Each host gets its own at its first boot.
    (root / "etc/machine-id").write_text("")
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
