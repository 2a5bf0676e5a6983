"""A throwaway host: Debian 12 or 13, booted with systemd as its PID 1, reached by SSH, on this machine without a VM.

    with booted_host() as host:
        host.run("systemctl", "is-system-running")

It runs in systemd-nspawn, on an overlay over the cached base image and in a network of its own, and leaves nothing
behind, however it ends: what a killed run left is removed by the next. Several hosts may run at a time, also of one
process, and reach each other by their addresses. `python -m tests.deploy` boots one to look around in.
"""

import contextlib
import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.deploy import image, outside
from tests.deploy.eventually import NotYet, eventually
from tests.deploy.network import Network, dismantle, network

#: Programs of this machine, and the Debian package that has each.
TOOLS = {
    "debootstrap": "debootstrap",
    "systemd-nspawn": "systemd-container",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "nft": "nftables",
    "ssh": "openssh-client",
    "curl": "curl",
    "apt-ftparchive": "apt-utils",
    "gpg": "gpg",
}

#: The name of a host, of its network and of its directory: this, the process id of the owner, a dash, and which of the
#: owner's hosts it is. It may have 13 characters, for names of network interfaces may have 15.
PREFIX = "sgd"
_numbers = itertools.count(1)

#: It takes 2 s on two idle cores (seconds).
BOOT_S = 60.0
STOP_S = 20.0

#: Far longer than any command here takes; a playbook has its own (seconds).
COMMAND_S = 120.0

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: The administrator who runs Ansible: not root, as on most hosts.
ADMIN = "admin"


def missing_tools() -> str:
    """What this machine lacks for a host, in one sentence; empty if nothing."""
    if os.geteuid() != 0:
        return "it boots a host and needs root: run it as root"
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    return f"it needs more tools: apt install {' '.join(missing)}" if missing else ""


def require_tools() -> None:
    """Raises AssertionError with what is missing."""
    missing = missing_tools()
    assert not missing, f"The deployment test cannot run, for {missing}, or leave it out: pytest -m 'not deploy'."


