"""DCGM and its exporter on a host of their own, and the reset of a GPU: what is known of the real ones, and what the
role and the playbook make of it.

The tests on the booted host stand in their order, and each finds the host as the one before left it.
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ansible.plays import play
from tests.deploy import packages, playbooks, snapshot
from tests.deploy.eventually import eventually
from tests.deploy.host import Host, booted_host
from tests.deploy.packages import Package
from tests.systemd import units

VENDOR = Path(__file__).parent / "vendor"
ROLE = playbooks.ANSIBLE / "roles/dcgm_exporter"
DROPIN = units.SYSTEMD / "dropins/nvidia-dcgm-exporter.service.d/10-sluicegate.conf"
COUNTERS = playbooks.REPOSITORY / "prometheus/dcgm/sluicegate-counters.csv"

ENGINE, EXPORTER = "nvidia-dcgm.service", "nvidia-dcgm-exporter.service"
URL = "http://127.0.0.1:9400/metrics"
#: A unit is tried again after 5 s, or after 0.1 s where a test asks for it (seconds).
SOON_S = 40.0
#: More starts than any limit of systemd's or of the drop-in's before allowed.
MANY = 7

#: What the role takes from a host's facts, out of the variables that _platform gives.
FACTS_OF_A_HOST = {
    "distribution": "{{ distribution_name }}",
    "distribution_version": "{{ version }}",
    "distribution_major_version": "{{ version.split('.')[0] }}",
    "architecture": "x86_64",
}

Facts = dict[str, Any]


def facts(name: str) -> Facts:
    """What is known of the real ones."""
    found: Facts = yaml.safe_load((VENDOR / name).read_text())
    return found


PACKAGES, EXPORTER_FACTS = facts("dcgm_packages.yml"), facts("dcgm_exporter.yml")
NAMED = [name for name in PACKAGES["packages"] if name.startswith("datacenter-")]


def relations(text: str) -> list[str]:
    """The names in a Depends line."""
    return [part.split()[0] for part in text.split(",") if part.strip()]


def standin(name: str) -> Package:
    (found,) = (package for package in packages.dcgm_packages() if package.name == name)
    return found


# What stands here needs no host.


@pytest.mark.parametrize("name", NAMED)
def test_stand_in_has_the_real_relations(name: str) -> None:
    """A stand-in has the dependencies and conflicts of the real package."""
    known, package = PACKAGES["packages"][name], standin(name)
    assert package.fields["Maintainer"] == PACKAGES["packages"]["maintainer"]
    assert package.version.startswith(f"{PACKAGES['packages']['epoch']}:")
    assert relations(package.fields.get("Recommends", "")) == known.get("recommends", [])
    assert relations(package.fields.get("Conflicts", "")) == known.get("conflicts", [])
    assert relations(package.fields.get("Pre-Depends", "")) == known.get("pre_depends", [])
    # The stand-ins' programs are written in Python.
    assert set(relations(package.depends)) - {"python3"} == {*known.get("depends", [])} | {
        *filter(None, [known.get("same")])
    }
    if "same" in known:
        assert f"{known['same']} (= {package.version})" in package.depends
    if "provides" in known:
        assert relations(package.fields["Provides"]) == [known["provides"]]


def test_profiling_module_is_proprietary() -> None:
    """The profiling module is in the proprietary package alone."""
    module = PACKAGES["proprietary"]["module"]
    having = [p.name for p in packages.dcgm_packages() if any(path.endswith(module) for path in p.files)]
    assert having == PACKAGES["proprietary"]["packages"][:1]


def test_packages_do_not_start_the_service() -> None:
    """Neither a stand-in nor the real package starts its service."""
    scripts = PACKAGES["scripts"]
    assert not any(scripts[what] for what in ("starts_its_service", "enables_its_service", "stops_its_service"))
    for package in packages.dcgm_packages():
        assert set(package.scripts) <= {"postinst"}
        assert "systemctl" not in "".join(package.scripts.values())
    postinst = standin(NAMED[0]).scripts["postinst"]
    assert scripts["account"] in postinst
    assert scripts["directory"] in postinst


@pytest.mark.parametrize("known", [PACKAGES["unit"], EXPORTER_FACTS["unit"]], ids=lambda known: known["name"])
def test_a_stand_ins_unit_says_what_the_real_one_says(known: Facts) -> None:
    paths = [packages.HERE / known["name"], *units.VENDOR.glob(known["name"])]
    for path in paths:
        said = {(line.section, line.key, line.value) for line in units.lines(path) if line.key != "Description"}
        assert said == {*map(tuple, known["values"])}


def test_the_role_names_packages_that_there_are() -> None:
    text = (ROLE / "tasks/install.yml").read_text()
    named = set(re.findall(r"- (datacenter-gpu-manager-\S+(?: \S+ \}\})?)", text))
    wanted = {name.replace("{{ dcgm_exporter_cuda_major }}", major) for name in named for major in ("12", "13")}
    there = {*NAMED, *PACKAGES["proprietary"]["packages"], PACKAGES["exporter"]["package"]}
    assert wanted <= there
    assert PACKAGES["proprietary"]["packages"][0] in wanted


def test_the_drop_in_gives_flags_that_there_are() -> None:
    (command,) = [line.value for line in units.lines(DROPIN) if line.key == "ExecStart" and line.value]
    program, *words = command.split()
    assert any(key == "ExecStart" and value.split()[0] == program for _, key, value in EXPORTER_FACTS["unit"]["values"])
    flags = dict(zip(words[::2], words[1::2], strict=True))
    assert set(flags) <= set(EXPORTER_FACTS["flags"]["values"])
    assert flags["-r"].rpartition(":")[2] == str(PACKAGES["host_engine"]["port"])
    # Its own, loopback alone, and our list.
    assert flags["-a"] == "127.0.0.1:9400"
    assert flags["-f"] == "/etc/dcgm-exporter/sluicegate-counters.csv"


def test_drop_in_retries_without_limit() -> None:
    """The real one exits with 1 while the host engine does not listen, and NVIDIA's unit tries that once."""
    assert EXPORTER_FACTS["behaviour"]["host_engine_does_not_listen"] == "exits with 1"
    found = {line.key: line.value for line in units.lines(DROPIN)}
    assert (found["Restart"], found["StartLimitIntervalSec"]) == ("on-failure", "0")
    assert found["PartOf"] == found["After"] == found["Wants"] == PACKAGES["unit"]["name"]


