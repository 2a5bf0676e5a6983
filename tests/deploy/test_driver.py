"""The role nvidia_driver on a booted host with a GPU on its PCI bus that is made of files: from refusal to removal.

The steps build on each other, in order. What no kernel does here: build and load modules, and reboot.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy import playbooks, snapshot
from tests.deploy.driver_packages import HIGHER, OLDER, VENDOR, VERSION, DriverRepositories, driver_repositories
from tests.deploy.host import Host, booted_host

pytestmark = pytest.mark.deploy


#: A GPU of NVIDIA's, as sysfs shows it.
GPU = {"vendor": "0x10de", "class": "0x030200"}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with booted_host() as host:
        yield host


@dataclass(frozen=True)
class Driver:
    """The host with its GPU, the repositories and the plays."""

    host: Host
    repositories: DriverRepositories
    before: snapshot.Snapshot

    def play(self, log: str, *args: str, tasks: str = "", **variables: object) -> playbooks.Run:
        """Run the role's passes, or one file of its tasks; `variables` beside the inventory's."""
        passes = (tasks,) if tasks else ("preflight", "main", "verify")
        inventory = {
            "nvidia_driver_repository_url": self.repositories.nvidia,
            "nvidia_driver_repository_key": self.repositories.key,
            **variables,
        }
        return playbooks.play_role(
            self.host, "nvidia_driver", *passes, args=args, variables=inventory, log=f"driver-{log}"
        )

    def version(self, package: str) -> str:
        """The installed version of a package, empty if it is not installed."""
        shown = self.host.run(
            "dpkg-query", "--show", "--showformat=${db:Status-Status} ${Version}", package, check=False
        ).stdout
        return shown.removeprefix("installed ") if shown.startswith("installed ") else ""

    def apt(self, *args: str) -> None:
        self.host.run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--yes", "--quiet", *args)


@pytest.fixture(scope="module")
def driver(host: Host) -> Iterator[Driver]:
    with driver_repositories(host.directory / "driver", host.network.here) as repositories:
        _put_in_a_gpu(host)
        # The distribution's repository, where it has what the archive has: kernel, dkms, and drivers.
        _write(host, "/etc/apt/keyrings/distribution.asc", repositories.key)
        _write(
            host,
            "/etc/apt/sources.list.d/distribution.list",
            f"deb [signed-by=/etc/apt/keyrings/distribution.asc] {repositories.distribution} ./\n",
        )
        host.run("apt-get", "--quiet", "update")
        host.run("apt-get", "--yes", "--quiet", "install", "linux-image-amd64", f"libcuda1={OLDER}")
        yield Driver(host, repositories, snapshot.take(host))


def _put_in_a_gpu(host: Host) -> None:
    """Lay files over sysfs, which is the machine's: one GPU, no module, no firmware of EFI."""
    for file, text in GPU.items():
        _write(host, f"/run/sysfs/pci/0000:17:00.0/{file}", f"{text}\n")
    for directory, at in (("pci", "/sys/bus/pci/devices"), ("module", "/sys/module"), ("firmware", "/sys/firmware")):
        host.run("mkdir", "-p", f"/run/sysfs/{directory}")
        if host.run("test", "-d", at, check=False).returncode == 0:
            host.run("mount", "--bind", f"/run/sysfs/{directory}", at)


def _write(host: Host, path: str, text: str) -> None:
    host.run("mkdir", "-p", str(Path(path).parent))
    host.run("tee", path, stdin=text)


def refused(run: playbooks.Run) -> str:
    """The sentence of the one task that stopped the play."""
    assert run.status != 0, f"{run.name} was to be refused"
    [task] = run.failed
    return task.message


def test_distributions_driver_is_refused(driver: Driver) -> None:
    """The role refuses a driver of the distribution before it changes anything."""
    run = driver.play("foreign")
    assert re.search(r"do not come from NVIDIA's repository \(libcuda1\).*apt-get purge libcuda1", refused(run))
    assert run.changed == []
    driver.apt("purge", "libcuda1")


def test_check_mode_on_the_fresh_host_changes_nothing(driver: Driver) -> None:
    before = snapshot.take(driver.host)
    driver.play("check", "--check").succeeded()
    assert snapshot.take(driver.host).changes(before) == []


def test_newer_kernel_needs_a_reboot_first(driver: Driver) -> None:
    """The role does not build the driver while a newer kernel is installed but not booted."""
    driver.apt("install", "linux-image-999.1.0-1-amd64")
    said = refused(driver.play("reboot", nvidia_driver_reboot=False))
    assert "must be rebooted" in said
    assert "999.1.0-1-amd64 is installed" in said
    assert driver.version("nvidia-kernel-open-dkms") == ""
    driver.apt("purge", "linux-image-999.1.0-1-amd64")


def test_first_run_installs_the_driver(driver: Driver) -> None:
    """The first run installs NVIDIA's driver of the branch."""
    driver.play("first").succeeded()
    for package in ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "libcuda1", "nvidia-smi", "nvidia-persistenced"):
        assert driver.version(package) == VERSION, package