@dataclass(frozen=True)
class Host:
    """A running host. `directory` holds its keys and inventory here; `pid` is its PID 1 as seen from here."""

    name: str
    directory: Path
    root: Path
    network: Network
    pid: int

    @property
    def key(self) -> Path:
        """The administrator's private key."""
        return self.directory / "id"

    @property
    def ssh_args(self) -> str:
        """ssh's options: nothing of the user's own configuration has a say."""
        return f"-F none -o UserKnownHostsFile={self.directory / 'known_hosts'} -o StrictHostKeyChecking=yes"

    def run(
        self, *argv: str, check: bool = True, stdin: str = "", timeout: float = COMMAND_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as root on the host; unless `check` is false, a failing one is an AssertionError."""
        result = subprocess.run(
            [
                "nsenter",
                "--target",
                str(self.pid),
                "--all",
                "env",
                "-i",
                f"PATH={PATH}",
                "LANG=C.UTF-8",
                "HOME=/root",
                *argv,
            ],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and result.returncode != 0:
            raise AssertionError(
                f"{shlex.join(argv)} ended with {result.returncode} on {self.name}:\n{result.stdout}{result.stderr}"
            )
        return result

    def output(self, *argv: str, timeout: float = COMMAND_S) -> str:
        """What a program prints there, which must succeed."""
        return self.run(*argv, timeout=timeout).stdout

    def curl(self, *args: str, timeout: float = COMMAND_S) -> str:
        """This machine's curl in the host's network, where the host's loopback address is; fails on an HTTP error."""
        result = subprocess.run(
            [
                "ip",
                "netns",
                "exec",
                self.network.namespace,
                "curl",
                "--silent",
                "--show-error",
                "--fail-with-body",
                *args,
            ],
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if result.returncode != 0:
            raise AssertionError(f"curl {shlex.join(args)}: {result.stderr}{result.stdout}")
        return result.stdout

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit."""
        lines = self.output("systemctl", "show", unit, f"--property={','.join(properties)}").splitlines()
        return dict(line.partition("=")[::2] for line in lines)

    def save_journal(self, path: Path) -> None:
        """Everything that the host has logged, and its failed units: to find the reason of a failure."""
        path.parent.mkdir(parents=True, exist_ok=True)
        failed = self.run("systemctl", "list-units", "--failed", "--no-legend", check=False).stdout
        journal = self.run("journalctl", "--no-pager", "--output=short-precise", check=False).stdout
        path.write_text(f"failed units:\n{failed}\n{journal}")


@contextlib.contextmanager
def booted_host(suite: str = image.DEBIAN_12) -> Iterator[Host]:
    """Boot a host, and remove it at the end."""
    require_tools()
    _sweep()
    name = f"{PREFIX}{os.getpid()}-{next(_numbers)}"
    directory = image.cache() / "hosts" / name
    found = outside.look()
    base = image.base_image(found, suite)
    try:
        with network(name) as net:
            root = _file_system(directory, base)
            _prepare(directory, root, net, found)
            with _running(name, directory, root, net, found) as host:
                yield host
    finally:
        _remove(directory)


def _file_system(directory: Path, base: Path) -> Path:
    """A writable copy of the base image: an overlay, whose upper layer is in `directory`."""
    upper, work, root = (directory / part for part in ("upper", "work", "root"))
    for part in (upper, work, root):
        part.mkdir(parents=True)
    options = f"lowerdir={base},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(root)], check=True)
    return root


def _prepare(directory: Path, root: Path, net: Network, found: outside.Outside) -> None:
    """What makes the copy a host of its own: name, resolver, keys, administrator, and package sources."""
    for name in ("id", "ssh_host_ed25519_key"):
        key = directory / name if name == "id" else root / "etc/ssh" / name
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(key)], check=True)
    host_key = (root / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
    (directory / "known_hosts").write_text(f"{net.host} {host_key}")

    subprocess.run(["chroot", str(root), "useradd", "--create-home", "--shell", "/bin/bash", ADMIN], check=True)
    (root / "etc/sudoers.d" / ADMIN).write_text(f"{ADMIN} ALL=(ALL) NOPASSWD: ALL\n")
    keys = root / "home" / ADMIN / ".ssh"
    keys.mkdir(mode=0o700)
    shutil.copy(directory / "id.pub", keys / "authorized_keys")
    subprocess.run(["chroot", str(root), "chown", "-R", f"{ADMIN}:", f"/home/{ADMIN}/.ssh"], check=True)

    (root / "etc/hostname").write_text("gpu1\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 gpu1\n::1 localhost\n")
    found.write(root)


@contextlib.contextmanager
def _running(name: str, directory: Path, root: Path, net: Network, found: outside.Outside) -> Iterator[Host]:
    binds = [f"--bind-ro={path}" for path in found.binds]
    command = [
        "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", f"--machine={name}", f"--directory={root}",
        f"--network-namespace-path={net.path}", "--capability=CAP_NET_ADMIN", "--resolv-conf=off", "--link-journal=no",
        "--console=pipe", *binds, "--boot",
    ]  # fmt: skip
    with _control_groups(name) as enter, (directory / "console.log").open("wb") as console:
        nspawn = subprocess.Popen([*enter, *command], stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        try:
            yield _up(name, directory, root, net, nspawn)
        finally:
            _stop(nspawn)


def _up(name: str, directory: Path, root: Path, net: Network, nspawn: subprocess.Popen[bytes]) -> Host:
    host = Host(name, directory, root, net, eventually(lambda: _first_process(nspawn, directory), BOOT_S))
    eventually(lambda: _is_up(host), BOOT_S)
    return host


@contextlib.contextmanager
def _control_groups(name: str) -> Iterator[list[str]]:
    """Control groups of the host's own, and the command in front of another that has it run in them.

    Without them two hosts would have the same ones, and systemd finds processes in its units that it cannot name.
    """
    groups = [mount / name for mount in _hierarchies()]
    for group in groups:
        group.mkdir()
    try:
        enter = "".join(f"echo $$ >{group}/cgroup.procs && " for group in groups)
        yield ["sh", "-c", f'{enter}exec "$@"', "sh"]
    finally:
        for group in groups:
            _remove_group(group)


def _hierarchies() -> list[Path]:
    """Where this machine has the hierarchies in which systemd keeps its units: cgroup2, and that of its own name."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(mount[1]) for mount in mounts if mount[2] == "cgroup2" or "name=systemd" in mount[3].split(",")]


def _remove_group(group: Path) -> None:
    """Remove a control group and those below it, which its last process leaves empty."""
    for directory, _, _ in os.walk(group, topdown=False):
        eventually(lambda directory=directory: _removed(Path(directory)), STOP_S)  # type: ignore[misc]


def _removed(group: Path) -> None:
    try:
        group.rmdir()
    except OSError as error:
        raise NotYet(f"{group} is still in use: {error}") from error


def _first_process(nspawn: subprocess.Popen[bytes], directory: Path) -> int:
    """The host's PID 1 as this machine numbers it: the child of nspawn that is the first in its own namespace."""
    if nspawn.poll() is not None:
        raise RuntimeError(f"systemd-nspawn ended at once: {(directory / 'console.log').read_text()}")
    for child in Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children").read_text().split():
        if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
            return int(child)
    raise NotYet("systemd-nspawn has not started the host's systemd")


def _is_up(host: Host) -> None:
    state = host.run("systemctl", "is-system-running", check=False).stdout.strip()
    assert state == "running", f"the host is {state}: {host.run('systemctl', '--failed', check=False).stdout}"
    subprocess.run(ssh_command(host, "true"), check=True, capture_output=True, timeout=COMMAND_S)


def ssh_command(host: Host, *argv: str) -> list[str]:
    """The command that runs `argv` on the host over SSH, as the administrator; a shell without any."""
    return ["ssh", *shlex.split(host.ssh_args), "-i", str(host.key), f"{ADMIN}@{host.network.host}", *argv]


def enter_command(host: Host) -> list[str]:
    """The command that gives root a shell on the host, without SSH."""
    return ["nsenter", "--target", str(host.pid), "--all", "bash", "-l"]


def _stop(nspawn: subprocess.Popen[bytes]) -> None:
    """End the host in its own way, and without asking if that takes too long."""
    if nspawn.poll() is None:
        # nspawn passes it on as an order to power off.
        nspawn.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            nspawn.wait(STOP_S)
    if nspawn.poll() is None:
        # The host's processes end with its PID 1, which the kernel kills with nspawn.
        nspawn.kill()
    nspawn.wait(STOP_S)


def _remove(directory: Path) -> None:
    root = directory / "root"
    if root.is_mount():
        subprocess.run(["umount", str(root)], check=True)
    shutil.rmtree(directory, ignore_errors=True)


def _sweep() -> None:
    """Remove what runs that were killed have left: a host belongs to the process in its name."""
    for directory in (image.cache() / "hosts").glob(f"{PREFIX}*"):
        owner = directory.name.removeprefix(PREFIX).partition("-")[0]
        if not Path(f"/proc/{owner}").exists():
            for process in _processes_of(directory.name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            eventually(lambda name=directory.name: _assert_gone(name), STOP_S)  # type: ignore[misc]
            for mount in _hierarchies():
                _remove_group(mount / directory.name)
            dismantle(directory.name)
            _remove(directory)


def _processes_of(name: str) -> list[int]:
    """systemd-nspawn of that host; its death is the host's."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"systemd-nspawn") and f"--machine={name}".encode() in words:
                found.append(int(process.name))
    return found


def _assert_gone(name: str) -> None:
    assert not _processes_of(name), f"the host {name} of a killed run does not end: end it by hand and run it again"


def inventory(host: Host, variables: dict[str, object]) -> str:
    """An inventory of this one host, in YAML (which JSON is)."""
    connection = {
        "ansible_host": host.network.host,
        "ansible_user": ADMIN,
        "ansible_ssh_private_key_file": str(host.key),
        "ansible_ssh_common_args": host.ssh_args,
    }
    return json.dumps({"gpu_hosts": {"hosts": {"gpu1": {**connection, **variables}}}}, indent=2)