def test_counters_are_in_the_exporters_form() -> None:
    """The exporter can read the file of counters: three fields a row, with a known type."""
    lines = [line for line in COUNTERS.read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert lines
    for row in csv.reader(lines):
        assert len(row) == 3, row
        assert row[1].strip() in ("gauge", "counter", "label"), row


def test_repository_and_key_of_the_distribution(tmp_path: Path) -> None:
    """Each distribution gets its own repository and key."""
    known = PACKAGES["repositories"]
    keys = {name: key for name, key in known["keys"].items() if name != "source"}
    hosts = {name: _platform(name) for name in keys}
    asked = ["dcgm_exporter_repository_url", "dcgm_exporter_repository_key_url", "__dcgm_exporter_offered"]
    asking = {
        "hosts": "all",
        "gather_facts": False,
        "vars_files": [str(ROLE / "defaults/main.yml"), str(ROLE / "vars/main.yml")],
        "tasks": [
            {"ansible.builtin.set_fact": FACTS_OF_A_HOST | {"cacheable": True}},
            {"ansible.builtin.debug": {"msg": "{{ [inventory_hostname, " + ", ".join(asked) + "] }}"}},
        ],
    }
    played = play(tmp_path, [asking], hosts)
    assert played.status == 0, played.output
    results = [r for e in played.events for r in e.get("hosts", {}).values() if "msg" in r]
    answers = {name: rest for name, *rest in (result["msg"] for result in results)}
    assert answers.keys() == keys.keys()
    base = "https://developer.download.nvidia.com/compute/cuda/repos"
    for name, (url, key_url, offered) in answers.items():
        assert url == f"{base}/{name}/x86_64/"
        assert key_url.rpartition("/")[2] == keys[name]
        assert offered == (name in known["with_dcgm"])


def _platform(name: str) -> dict[str, str]:
    distribution, digits = re.match(r"([a-z]+)(\d+)$", name).groups()  # type: ignore[union-attr]
    version = f"{digits[:2]}.{digits[2:] or '1'}"
    return {"distribution_name": distribution.capitalize(), "version": version}


# The rest is a booted host.


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """The one host of this module."""
    with booted_host() as host:
        yield host


@dataclass(frozen=True)
class Playing:
    """The role alone, and the repository that it takes the stand-ins from."""

    host: Host
    repository: str
    fresh: snapshot.Snapshot
    variables: dict[str, object]

    def role(self, *args: str, log: str, tasks: str = "main") -> playbooks.Run:
        """Run the role's tasks on the host; check mode and the like by `args`."""
        return playbooks.play_role(
            self.host, "dcgm_exporter", tasks, args=args, variables=self.variables, log=f"dcgm-{log}"
        )

    def reset(self, *args: str, log: str) -> playbooks.Run:
        """Run the playbook that resets GPUs."""
        return playbooks.play(self.host, "gpu_reset", *args, variables=self.variables, log=f"gpu-reset-{log}")


@pytest.fixture(scope="module")
def playing(host: Host) -> Iterator[Playing]:
    """A fresh host, and the repository."""
    with packages.repositories(host.directory / "repositories", host.network.here) as repositories:
        variables: dict[str, object] = {
            "sluicegate_files": str(playbooks.REPOSITORY),
            "dcgm_exporter_manage": True,
            "dcgm_exporter_repository_url": repositories.nvidia,
            "dcgm_exporter_repository_key": repositories.key,
        }
        yield Playing(host, repositories.nvidia, snapshot.take(host), variables)


def _serves(host: Host) -> str:
    text = host.curl(URL)
    assert "DCGM_FI_DEV_GPU_UTIL{" in text
    return text


def _state(host: Host, unit: str) -> str:
    return host.show(unit, "ActiveState")["ActiveState"]


def _pid(host: Host, unit: str) -> str:
    return host.show(unit, "MainPID")["MainPID"]


@pytest.mark.deploy
def test_dcgm_3_gives_way(playing: Playing) -> None:
    """Its host engine still runs when its package has gone, and would be taken for the new one."""
    host = playing.host
    host.run("sh", "-c", f"echo 'deb [trusted=yes] {playing.repository}/ /' >/etc/apt/sources.list.d/before.list")
    host.run("apt-get", "update")
    host.run("apt-get", "install", "--yes", "datacenter-gpu-manager")
    named_twice = playing.role(log="0-named-twice")
    assert [task.message for task in named_twice.failed] == [
        f"/etc/apt/sources.list.d/before.list on gpu1 names {playing.repository} already, and apt refuses one "
        "repository with two keys: remove it (`apt-get purge cuda-keyring` if that package brought it)."
    ]
    host.run("rm", "/etc/apt/sources.list.d/before.list")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "enable", "--now", ENGINE)
    before = _pid(host, ENGINE)
    playing.role(log="1-converge").succeeded()
    shown = host.run("dpkg-query", "--show", "--showformat=${db:Status-Status}", "datacenter-gpu-manager", check=False)
    assert shown.stdout != "installed"
    assert _pid(host, ENGINE) != before
    text = eventually(lambda: _serves(host), SOON_S)
    assert "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{" in text


