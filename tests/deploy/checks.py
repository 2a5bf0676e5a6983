"""What every built host must look like, whichever Debian it runs."""

import re

from tests.deploy.eventually import eventually
from tests.deploy.host import Host
from tests.deploy.playbooks import REPOSITORY
from tests.deploy.prometheus import Prometheus

#: Unit → the highest exposure that `systemd-analyze security` may give it.
UNITS = {
    "sluicegate.service": 1.5,
    "vllm@main.service": 3.0,
    "prometheus.service": 3.0,
    "prometheus-node-exporter.service": 3.0,
    "nvidia-dcgm-exporter.service": 3.0,
    "grafana-server.service": 3.0,
}

#: Everything that may listen on TCP, and where.
LISTENERS = {
    "0.0.0.0:22": "sshd",
    "[::]:22": "sshd",
    "0.0.0.0:8080": "sluicegate",
    "127.0.0.1:9090": "prometheus",
    "127.0.0.1:9091": "grafana",
    "127.0.0.1:9100": "prometheus-node",
    "127.0.0.1:9400": "dcgm-exporter",
    "127.0.0.1:5555": "nv-hostengine",
}

#: Scrapes come every 5 s, evaluations of rules every 15 s (seconds).
SCRAPES_S = 60.0


def active_and_enabled(host: Host, unit: str) -> None:
    """The unit runs, will run after a boot, and was not started again."""
    shown = host.show(unit, "ActiveState", "UnitFileState", "NRestarts")
    assert shown["ActiveState"] == "active"
    assert shown["UnitFileState"] == "enabled"
    assert shown.get("NRestarts", "0") == "0"


def no_unit_has_failed(host: Host) -> None:
    """Not one of the whole host."""
    assert host.output("systemctl", "list-units", "--failed", "--no-legend") == ""


def sandboxed(host: Host, unit: str, limit: float) -> None:
    """The unit's exposure, as the host's own systemd-analyze counts it."""
    text = host.output("systemd-analyze", "security", "--no-pager", unit)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", text)
    assert found, text
    assert float(found[1]) <= limit, text


def listeners_are_as_intended(host: Host) -> None:
    """Nothing but LISTENERS on TCP, and nothing on UDP."""
    lines = host.output("ss", "--listening", "--tcp", "--processes", "--numeric", "--no-header").splitlines()
    found = {}
    for line in lines:
        columns = line.split()
        # systemd holds the socket first; the last holder is the process that answers.
        names = re.findall(r'"([^"]+)"', columns[5])
        found[columns[3]] = next((name for name in names if name != "systemd"), names[0])
    # vLLM's worker, on ports that the kernel chooses: how PyTorch's processes find each other.
    workers = {address for address, name in found.items() if name.startswith("VLLM::")}
    assert {address.rpartition(":")[0] for address in workers} <= {"127.0.0.1"}
    assert {address: name for address, name in found.items() if address not in workers} == LISTENERS
    assert host.output("ss", "--listening", "--udp", "--no-header") == ""


def all_targets_are_up(prometheus: Prometheus) -> None:
    """Each job is scraped without an error, or will be with its next scrapes."""
    expected = dict.fromkeys(("sluicegate", "vllm", "dcgm", "node", "prometheus", "grafana"), "up")

    def all_up() -> None:
        assert prometheus.targets() == expected

    eventually(all_up, SCRAPES_S)


def all_rules_are_loaded(prometheus: Prometheus) -> None:
    """The live Prometheus has every rule of the repository, and no other."""
    files = (REPOSITORY / "prometheus" / "rules").glob("*.yml")
    named = {name for path in files for name in re.findall(r"(?:record|alert): (\S+)", path.read_text())}
    assert named
    assert {rule["name"] for rule in prometheus.rules()} == named


def every_rule_is_evaluated(prometheus: Prometheus) -> None:
    """No rule has an error, and none waits for its first evaluation."""

    def evaluated() -> None:
        rules = prometheus.rules()
        assert rules
        assert [f"{rule['name']}: {rule['lastError']}" for rule in rules if rule["health"] != "ok"] == []

    eventually(evaluated, SCRAPES_S)