def test_second_run_changes_nothing(driver: Driver) -> None:
    """The second run refuses nothing and changes nothing."""
    maintainer = driver.host.output("dpkg-query", "--show", "--showformat=${Maintainer}", "libcuda1")
    assert maintainer == VENDOR["maintainers"]["nvidia_for_ubuntu"]["text"]
    assert driver.play("second").succeeded().changed == []


def test_distributions_driver_is_kept_out(driver: Driver) -> None:
    """apt keeps NVIDIA's driver although the distribution offers a higher version of the same branch."""
    policy = driver.host.output("apt-cache", "policy", "libcuda1")
    # It is offered, it is higher, and NVIDIA's own pin by version takes it for one of the branch.
    assert HIGHER in policy
    assert f"Candidate: {VERSION}" in policy
    driver.apt("install", "--only-upgrade", "libcuda1")
    assert driver.version("libcuda1") == VERSION


def test_persistence_mode_survives_a_restart(driver: Driver) -> None:
    """Persistence mode is on and stays on after a restart of the daemon."""
    vendors = driver.host.output("cat", "/usr/lib/systemd/system/nvidia-persistenced.service")
    assert "--no-persistence-mode" in vendors
    driver.host.run("systemctl", "restart", "nvidia-persistenced.service")
    unit = driver.host.show("nvidia-persistenced.service", "ActiveState", "UnitFileState", "StopWhenUnneeded")
    assert unit == {"ActiveState": "active", "UnitFileState": "enabled", "StopWhenUnneeded": "no"}
    smi = driver.host.output("nvidia-smi", "--query-gpu=driver_version,persistence_mode", "--format=csv,noheader")
    assert smi == "580.95.05, Enabled\n"


def test_a_server_gets_no_x11(driver: Driver) -> None:
    names = driver.host.output("dpkg-query", "--show", "--showformat=${Package}\n").split()
    assert [name for name in names if re.match(r"xserver-|libx11|libegl|libgl(\d|x)", name)] == []


def test_headers_came_by_meta_package(driver: Driver) -> None:
    manual = driver.host.output("apt-mark", "showmanual").split()
    assert "linux-headers-amd64" in manual
    # None of one kernel, whose headers would not follow the next one.
    assert [name for name in manual if re.match(r"linux-headers-\d", name)] == []


def test_contrib_is_enabled(driver: Driver) -> None:
    """Debian's contrib is enabled beside the host's own sources, which stay as they were."""
    policy = driver.host.output("apt-cache", "policy", "nvidia-support")
    assert "/contrib" in policy
    assert driver.version("nvidia-support") != ""
    own = [path for path in driver.before.files if re.fullmatch(r"/etc/apt/sources[.]list([.]d/.+)?", path)]
    now = snapshot.take(driver.host).files
    assert {path: now[path] for path in own} == {path: driver.before.files[path] for path in own}


def test_driver_without_its_repository_is_nvidias(driver: Driver) -> None:
    """A driver whose repository is gone does not count as the distribution's."""
    driver.host.run("mv", "/etc/apt/sources.list.d/nvidia-cuda.sources", "/root/")
    driver.host.run("apt-get", "--quiet", "update")
    driver.play("gone", tasks="preflight").succeeded()
    driver.host.run("mv", "/root/nvidia-cuda.sources", "/etc/apt/sources.list.d/")
    driver.host.run("apt-get", "--quiet", "update")


def test_secure_boot_needs_efi(driver: Driver) -> None:
    """Without EFI the role asks for no Secure Boot key."""
    run = driver.play("secure-boot", tasks="secure_boot").succeeded()
    assert run.changed == []
    assert any("without Secure Boot" in task.message for task in run.tasks)


def test_secure_boot_key_is_the_one_of_dkms(driver: Driver) -> None:
    """The role makes the Secure Boot key that DKMS would make, and makes it once."""
    driver.apt("install", "openssl")
    vendor = VENDOR["dkms"]["debian"]
    assert driver.play("mok", tasks="mok").succeeded().changed != []
    shown = driver.host.output("openssl", "x509", "-inform", "DER", "-noout", "-subject", "-in", vendor["certificate"])
    assert shown.strip().replace(" ", "").endswith(vendor["subject"].removeprefix("/").replace(" ", ""))
    assert driver.host.output("stat", "--format=%a", vendor["key"]).strip() == "600"
    public = driver.host.output("openssl", "x509", "-inform", "DER", "-noout", "-pubkey", "-in", vendor["certificate"])
    assert driver.host.output("openssl", "pkey", "-pubout", "-in", vendor["key"]) == public
    assert driver.play("mok-again", tasks="mok").succeeded().changed == []


def test_removal_leaves_the_driver(driver: Driver) -> None:
    """Removal leaves the driver and, of the role's files, only the one that keeps nouveau off."""
    driver.play("uninstall", tasks="uninstall").succeeded()
    assert driver.version("nvidia-driver-cuda") == VERSION
    left = [path for path in snapshot.take(driver.host).files if "sluicegate" in path]
    # nouveau stays off, for the driver stays.
    assert left == ["/etc/modprobe.d/sluicegate-nouveau.conf"]
    assert driver.host.show("nvidia-persistenced.service", "UnitFileState") == {"UnitFileState": "static"}