@pytest.mark.deploy
def test_profiling_fields_come_to_an_old_host(playing: Playing) -> None:
    """As where it was installed with --no-install-recommends: apt adds nothing to packages that are there."""
    host = playing.host
    host.run("apt-get", "purge", "--yes", "datacenter-gpu-manager-4-proprietary*")
    host.run("systemctl", "restart", EXPORTER)
    assert "DCGM_FI_PROF_" not in eventually(lambda: _serves(host), SOON_S)
    playing.role(log="2-profiling").succeeded()
    assert "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{" in eventually(lambda: _serves(host), SOON_S)
    assert _state(host, ENGINE) == "active"


@pytest.mark.deploy
def test_a_second_run_changes_nothing(playing: Playing) -> None:
    assert playing.role(log="3-again").succeeded().changed == []
    assert playing.role("--check", log="4-check").succeeded().changed == []
    playing.role(log="5-verify", tasks="verify").succeeded()


@pytest.mark.deploy
def test_the_exporter_waits_for_the_host_engine(playing: Playing) -> None:
    """Tried at a faster pace than on a real host, and far more often than five times."""
    host = playing.host
    host.run("systemctl", "stop", EXPORTER, ENGINE)
    host.run("mkdir", "--parents", f"/run/systemd/system/{EXPORTER}.d")
    quick = f"printf '[Service]\\nRestartSec=100ms\\n' >/run/systemd/system/{EXPORTER}.d/90-quick.conf"
    host.run("sh", "-c", f"{quick} && systemctl daemon-reload && touch /run/nv-hostengine.hold")
    host.run("systemctl", "start", EXPORTER)

    def tried() -> None:
        shown = host.show(EXPORTER, "NRestarts", "ActiveState", "Result")
        assert int(shown["NRestarts"]) >= MANY, shown

    eventually(tried, SOON_S)
    host.run("rm", "/run/nv-hostengine.hold")
    eventually(lambda: _serves(host), SOON_S)


