"""The base images: Debian 12 and 13 as an installer leaves them, made once by debootstrap and kept in the cache.

    CACHE/deploy/base-SUITE-HASH/    the whole root file system; never written to after it is made

Every host runs on an overlay over it, so a new host costs milliseconds. The cache is never required: without it the
next run makes an image again, about a minute each.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from sluicegate_run.cache import default_cache
from tests.deploy.outside import Outside

#: The Debian releases that are booted, by the names of their suites.
DEBIAN_12, DEBIAN_13 = "bookworm", "trixie"
SUITES = (DEBIAN_12, DEBIAN_13)

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


def base_image(outside: Outside, suite: str) -> Path:
    """The root directory of this suite's image, made if it is not there. One preparation at a time."""
    base = _place(suite)
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not base.exists():
            for stale in stale_images():
                shutil.rmtree(stale)
            pending = base.with_name(f"pending-{base.name}")
            shutil.rmtree(pending, ignore_errors=True)
            _make(pending, suite, outside)
            # The name is the mark of a whole image.
            pending.rename(base)
    return base


def is_made(suite: str) -> bool:
    """Whether a host of this suite can boot without a minute's preparation."""
    return _place(suite).exists()


def stale_images() -> list[Path]:
    """Images that no suite's recipe makes any more."""
    current = {_place(suite) for suite in SUITES}
    return sorted(image for image in cache().glob("base-*") if image not in current)


def _place(suite: str) -> Path:
    assert suite in SUITES, f"no image is made of {suite}: the suites are {', '.join(SUITES)}"
    recipe = f"{RECIPE} {suite} {PACKAGES}"
    return cache() / f"base-{suite}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def _make(root: Path, suite: str, outside: Outside) -> None:
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, str(root)]
    command += [outside.debian] if outside.debian else []
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEBOOTSTRAP_S)
    assert result.returncode == 0, (
        f"debootstrap {suite} failed; its last lines:\n{result.stdout[-3000:]}{result.stderr[-1000:]}"
    )
    for package in (root / "var/cache/apt/archives").glob("*.deb"):
        package.unlink()
    # Each host gets its own at its first boot.
    (root / "etc/machine-id").write_text("")
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
