"""What the role nvidia_driver decides from a host's facts, held against the vendors' packages; nothing is installed."""

import base64
import fnmatch
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

ROOT = Path(__file__).parents[2]
ROLE = ROOT / "ansible/roles/nvidia_driver"
VENDOR = yaml.safe_load((ROOT / "tests/deploy/vendor/nvidia_driver.yml").read_text())
NVLINK5 = VENDOR["nvlink5"]
NVIDIA = "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64"
DEBIAN = "http://deb.debian.org/debian bookworm/non-free amd64 Packages"
#: Branches that are held against the packages; 580 is the role's default and the last with Ubuntu's old names.
BRANCHES = ("580", "590", "595")


@pytest.fixture(scope="module")
def role() -> "Role":
    return Role()


class Role:
    """The role's defaults and variables, as Ansible resolves them for a host."""

    def __init__(self) -> None:
        self.loader = DataLoader()
        self.variables: dict[str, Any] = {}
        for name in ("defaults", "vars"):
            self.variables |= self.loader.load_from_file(str(ROLE / name / "main.yml"), trusted_as_template=True)

    def ask(self, name: str, facts: Mapping[str, object], **variables: object) -> Any:
        """The value of a variable; `variables` are the inventory's and what tasks have registered."""
        values = {**self.variables, "inventory_hostname": "gpu1", "ansible_facts": facts, **variables}
        return Templar(self.loader, variables=values).template(self.variables[name])

    def render(self, template: str, facts: Mapping[str, object], **variables: object) -> str:
        """The text of a task's `content`, or of one of the role's templates."""
        values = {**self.variables, "inventory_hostname": "gpu1", "ansible_facts": facts, **variables}
        tasks = self.loader.load_from_file(str(ROLE / "tasks" / "repository.yml"), trusted_as_template=True)
        text = next(task["ansible.builtin.copy"]["content"] for task in tasks if task["name"] == template)
        return str(Templar(self.loader, variables=values).template(text))


def platform(name: str, kernel: str = "6.1.0-28-amd64", architecture: str = "x86_64") -> dict[str, object]:
    return {**VENDOR["platforms"][name]["facts"], "kernel": kernel, "architecture": architecture}


def lines(*text: str) -> dict[str, list[str]]:
    """A command's output, as a task registers it."""
    return {"stdout_lines": list(text)}


def branches(name: str) -> list[str]:
    return [branch for branch in BRANCHES if int(branch) >= VENDOR["platforms"][name]["first_branch"]]


PLATFORM_BRANCHES = [(name, branch) for name in VENDOR["platforms"] for branch in branches(name)]


@pytest.mark.parametrize("name", VENDOR["platforms"])
def test_repository_key_and_branch_of_the_platform(role: Role, name: str) -> None:
    """Each platform gets its own repository and key, and a branch no older than its first one."""
    facts, vendor = platform(name), VENDOR["platforms"][name]
    assert role.ask("nvidia_driver_repository_url", facts) == vendor["repository"]
    assert role.ask("nvidia_driver_repository_key_url", facts) == vendor["key"]
    assert int(role.ask("__nvidia_driver_branch_min", facts)) == vendor["first_branch"]
    assert int(role.ask("nvidia_driver_branch", facts)) >= vendor["first_branch"]


@pytest.mark.parametrize(("name", "branch"), PLATFORM_BRANCHES)
def test_default_packages_are_the_guides_and_all_exist(role: Role, name: str, branch: str) -> None:
    facts = platform(name)
    packages = role.ask(
        "__nvidia_driver_transaction", facts, nvidia_driver_branch=branch,
        nvidia_driver_fabric_manager=True, __common_pci_devices=["0x10de 0x030200"],
    )  # fmt: skip
    distribution = facts["distribution"]
    guide = next(
        each["packages"]
        for each in VENDOR["compute_only"]
        if each["distribution"] == distribution and int(branch) in each["branches"]
    )
    assert set(guide) <= set(packages)
    known = {
        package for package, fact in VENDOR["packages"].items() if int(branch) in fact["branches"].get(distribution, [])
    }
    assert set(packages) <= known | set(guide)
    # A package that conflicts with another one of the transaction fails it.
    for package in packages:
        assert not set(VENDOR["packages"].get(package, {}).get("conflicts", [])) & set(packages)
    # nvidia-open and nvidia-driver bring X11's driver and OpenGL.
    assert not {"nvidia-open", "nvidia-driver", "cuda-drivers"} & set(packages)


