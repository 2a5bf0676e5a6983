"""DCGM and its exporter on a host of their own, and the reset of a GPU: what the real ones are known to do, and what the
role and the playbook make of it.

The tests on the booted host stand in the order in which they need it, and each finds the host as the one before left it.
"""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

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
def test_a_stand_in_has_the_relations_of_the_real_package(name: str) -> None:
    known, package = PACKAGES["packages"][name], standin(name)
    assert package.fields["Maintainer"] == PACKAGES["packages"]["maintainer"]
    assert package.version.startswith(f"{PACKAGES['packages']['epoch']}:")
    assert relations(package.fields.get("Recommends", "")) == known.get("recommends", [])
    assert relations(package.fields.get("Conflicts", "")) == known.get("conflicts", [])
    assert relations(package.fields.get("Pre-Depends", "")) == known.get("pre_depends", [])
    # The stand-ins' programs are written in Python.
    assert set(relations(package.depends)) - {"python3"} == {*known.get("depends", [])} | {*filter(None, [known.get("same")])}
    if "same" in known:
        assert f"{known['same']} (= {package.version})" in package.depends
    if "provides" in known:
        assert relations(package.fields["Provides"]) == [known["provides"]]


def test_the_profiling_module_is_in_the_proprietary_package_alone() -> None:
    module = PACKAGES["proprietary"]["module"]
    having = [p.name for p in packages.dcgm_packages() if any(path.endswith(module) for path in p.files)]
    assert having == PACKAGES["proprietary"]["packages"][:1]


def test_a_stand_in_starts_no_service_as_the_real_package_does() -> None:
    scripts = PACKAGES["scripts"]
    assert not (scripts["starts_its_service"] or scripts["enables_its_service"] or scripts["stops_its_service"])
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
        assert {(line.section, line.key, line.value) for line in units.lines(path)} == {*map(tuple, known["values"])}


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
    assert program == dict((key, value) for _, key, value in EXPORTER_FACTS["unit"]["values"])["ExecStart"].split()[0]
    flags = dict(zip(words[::2], words[1::2], strict=True))
    assert set(flags) <= set(EXPORTER_FACTS["flags"]["values"])
    assert flags["-r"].rpartition(":")[2] == str(PACKAGES["host_engine"]["port"])
    # Its own, loopback alone, and our list.
    assert flags["-a"] == "127.0.0.1:9400"
    assert flags["-f"] == "/etc/dcgm-exporter/sluicegate-counters.csv"


def test_the_drop_in_has_it_tried_again_for_as_long_as_it_takes() -> None:
    """The real one exits with 1 while the host engine does not listen, and NVIDIA's unit tries that once."""
    assert EXPORTER_FACTS["behaviour"]["host_engine_does_not_listen"] == "exits with 1"
    found = {line.key: line.value for line in units.lines(DROPIN)}
    assert (found["Restart"], found["StartLimitIntervalSec"]) == ("on-failure", "0")
    assert found["PartOf"] == found["After"] == found["Wants"] == PACKAGES["unit"]["name"]


def test_the_counters_are_in_the_form_that_the_exporter_reads() -> None:
    lines = [line for line in COUNTERS.read_text().splitlines() if line.strip() and not line.startswith("#")]
    for row in csv.reader(lines):
        assert len(row) == 3, row
        assert row[1].strip() in ("gauge", "counter", "label"), row


def test_the_repository_and_its_key_are_those_of_the_distribution(tmp_path: Path) -> None:
    known = PACKAGES["repositories"]
    keys = {name: key for name, key in known["keys"].items() if name != "source"}
    hosts = {name: {"name": name, **_platform(name)} for name in keys}
    (tmp_path / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    asked = ["dcgm_exporter_repository_url", "dcgm_exporter_repository_key_url", "__dcgm_exporter_offered"]
    play = {
        "hosts": "all",
        "gather_facts": False,
        "connection": "local",
        "vars_files": [str(ROLE / "defaults/main.yml"), str(ROLE / "vars/main.yml")],
        "tasks": [
            {"ansible.builtin.set_fact": {**dict.fromkeys([]), **_templates(), "cacheable": True}},
            {"ansible.builtin.debug": {"msg": "{{ [inventory_hostname, " + ", ".join(asked) + "] }}"}},
        ],
    }
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-playbook")),
            "--inventory",
            str(tmp_path / "hosts.json"),
            str(tmp_path / "play.yml"),
        ],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(playbooks.ANSIBLE / "ansible.cfg"),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.jsonl",
        },
        check=True,
    )
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    results = [r for e in events for r in e.get("hosts", {}).values() if "msg" in r]
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


def _templates() -> dict[str, str]:
    return {
        "distribution": "{{ distribution_name }}",
        "distribution_version": "{{ version }}",
        "distribution_major_version": "{{ version.split('.')[0] }}",
        "architecture": "x86_64",
    }