@pytest.mark.deploy
def test_exporter_survives_a_crash_of_the_engine(playing: Playing) -> None:
    """The exporter comes back after a crash of the host engine."""
    host = playing.host
    before = {unit: _pid(host, unit) for unit in (ENGINE, EXPORTER)}
    host.run("kill", "-s", "ABRT", before[ENGINE])

    def back() -> None:
        assert all(_pid(host, unit) not in ("0", pid) for unit, pid in before.items())
        _serves(host)

    eventually(back, SOON_S)
    assert _state(host, ENGINE) == "active"


@pytest.mark.deploy
def test_who_stops_the_host_engine_has_it_stopped(playing: Playing) -> None:
    """An exporter that went on would end, be tried again, and start the host engine that it wants."""
    host = playing.host
    host.run("systemctl", "stop", ENGINE)
    assert [_state(host, unit) for unit in (ENGINE, EXPORTER)] == ["inactive", "inactive"]
    host.run("rm", "-r", f"/run/systemd/system/{EXPORTER}.d")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", ENGINE, EXPORTER)
    eventually(lambda: _serves(host), SOON_S)


@pytest.mark.deploy
def test_xids_are_counted_by_their_number(playing: Playing) -> None:
    """What the rules lean on; here by hand, for the list of counters is theirs."""
    known, host = EXPORTER_FACTS["xid_count"], playing.host
    host.run("sh", "-c", f"echo '{known['name']}, gauge, XIDs.' >/run/xid.csv")
    host.run("systemd-run", "--unit=xid", "dcgm-exporter", "-f", "/run/xid.csv", "-a", "127.0.0.1:9401")
    text = eventually(lambda: host.curl("http://127.0.0.1:9401/metrics"), SOON_S)
    host.run("systemctl", "stop", "xid")
    samples = re.findall(rf"^{known['name']}{{(.*)}} (\d+)$", text, re.MULTILINE)
    labels = [dict(re.findall(r'(\w+)="([^"]*)"', sample)) for sample, _ in samples]
    assert [int(value) > 0 for _, value in samples] == [False, True]
    assert "xid" not in labels[0]
    assert all(label in labels[1] for label in known["labels"])
    assert labels[1]["window_size_in_ms"] == str(known["window_ms"])