@pytest.mark.parametrize(
    ("manage", "pci", "packages", "modules"),
    [
        ("auto", ["0x10de 0x030200"], [], []),
        ("auto", ["0x10de 0x030200", "0x10de 0x068000"], ["nvidia-fabricmanager"], []),
        (True, ["0x10de 0x030200", "0x10de 0x068000"], ["nvidia-fabricmanager"], []),
        (True, ["0x10de 0x030200"], ["nvidia-fabricmanager", *NVLINK5["packages"]], [NVLINK5["module"]]),
        (False, ["0x10de 0x030200", "0x10de 0x068000"], [], []),
    ],
    ids=["one GPU", "HGX H100", "HGX H100, said", "HGX B200", "switched off"],
)  # fmt: skip
def test_fabric_manager_packages(
    role: Role, manage: object, pci: list[str], packages: list[str], modules: list[str]
) -> None:
    """A host with NVSwitches gets the fabric manager and whatever else its switches need."""
    seen = {"nvidia_driver_fabric_manager": manage, "__common_pci_devices": list(pci)}
    driver = [*role.ask("nvidia_driver_packages", platform("debian12")), "nvidia-persistenced"]
    assert role.ask("__nvidia_driver_transaction", platform("debian12"), **seen) == [*driver, *packages]
    assert role.ask("__nvidia_driver_modules", platform("debian12"), **seen) == ["nvidia", "nvidia-uvm", *modules]


@pytest.mark.parametrize("fact", VENDOR["kernels"], ids=lambda fact: fact["release"])
@pytest.mark.parametrize("installed", ["of the running image", "of a newer image", "none"])
def test_kernel_and_headers_by_meta_package(role: Role, fact: Mapping[str, str], installed: str) -> None:
    """The role names the kernel and its headers by meta package, so that updates keep them together."""
    flavour = fact["release"].removeprefix(re.match(r"[0-9.]+(\+[a-z0-9]+)?(-[0-9]+)?-", fact["release"])[0])  # type: ignore[index]
    depends = {"of the running image": fact["release"], "of a newer image": f"99.1.0-1-{flavour}"}.get(installed)
    version = "6.12.30-1~bpo12+1" if "bpo" in fact["release"] else "1"
    kernels = [f"ii |linux-image-{fact['release']}|1|kmod, linux-base (>= 4.3~), initramfs-tools (>= 0.120+deb8u2)"]
    if depends:
        kernels.append(f"ii |{fact['image']}|{version}|linux-image-{depends} (= {version}), linux-firmware")
    # Those of other flavours, and what no longer is installed, do not count.
    kernels += ["ii |linux-image-rt-amd64|1|linux-image-6.1.0-28-rt-amd64 (= 1)", "rc |linux-image-zzz|1|"]
    found = {"__nvidia_driver_kernels": lines(*kernels)}
    facts = platform(fact["platform"], fact["release"])
    assert role.ask("__nvidia_driver_image", facts, **found) == fact["image"]
    assert role.ask("__nvidia_driver_headers", facts, **found) == fact["headers"]
    assert role.ask("__nvidia_driver_kernel_suite", facts, **found) == fact.get("suite", "")


def test_of_two_meta_packages_the_running_images_counts(role: Role) -> None:
    kernels = lines(
        "ii |linux-image-6.8.0-60-generic|6.8.0-60.63|kmod",
        "ii |linux-image-6.11.0-29-generic|6.11.0-29.29~24.04.1|kmod",
        "ii |linux-image-generic|6.8.0-60.63|linux-image-6.8.0-60-generic, linux-modules-extra-6.8.0-60-generic",
        "ii |linux-image-generic-hwe-24.04|6.11.0-29|linux-image-6.11.0-29-generic, linux-firmware",
    )
    for running, headers in (
        ("6.8.0-60-generic", "linux-headers-generic"),
        ("6.11.0-29-generic", "linux-headers-generic-hwe-24.04"),
    ):
        facts = platform("ubuntu2404", running)
        assert role.ask("__nvidia_driver_headers", facts, __nvidia_driver_kernels=kernels) == headers


def test_exact_headers_only_if_in_the_archive() -> None:
    """The role installs headers of an exact version only where the archive has them."""
    tasks = yaml.safe_load((ROLE / "tasks/kernel.yml").read_text())
    block = next(task["block"] for task in tasks if "block" in task)
    exact = [
        task["when"]
        for task in [*tasks, *block]
        if "ansible_facts['kernel']" in str(task.get("ansible.builtin.apt", {}).get("name", ""))
    ]
    assert exact == ["__nvidia_driver_exact_headers.stdout | default('') != ''"]


DRIVER = "nvidia-graphics-drivers"
OFFERED = f" libcuda1 | 580.95.05-1 | {NVIDIA}  Packages"
OFFERED_BY_DEBIAN = f" libcuda1 | 535.247.01-1~deb12u1 | {DEBIAN}"
SIGNED = "linux-modules-nvidia-580-open-6.8.0-60-generic"

