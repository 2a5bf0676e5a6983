"""Stand-ins for NVIDIA's driver packages and for the distribution's of the same names, in two signed repositories.

What is theirs (dependencies, conflicts, maintainer, origin, units) is in tests/deploy/vendor/nvidia_driver.yml with its
source. No kernel module is built: the package of modules leaves a file where DKMS would have put one, and modinfo,
modprobe and nvidia-smi of the stand-ins go by it.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.packages import HERE, Package, run, serving, signing

VENDOR: dict[str, Any] = yaml.safe_load((HERE.parent / "vendor" / "nvidia_driver.yml").read_text())

#: The driver of the role's default branch, and one of the next, which the host must not take.
VERSION = "580.95.05-1"
NEXT = "590.48.01-1"
#: The distribution's, of the same branch and higher: without a pin apt takes it.
HIGHER = "580.126.09-1~deb12u1"
#: The one that a host had before.
OLDER = "535.247.01-1~deb12u1"

#: Above whatever the archive has.
ABOVE = "99"

BUILD_POSTINST = """\
#!/bin/sh
set -e
[ "$1" = configure ] || exit 0
kernel=$(uname -r)
[ -e "/lib/modules/$kernel/build/." ] || { echo "no headers for $kernel: no module is built" >&2; exit 0; }
mkdir -p "/lib/modules/$kernel/updates/dkms"
echo VERSION >"/lib/modules/$kernel/updates/dkms/nvidia.version"
"""

BUILD_PRERM = """\
#!/bin/sh
rm -rf "/lib/modules/$(uname -r)/updates"
"""

PIN = """\
Package: *nvidia* libcuda*
Pin: version 580.*
Pin-Priority: {priority}
"""

DRIVER = "nvidia-graphics-drivers"
UNIT = "nvidia-persistenced.service"


def nvidia_packages() -> list[Package]:
    """The driver of two branches as NVIDIA's repository for Debian has it, and the package that holds a host to one."""
    pinning = VENDOR["packages"]["nvidia-driver-pinning-580"]
    provides = ", ".join(pinning["provides"])
    return [
        *_driver(VERSION),
        *_driver(NEXT),
        Package(
            "nvidia-driver-pinning-580", "580-1",
            files={"/etc/apt/preferences.d/nvidia-driver-pinning-580": PIN.format(priority=pinning["pin_priority"])},
            fields={"Provides": provides, "Conflicts": provides, "Replaces": provides, **_of_nvidia("pinning")},
        ),
    ]  # fmt: skip


def _driver(version: str) -> list[Package]:
    upstream = version.split("-")[0]
    kmod = _read("nvidia_kmod.sh")
    driver = _of_nvidia(DRIVER)
    return [
        Package("nvidia-driver-cuda", version, f"libcuda1 (= {version}), nvidia-smi (= {version})", fields=driver),
        Package("libcuda1", version, "nvidia-support", fields=driver),
        Package("nvidia-smi", version, files={"/usr/bin/nvidia-smi": _read("nvidia_smi.sh")}, fields=driver),
        Package(
            "nvidia-kernel-open-dkms", version, "dkms, nvidia-kernel-common",
            # Before the real ones in every PATH.
            {"/usr/local/sbin/modinfo": kmod, "/usr/local/sbin/modprobe": kmod},
            {"postinst": BUILD_POSTINST.replace("VERSION", upstream), "prerm": BUILD_PRERM},
            driver,
        ),
        Package(
            "nvidia-persistenced", version, "python3",
            {
                "/usr/bin/nvidia-persistenced": _read("nvidia_persistenced.py"),
                f"/usr/lib/systemd/system/{UNIT}": _read(UNIT),
            },
            {"postinst": "#!/bin/sh\nsystemctl daemon-reload\n", "postrm": "#!/bin/sh\nsystemctl daemon-reload\n"},
            _of_nvidia("nvidia-persistenced"),
        ),
        # What servers got before, with X11.
        Package("nvidia-open", version, "nvidia-driver-cuda, xserver-xorg-video-nvidia", fields=driver),
        Package("xserver-xorg-video-nvidia", version, fields=driver),
    ]  # fmt: skip


def _read(name: str) -> str:
    return (HERE / name).read_text()


def _of_nvidia(source: str) -> dict[str, str]:
    return {"Source": source, "Maintainer": VENDOR["maintainers"]["nvidia_for_ubuntu"]["text"]}


def distribution_packages() -> list[Package]:
    """The distribution's: drivers of the same names, and a kernel with what builds modules for it, empty."""
    maintainer = VENDOR["maintainers"]["nvidia_for_debian"]["text"]
    driver = {"Source": DRIVER, "Maintainer": maintainer}
    kernel = os.uname().release
    return [
        *(Package(name, HIGHER, fields=driver) for name in ("nvidia-driver-cuda", "libcuda1", "nvidia-smi")),
        Package("nvidia-persistenced", HIGHER, fields={"Source": "nvidia-persistenced", "Maintainer": maintainer}),
        Package("libcuda1", OLDER, fields=driver),
        Package("dkms", ABOVE),
        Package("initramfs-tools", ABOVE, files={"/usr/sbin/update-initramfs": "#!/bin/sh\n"}),
        Package(f"linux-image-{kernel}", ABOVE, "initramfs-tools"),
        Package(f"linux-headers-{kernel}", ABOVE, files={f"/lib/modules/{kernel}/build/Makefile": ""}),
        Package("linux-image-amd64", ABOVE, f"linux-image-{kernel} (= {ABOVE})"),
        Package("linux-headers-amd64", ABOVE, f"linux-headers-{kernel} (= {ABOVE})"),
        # A kernel that was installed and not booted.
        Package("linux-image-999.1.0-1-amd64", ABOVE),
    ]


@dataclass(frozen=True)
class DriverRepositories:
    """Where the host finds the stand-ins, and the key with which they are signed."""

    nvidia: str
    distribution: str
    key: str


@contextlib.contextmanager
def driver_repositories(directory: Path, address: str) -> Iterator[DriverRepositories]:
    """Build, sign and serve both repositories at `address` until the end of the block."""
    releases = VENDOR["release_files"]
    with signing(directory / "gnupg") as (gpg, key):
        for name, packages, release in (
            ("nvidia", nvidia_packages(), releases["nvidia"]),
            ("distribution", distribution_packages(), releases["debian"]),
        ):
            pool = directory / "www" / name
            pool.mkdir(parents=True)
            for package in packages:
                package.build(pool)
            (pool / "Packages").write_text(run("apt-ftparchive", "packages", ".", cwd=pool))
            says = [
                word
                for field in ("Origin", "Label")
                if field in release
                for word in ("-o", f"APT::FTPArchive::Release::{field}={release[field]}")
            ]
            (pool / "Release").write_text(run("apt-ftparchive", *says, "release", ".", cwd=pool))
            run(*gpg, "--clearsign", "--output", str(pool / "InRelease"), str(pool / "Release"))
        with serving(directory / "www", address) as url:
            yield DriverRepositories(f"{url}/nvidia", f"{url}/distribution", key)