#: What a test of a reset has on the host beside DCGM: unit → the GPUs' devices that it holds.
HOLDERS = {
    "nvidia-persistenced.service": (0, 1, 2),
    "sluicegate.service": (0, 1, 2),
    "vllm@main.service": (0,),
    "vllm@other.service": (2,),
}
IN_ORDER = [
    "sluicegate.socket",
    "sluicegate.service",
    "vllm@main.service",
    EXPORTER,
    ENGINE,
    "nvidia-persistenced.service",
]
SMI = "/usr/bin/nvidia-smi"
#: systemd's messages that a unit has started, and that it has stopped (systemd/sd-messages.h).
STARTED, STOPPED = "39f53479d3a045ac8e11786248231fbf", "9d1aaa27d60140bd96365438aad20286"


@pytest.fixture(scope="module")
def gpus(playing: Playing) -> Playing:
    """Three GPUs, of which the second has the third's device number, and everything that holds them."""
    host = playing.host
    if not host.run("systemctl", "list-unit-files", "--no-legend", EXPORTER, check=False).stdout:
        playing.role(log="6-converge").succeeded()
    smi = host.root / SMI.removeprefix("/")
    smi.write_text((packages.HERE / "nvidia_smi_reset.py").read_text())
    smi.chmod(0o755)
    host.run("sh", "-c", "touch /dev/nvidia0 /dev/nvidia1 /dev/nvidia2 && chmod 666 /dev/nvidia?")
    etc = host.root / "etc/systemd/system"
    for unit, devices in HOLDERS.items():
        opened = " ".join(f"{3 + device}</dev/nvidia{device}" for device in devices)
        text = f"[Service]\nExecStart=/bin/sh -c 'exec {opened}; exec sleep infinity'\n"
        (etc / unit).write_text(text + ("[Unit]\nRequires=sluicegate.socket\n" if "sluicegate" in unit else ""))
    (etc / "sluicegate.socket").write_text("[Socket]\nListenStream=127.0.0.1:8080\n")
    # An engine that the fault has stopped: it needs a GPU that was reset, and has reached its limit of starts.
    (etc / "vllm@fallen.service").write_text(
        "[Unit]\nStartLimitIntervalSec=1h\nStartLimitBurst=1\n[Service]\n"
        "ExecStartPre=test -e /run/nvidia-smi.resets\nExecStart=sleep infinity\n"
    )
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", "sluicegate.socket", *HOLDERS)
    host.run("systemctl", "restart", ENGINE, EXPORTER)
    eventually(lambda: _serves(host), SOON_S)
    for unit, devices in HOLDERS.items():
        eventually(lambda unit=unit, device=devices[-1]: _holds(host, unit, f"/dev/nvidia{device}"), SOON_S)  # type: ignore[misc]
    assert host.run("systemctl", "start", "vllm@fallen.service", check=False).returncode != 0
    return playing


def _pids(host: Host) -> dict[str, str]:
    return {unit: _pid(host, unit) for unit in (*HOLDERS, ENGINE, EXPORTER)}


def _holds(host: Host, unit: str, device: str) -> None:
    listed = host.run("find", f"/proc/{_pid(host, unit)}/fd", "-lname", device, check=False)
    assert listed.stdout, f"{unit} does not hold {device}"


def _resets(host: Host) -> list[str]:
    return host.run("cat", "/run/nvidia-smi.resets", check=False).stdout.splitlines()


@pytest.mark.deploy
def test_the_driver_refuses_while_anybody_holds_the_gpu(gpus: Playing) -> None:
    refused = gpus.host.run(SMI, "--gpu-reset", "--id=0", check=False)
    assert (refused.returncode, "In use by another client" in refused.stdout) == (255, True)


@pytest.mark.deploy
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "must be an index"),
        (("-e", "gpu=7"), "name one of these by its index or its UUID"),
        (("-e", "gpu=0;reboot"), "must be an index"),
    ],
    ids=["none", "unknown", "nonsense"],
)
def test_a_gpu_that_is_not_there_stops_nothing(gpus: Playing, given: tuple[str, ...], said: str) -> None:
    before = _pids(gpus.host)
    run = gpus.reset(*given, log="wrong")
    assert said in run.failed[0].message
    assert run.changed == []
    assert _pids(gpus.host) == before