#: What dpkg has, what apt is offered, and what is foreign.
FOREIGN: dict[str, tuple[list[str], list[str], list[str]]] = {
    "nothing is installed": ([], [], []),
    "NVIDIA's": ([f"ii |libcuda1|580.95.05-1|{DRIVER}"], [OFFERED, OFFERED_BY_DEBIAN], []),
    "the distribution's": (
        [f"ii |libcuda1|535.247.01-1~deb12u1|{DRIVER}", f"hi |nvidia-smi|535.247.01-1~deb12u1|{DRIVER}"],
        [OFFERED, OFFERED_BY_DEBIAN, f"nvidia-smi | 535.247.01-1~deb12u1 | {DEBIAN}"],
        ["libcuda1", "nvidia-smi"],
    ),
    "in both": ([f"ii |libcuda1|580.95.05-1|{DRIVER}"], [OFFERED, f" libcuda1 | 580.95.05-1 | {DEBIAN}"], []),
    "NVIDIA's that it offers no more": (
        [f"ii |libcuda1|580.65.06-1|{DRIVER}"],
        [OFFERED, OFFERED_BY_DEBIAN],
        [],
    ),
    "NVIDIA's whose repository is gone": (
        [f"ii |libcuda1|580.65.06-1|{DRIVER}", "ii |nvidia-driver-pinning-580|580-1|nvidia-driver-pinning"],
        [OFFERED_BY_DEBIAN],
        [],
    ),
    "what nobody knows": ([f"ii |libcuda1|580.65.06-1|{DRIVER}"], [], []),
    "the distribution's of an older release": (
        [f"ii |libcuda1|525.147.05-7~deb12u1|{DRIVER}"],
        [OFFERED_BY_DEBIAN],
        ["libcuda1"],
    ),
    "Ubuntu's signed modules": (
        [f"ii |{SIGNED}|6.8.0-60.63+1|linux-restricted-modules"],
        [f"{SIGNED} | 6.8.0-60.63+1 | http://archive.ubuntu.com/ubuntu noble-updates/restricted amd64 Packages"],
        [SIGNED],
    ),
    "a dependency from contrib, and one that was removed": (
        ["ii |nvidia-kernel-common|20220217+3~deb12u1|nvidia-support", f"rc |nvidia-driver|535.1|{DRIVER}"],
        ["nvidia-kernel-common | 20220217+3~deb12u1 | http://deb.debian.org/debian bookworm/contrib amd64 Packages"],
        [],
    ),
}


