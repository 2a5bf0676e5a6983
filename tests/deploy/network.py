"""A network of its own for a host: a namespace, a pair of virtual cables, and a way out by address translation.

The host's ports are its own: nothing on this machine is in their way, and what the host opens to "outside" is seen from
this machine as a client would see it.
"""

import contextlib
import fcntl
import ipaddress
import json
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Addresses for point-to-point networks of test hosts (RFC 2544 keeps this range for tests of network devices, so no
#: real network uses it): one /30 per host.
RANGE = ipaddress.ip_network("198.18.64.0/18")

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
#: What it was before the first of the hosts that run now; the last one puts it back, also for one that was killed.
FORWARDING_BEFORE = Path("/run/sluicegate-deploy-ip-forward")
#: Held while a network is made or taken away.
LOCK = Path("/run/sluicegate-deploy-network.lock")


@dataclass(frozen=True)
class Network:
    """One host's network. `host` is its address, `here` this machine's end of the cable."""

    namespace: str
    here: str
    host: str

    @property
    def path(self) -> str:
        """What systemd-nspawn is told."""
        return f"/run/netns/{self.namespace}"


def _run(*argv: str, check: bool = True, given: str = "") -> str:
    result = subprocess.run(argv, capture_output=True, text=True, input=given)
    assert result.returncode == 0 or not check, f"{shlex.join(argv)} failed: {result.stderr.strip()}"
    return result.stdout


def _free_network() -> ipaddress.IPv4Network:
    used = {address["local"] for link in json.loads(_run("ip", "-json", "-4", "addr")) for address in link["addr_info"]}
    for network in RANGE.subnets(new_prefix=30):
        if str(network[1]) not in used:
            assert isinstance(network, ipaddress.IPv4Network)
            return network
    raise AssertionError(f"every network of {RANGE} is in use: remove old interfaces (ip addr) and run it again")


def _way_out() -> tuple[str, int]:
    """The interface of the default route and its MTU: a larger one on the cable would lose packets behind it."""
    routes = json.loads(_run("ip", "-json", "-4", "route", "show", "default"))
    assert routes, "this machine has no default route (ip route), and the host needs the package registries"
    device = str(routes[0]["dev"])
    return device, int(json.loads(_run("ip", "-json", "link", "show", device))[0]["mtu"])


@contextlib.contextmanager
def network(name: str) -> Iterator[Network]:
    """Make the network `name` (at most 13 characters) and take it away again."""
    try:
        with _one_at_a_time():
            made = _make(name)
        yield made
    finally:
        with _one_at_a_time():
            dismantle(name)
            if FORWARDING_BEFORE.exists() and not _others():
                FORWARDING.write_text(FORWARDING_BEFORE.read_text())
                FORWARDING_BEFORE.unlink()


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Hosts may start and end at the same moment, and two of them must not take the same addresses."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(name: str) -> Network:
    inner, outer = f"{name}-i", f"{name}-o"
    addresses = _free_network()
    here, host = str(addresses[1]), str(addresses[2])
    device, mtu = _way_out()
    if not FORWARDING_BEFORE.exists():
        FORWARDING_BEFORE.write_text(FORWARDING.read_text())
    _run("ip", "netns", "add", name)
    _run("ip", "link", "add", outer, "mtu", str(mtu), "type", "veth", "peer", "name", inner, "mtu", str(mtu))
    _run("ip", "link", "set", inner, "netns", name, "name", "eth0")
    _run("ip", "addr", "add", f"{here}/30", "dev", outer)
    _run("ip", "link", "set", outer, "up")
    for command in (
        ("addr", "add", f"{host}/30", "dev", "eth0"),
        ("link", "set", "eth0", "up"),
        ("link", "set", "lo", "up"),
        ("route", "add", "default", "via", here),
    ):
        _run("ip", "-n", name, *command)
    hook = "{ type nat hook postrouting priority 100 ; }"
    rule = f'ip saddr {addresses} oifname "{device}" masquerade'
    orders = f"add table ip {name}\nadd chain ip {name} out {hook}\nadd rule ip {name} out {rule}\n"
    _run("nft", "-f", "-", given=orders)
    FORWARDING.write_text("1")
    return Network(name, here, host)


def dismantle(name: str) -> None:
    """Take away whatever there is of the network `name`."""
    _run("nft", "delete", "table", "ip", name, check=False)
    _run("ip", "link", "delete", f"{name}-o", check=False)
    _run("ip", "netns", "delete", name, check=False)


def _others() -> bool:
    """Whether another host's network still needs the forwarding."""
    return any(line.startswith("sgd") for line in _run("ip", "netns", "list").splitlines())