@pytest.mark.deploy
def test_somebody_else_who_holds_the_gpu_is_named(gpus: Playing) -> None:
    host, before = gpus.host, _pids(gpus.host)
    host.run("systemd-run", "--unit=desktop", "sh", "-c", "exec 3</dev/nvidia0; exec sleep infinity")
    eventually(lambda: _holds(host, "desktop.service", "/dev/nvidia0"), SOON_S)
    run = gpus.reset("-e", "gpu=0", log="stranger")
    assert "desktop.service" in run.failed[0].message
    assert "vllm" not in run.failed[0].message
    assert _pids(host) == before
    host.run("systemctl", "stop", "desktop")


@pytest.mark.deploy
def test_a_check_stops_nothing_and_says_what_it_would(gpus: Playing) -> None:
    before = _pids(gpus.host)
    run = gpus.reset("-e", "gpu=0", "--check", log="check").succeeded()
    (said,) = [task.message for task in run.tasks if task.name == "Report the units to stop"]
    assert re.search(", ".join(map(re.escape, IN_ORDER)), said), said
    assert _pids(gpus.host) == before
    assert _resets(gpus.host) == []


@pytest.mark.deploy
def test_a_gpu_is_reset(gpus: Playing) -> None:
    host, before = gpus.host, _pids(gpus.host)
    gpus.reset("-e", "gpu=0", log="done").succeeded()
    (reset,) = _resets(host)
    at, uuid = reset.split()
    assert uuid == "GPU-aaaaaaaa-0000"
    stopped = [_moment(host, unit, STOPPED) for unit in IN_ORDER]
    started = [_moment(host, unit, STARTED) for unit in IN_ORDER[::-1] if unit != "sluicegate.socket"]
    # One after the other; the socket waits for the gateway to end.
    assert stopped[1:] == sorted(stopped[1:])
    assert max(stopped) < float(at) < min(started)
    assert started == sorted(started)
    # An engine on another GPU keeps running; one that had failed runs again.
    after = _pids(host)
    assert {unit for unit in after if after[unit] == before[unit]} == {"vllm@other.service"}
    assert {_state(host, unit) for unit in (*IN_ORDER, "vllm@other.service", "vllm@fallen.service")} == {"active"}


def _moment(host: Host, unit: str, message: str) -> float:
    """When systemd last said this of a unit, in seconds since boot."""
    line = host.output("journalctl", "--output=json", "--lines=1", f"UNIT={unit}", f"MESSAGE_ID={message}")
    return int(json.loads(line)["__MONOTONIC_TIMESTAMP"]) / 1e6


@pytest.mark.deploy
def test_failed_reset_starts_everything_again(gpus: Playing) -> None:
    """After a reset that failed, the services that were stopped run again."""
    host, before = gpus.host, _pids(gpus.host)
    host.run("touch", "/run/nvidia-smi.broken")
    run = gpus.reset("-e", "gpu=GPU-bbbbbbbb-1111", log="broken")
    assert "did not reset" in run.failed[0].message
    assert "Unknown Error" in run.failed[0].message
    after = _pids(host)
    # This time it is the other engine's GPU, by its UUID and not by the number of its device.
    assert {unit for unit in after if after[unit] == before[unit]} == {"vllm@main.service"}
    assert {_state(host, unit) for unit in (*IN_ORDER, "vllm@other.service")} == {"active"}
    assert len(_resets(host)) == 1


@pytest.mark.deploy
def test_an_uninstall_leaves_nothing_of_dcgm(playing: Playing) -> None:
    host = playing.host
    playing.role(log="7-uninstall", tasks="uninstall").succeeded()
    after = snapshot.take(host)
    left = [line for line in after.changes(playing.fresh) if re.search("dcgm|datacenter-gpu|nvidia-cuda", line)]
    assert left == []
    assert not (host.root / "var/log/nvidia-dcgm").exists()
