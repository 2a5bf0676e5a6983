"""A deployment on Debian 13, in less time than the whole sequence: checked, built, used, looked at and removed.

The host has no engine of its own, for which PyTorch would have to be downloaded in another build, of gigabytes: its
gateway asks the engine that the tests of the engine share, a real vLLM on this machine. The tests stand in the order
of the deployment's life and run in it.
"""

import json
import re
from collections.abc import Iterator

import pytest

from sluicegate_run.recipe import CPU_TORCH, pins
from tests.deploy import checks, leftovers, snapshot
from tests.deploy.deployment import Deployment, prepared
from tests.deploy.forwarding import forwarded
from tests.deploy.host import Host, booted_host
from tests.deploy.image import DEBIAN_13
from tests.deploy.prometheus import Prometheus
from tests.deploy.visitors import Gateway
from tests.engine.real import START_S, RealEngine
from tests.systemd import units

pytestmark = pytest.mark.deploy

#: The units of a host whose engine is elsewhere.
UNITS = {unit: limit for unit, limit in checks.UNITS.items() if not unit.startswith("vllm@")}

#: Ours and those that we give drop-ins.
ALL_UNITS = (*UNITS, "sluicegate.socket", "nvidia-dcgm.service")


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """The one host of this module."""
    with booted_host(DEBIAN_13) as host:
        yield host


@pytest.fixture(scope="module")
def deployment(host: Host, shared_engine: RealEngine) -> Iterator[Deployment]:
    """A fresh host, and what the operator writes into the inventory: the engine is at an address of another machine."""
    if not shared_engine.runs:
        # It needs a minute, which check mode needs too.
        shared_engine.start()
    with forwarded((host.network.here, 0), ("127.0.0.1", shared_engine.port)) as (address, port):
        more = {"vllm_manage": False, "gateway_engine": f"http://{address}:{port}", "gateway_verify_chat": True}
        with prepared(host, "13-", more) as deployment:
            yield deployment


@pytest.fixture(scope="module")
def built(deployment: Deployment, shared_engine: RealEngine) -> Deployment:
    """The deployment after site.yml; if that fails, so does every test that needs it, at once."""
    shared_engine.engine.wait_ready(START_S)
    run = deployment.play("site", log="2-converge").succeeded()
    assert run.changed
    return deployment


def test_host_is_a_debian_13(host: Host) -> None:
    assert "VERSION_CODENAME=trixie" in host.output("cat", "/etc/os-release")
    assert host.output("systemctl", "--version").startswith("systemd 257 ")
    assert host.output("/usr/bin/python3", "--version").startswith("Python 3.13.")


def test_check_mode_changes_nothing(deployment: Deployment) -> None:
    """Check mode works on a fresh host and leaves it as it is."""
    run = deployment.play("site", "--check", "--diff", log="1-check-fresh").succeeded()
    assert run.changed, "check mode predicts nothing for a host on which everything is to be built"
    assert snapshot.take(deployment.host).changes(deployment.fresh) == []


def test_branch_unknown_for_debian_13_is_refused(deployment: Deployment) -> None:
    """Preflight stops at a branch that NVIDIA does not offer for Debian 13."""
    wanted = {"nvidia_driver_manage": True, "nvidia_driver_branch": "580"}
    run = deployment.play("site", "--extra-vars", json.dumps(wanted), log="0-bad-branch")
    assert run.status != 0
    assert [task.message for task in run.failed] == [
        'nvidia_driver_branch is "580", and must be one of NVIDIA\'s branches from 590 on, three digits such as "595": '
        "set it to one that supports the host's GPUs."
    ]
    assert run.changed == []


def test_converge_and_a_chat_is_answered(built: Deployment, gateway: Gateway) -> None:
    answer = gateway.chat("What is the capital of France?")
    assert "Paris" in answer["choices"][0]["message"]["content"]
    stream = gateway.stream("What is the capital of Italy?", 8)
    assert list(stream.read())[-1] == "[DONE]"