@pytest.mark.parametrize(("installed", "offers", "foreign"), FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("source", ["by its address", "by its origin"])
def test_foreign_driver_is_told_by_its_source(
    role: Role, installed: list[str], offers: list[str], foreign: list[str], source: str
) -> None:
    """Who offers the installed packages decides whose driver it is."""
    found = {
        "__nvidia_driver_installed_packages": lines(*installed),
        "__nvidia_driver_offers": lines(*offers),
        "__nvidia_driver_origins": lines("Debian|http://deb.debian.org/debian/"),
    }
    if source == "by its origin":
        # A host that has NVIDIA's repository of another name than the inventory's, a mirror's.
        found["__nvidia_driver_origins"] = lines("Debian|http://deb.debian.org/debian/", f"NVIDIA|{NVIDIA}/")
        found["nvidia_driver_repository_url"] = "https://mirror.example.org/cuda/"  # type: ignore[assignment]
    assert role.ask("__nvidia_driver_foreign", platform("debian12"), **found) == foreign


def pinned(role: Role) -> list[dict[str, str]]:
    text = role.render("Keep the distribution's driver packages out", platform("debian12"))
    records = [record for record in text.split("\n\n") if record.strip()]
    return [dict(line.split(": ", 1) for line in record.splitlines() if line) for record in records]


@pytest.mark.parametrize("origin", [each["Origin"] for each in VENDOR["release_files"].values()])
def test_other_origins_are_pinned_below_zero(role: Role, origin: str) -> None:
    """Every origin of a driver except NVIDIA's is pinned below zero."""
    priorities = [
        int(record["Pin-Priority"])
        for record in pinned(role)
        if fnmatch.fnmatch(origin, record["Pin"].removeprefix("release o="))
    ]
    assert (max(priorities, default=0) < 0) is (origin != VENDOR["release_files"]["nvidia"]["Origin"])


def test_pin_covers_the_distributions_drivers(role: Role) -> None:
    """The pin covers the distribution's drivers and none of the packages that they depend on."""
    patterns = [pattern.removeprefix("src:") for pattern in pinned(role)[0]["Package"].split()]

    def covered(source: str) -> bool:
        return any(fnmatch.fnmatch(source, pattern) for pattern in patterns)

    assert VENDOR["distribution_sources"]
    assert VENDOR["distribution_dependencies"]
    for sources in VENDOR["distribution_sources"].values():
        assert sources
        assert [source for source in sources if not covered(source)] == []
    for needed in VENDOR["distribution_dependencies"].values():
        assert needed
        assert [source for source in needed if covered(source)] == []


def test_the_pin_comes_before_the_one_of_nvidias_package(role: Role) -> None:
    # Of several records that name a version apt takes the first, of files in the order of their names.
    assert Path(role.variables["__nvidia_driver_pin_file"]).name < "nvidia-driver-pinning"
    assert Path(role.variables["__nvidia_driver_pin_file"]).suffix == ".pref"


@pytest.mark.parametrize("unit", VENDOR["units"].values(), ids=VENDOR["units"])
def test_persistence_mode_is_on(role: Role, unit: Mapping[str, Any]) -> None:
    """The drop-in turns persistence mode on, whatever the command of the vendor's unit says."""
    text = f"[Unit]\nDescription=x\n\n[Service]\nType=forking\nExecStart={unit['exec_start']}\nExecStopPost=/bin/rm x\n"
    encoded = {"content": base64.b64encode(text.encode()).decode()}
    command = role.ask(
        "__nvidia_driver_persistence_command", platform("debian12"), __nvidia_driver_persistence_text=encoded
    )
    assert command.split() == [word for word in unit["exec_start"].split() if word != "--no-persistence-mode"]
    dropin = (ROLE / "templates/persistenced.conf.j2").read_text().splitlines()
    # An empty one first: a second ExecStart is an error otherwise.
    start = dropin.index("ExecStart=")
    assert dropin[start + 1] == "ExecStart={{ __nvidia_driver_persistence_command }}"
    if not unit["install"]:
        assert "WantedBy=multi-user.target" in dropin
    if unit.get("stop_when_unneeded"):
        assert "StopWhenUnneeded=no" in dropin


@pytest.mark.parametrize(
    ("name", "dkms"),
    [("debian12", "debian"), ("debian13", "debian"), ("ubuntu2204", "ubuntu"), ("ubuntu2404", "ubuntu")],
)
def test_the_key_is_made_where_dkms_looks_for_it(role: Role, name: str, dkms: str) -> None:
    certificate = role.ask("nvidia_driver_mok_certificate", platform(name))
    assert certificate == VENDOR["dkms"][dkms]["certificate"]
    assert role.variables["__nvidia_driver_mok_keys"][certificate] == VENDOR["dkms"][dkms]["key"]
    made = [
        task["ansible.builtin.command"]["argv"]
        for task in yaml.safe_load((ROLE / "tasks/mok.yml").read_text())
        if certificate in str(task.get("when")) and "ansible.builtin.command" in task
    ]
    assert len(made) == 1
    assert made[0][0] == VENDOR["dkms"][dkms].get("command", "openssl").split()[0]
    if dkms == "debian":
        assert VENDOR["dkms"][dkms]["subject"] in made[0]


SOURCES = "/etc/apt/sources.list:1"
OURS = "/etc/apt/sources.list.d/sluicegate-contrib.sources:1"
KEY = "/usr/share/keyrings/debian-archive-keyring.gpg"

#: What `apt-get indextargets` says, and of which repositories contrib is to be enabled.
CONTRIB = {
    "one is missing": (
        [f"Debian|main|http://m/debian/|bookworm|{KEY}|{SOURCES}"],
        [f"http://m/debian/|bookworm|{KEY}"],
    ),
    "nothing is missing": (
        [f"Debian|main|http://m/debian/|bookworm||{SOURCES}", f"Debian|contrib|http://m/debian/|bookworm||{SOURCES}"],
        [],
    ),
    "a second run writes the same": (
        [f"Debian|main|http://m/debian/|bookworm||{SOURCES}", f"Debian|contrib|http://m/debian/|bookworm||{OURS}"],
        ["http://m/debian/|bookworm|"],
    ),
    "no key is named": (
        [f"Debian|main|http://m/debian/|bookworm|$(SIGNED_BY)|{SOURCES}"],
        ["http://m/debian/|bookworm|"],
    ),
    "others are left alone": ([f"NVIDIA||https://x/|/||{SOURCES}", f"|main|http://m/debian/|bookworm||{SOURCES}"], []),
}


@pytest.mark.parametrize(("targets", "missing"), CONTRIB.values(), ids=CONTRIB)
def test_contrib_follows_main(role: Role, targets: list[str], missing: list[str]) -> None:
    """The role enables contrib for each suite that has main but not contrib."""
    found = role.ask("__nvidia_driver_without_contrib", platform("debian12"), __nvidia_driver_targets=lines(*targets))
    assert found == missing