def test_daemon_runs_on_the_python_of_debian_13(built: Deployment) -> None:
    pid = built.host.show("sluicegate.service", "MainPID")["MainPID"]
    assert built.host.output("readlink", f"/proc/{pid}/exe").strip() == "/usr/bin/python3.13"


def test_second_run_changes_nothing(built: Deployment) -> None:
    run = built.play("site", log="3-idempotence").succeeded()
    assert [str(task) for task in run.changed] == []


@pytest.mark.parametrize("unit", ALL_UNITS)
def test_unit_is_active_and_enabled(built: Deployment, unit: str) -> None:
    checks.active_and_enabled(built.host, unit)


@pytest.mark.parametrize(("unit", "limit"), UNITS.items())
def test_unit_is_sandboxed(built: Deployment, unit: str, limit: float) -> None:
    checks.sandboxed(built.host, unit, limit)


def test_systemd_257_reports_nothing_of_the_units(built: Deployment) -> None:
    """Neither a directive that it does not know nor one that it will drop, as they are on the host or as they load."""
    # Manuals are not what a server installs.
    verified = built.host.run("systemd-analyze", "verify", "--man=no", *ALL_UNITS, check=False)
    assert verified.stdout + verified.stderr == ""
    assert verified.returncode == 0
    lines = built.host.output("journalctl", "--no-pager", "--output=json", "--priority=warning", "_PID=1").splitlines()
    said = [json.loads(line)["MESSAGE"] for line in lines]
    assert [line for line in said if any(unit.partition(".")[0] in line for unit in ALL_UNITS)] == []


def test_systemd_257_accepts_the_other_units(host: Host) -> None:
    """vLLM's and Open WebUI's, with everything that they start there as empty programs."""
    place = host.root / "var/tmp/units"
    units.install(place)
    analyze = ("systemd-analyze", f"--root=/{place.relative_to(host.root)}", "--no-pager")
    verified = host.run(*analyze, "verify", "--man=no", *units.names(), check=False)
    assert verified.stdout + verified.stderr == ""
    assert verified.returncode == 0
    services = [name for name in units.names() if name.endswith(".service")]
    assert {"vllm@main.service", "open-webui.service"} < set(services)
    for service in services:
        host.run(*analyze, "security", "--offline=true", "--threshold=30", service)


def test_packages_exist_for_python_3_13(built: Deployment) -> None:
    """What the role vllm would install here without a GPU, as far as a dry run tells."""
    (built.host.root / "var/tmp/pins.txt").write_text(f"{pins()}torch=={CPU_TORCH}\n")
    install = ("/opt/uv/bin/uv", "pip", "install", "--python", "/opt/uv/bin/python", "--no-cache", "--no-deps")
    found = built.host.run(*install, "--dry-run", "--only-binary", ":all:", "--requirement", "/var/tmp/pins.txt")
    assert re.search(r"^ \+ torch==", found.stderr, re.MULTILINE), found.stderr


def test_units_and_listeners_are_as_intended(built: Deployment) -> None:
    """No unit has failed, and the listeners are those intended."""
    checks.no_unit_has_failed(built.host)
    checks.listeners_are_as_intended(built.host)


def test_prometheus_scrapes_and_evaluates(built: Deployment, prometheus: Prometheus) -> None:
    """Debian 13's Prometheus scrapes every target and evaluates every rule."""
    assert prometheus.get("status/buildinfo")["version"].startswith("2.53.")
    checks.all_targets_are_up(prometheus)
    checks.all_rules_are_loaded(prometheus)
    checks.every_rule_is_evaluated(prometheus)


def test_verify(built: Deployment) -> None:
    run = built.play("verify", log="4-verify").succeeded()
    assert [str(task) for task in run.changed] == []


def test_uninstall_with_the_data_leaves_nothing(built: Deployment) -> None:
    built.play("uninstall", "--extra-vars", "uninstall_data=true", log="5-uninstall").succeeded()
    assert leftovers.left(built) == []
