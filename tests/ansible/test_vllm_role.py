"""What the role vllm decides on a host with a GPU. Each case is a host of one play, where a program stands in for
vllm-memory and says what that would say."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.ansible.plays import play

REPOSITORY = Path(__file__).parents[2]
ROLES = REPOSITORY / "ansible/roles"

FITS = {"name": "main", "verdict": "fits", "sentence": "It needs 19.0 of the 21.2 GiB.", "compiles": ""}
TOO_LARGE = FITS | {"verdict": "too large", "sentence": "It needs 19.8 of the 15.0 GiB: take a smaller model."}
FP8 = FITS | {"compiles": "--kv-cache-dtype fp8"}


def driver(cuda: str, gpus: int = 1) -> dict[str, object]:
    return {"cuda": cuda, "gpus": [{"index": str(index)} for index in range(gpus)]}


NEW, OLD = driver("13.0"), driver("12.4")
MANAGED = {"nvidia_driver_manage": True, "nvidia_driver_branch": "580"}


@dataclass(frozen=True)
class Case:
    """What the host says, and the inventory's variables. `stops`: a part of the sentence that the role stops with."""

    driver: Mapping[str, object]
    variables: Mapping[str, object]
    stops: str = ""
    instance: Mapping[str, object] = field(default_factory=lambda: FITS)
    toolkit: bool = False
    #: Whether the role nvidia_driver has not run yet.
    preflight: bool = True


CASES = {
    "new-driver": Case(NEW, {}),
    "no-driver": Case({}, {}, "shows no NVIDIA GPU for want of a driver"),
    "no-driver-yet": Case({}, MANAGED),
    "no-driver-after-all": Case({}, MANAGED, "shows no NVIDIA GPU for want of a driver", preflight=False),
    "old-driver": Case(OLD, {}, "runs CUDA up to 12.4, and vllm_cuda_min says"),
    "old-driver-kept": Case(OLD, {"nvidia_driver_manage": False}, "runs CUDA up to 12.4"),
    # The role nvidia_driver is about to replace it.
    "old-driver-to-be-replaced": Case(OLD, MANAGED),
    "old-driver-after-all": Case(OLD, MANAGED, "runs CUDA up to 12.4", preflight=False),
    # As in upgrade.yml, where it is no part of the play.
    "old-driver-without-the-role": Case(OLD, {"nvidia_driver_manage": True}, "runs CUDA up to 12.4"),
    "old-driver-in-an-upgrade": Case(OLD, MANAGED | {"__vllm_no_driver_comes": True}, "runs CUDA up to 12.4"),
    "old-branch": Case(
        NEW, MANAGED | {"vllm_cuda_min": "13.1"}, "nvidia_driver_branch is 580, whose driver runs CUDA up to 13.0"
    ),
    "branch-between": Case({}, MANAGED | {"nvidia_driver_branch": "592", "vllm_cuda_min": "13.1"}),
    "branch-to-come": Case({}, MANAGED | {"nvidia_driver_branch": "620", "vllm_cuda_min": "13.2"}),
    "missing-gpu": Case(
        NEW,
        {"vllm_instances": [{"name": "main", "model": "a/b", "gpus": [0, 3]}]},
        "names GPU 3, and missing-gpu has 1",
    ),
    "too-large": Case(NEW, {}, "main in vllm_instances does not fit too-large. It needs 19.8", instance=TOO_LARGE),
    "unknown": Case(NEW, {}, instance=FITS | {"verdict": "unknown"}),
    "fp8-without-toolkit": Case(NEW, {}, "set vllm_cuda_toolkit to minimal", instance=FP8),
    "fp8-with-toolkit": Case(NEW, {"vllm_cuda_toolkit": "minimal"}, instance=FP8),
    "fp8-with-the-hosts-own": Case(NEW, {}, instance=FP8, toolkit=True),
    "own-sampler": Case(NEW, {"vllm_environment": {"VLLM_USE_FLASHINFER_SAMPLER": "1"}}),
    "own-sampler-of-one": Case(
        NEW,
        {
            "vllm_instances": [
                {"name": "main", "model": "a/b", "environment": {"VLLM_USE_FLASHINFER_SAMPLER": "1"}},
            ]
        },
    ),
    "own-cuda": Case(NEW, {"vllm_environment": {"CUDA_HOME": "/opt/cuda"}}),
    "long-start": Case(NEW, {"vllm_ready_timeout_s": 5400}),
    "own-timeout": Case(NEW, {"vllm_environment": {"VLLM_ENGINE_READY_TIMEOUT_S": "60"}}),
    "cpu": Case({}, {"vllm_device": "cpu", "vllm_instances": [{"name": "main"}]}),
}

PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Look at the driver
      ansible.builtin.include_role:
        name: vllm
        tasks_from: driver
        public: true
      vars:
        __vllm_driver_to_come: "{{ preflight }}"
      when: vllm_device | default('gpu') == 'gpu'

    - name: Count the processors
      ansible.builtin.setup:
        gather_subset: [hardware]
      when: vllm_device | default('gpu') == 'cpu'

    - name: Have the role's variables
      when: vllm_device | default('gpu') == 'cpu'
      ansible.builtin.include_role:
        name: vllm
        tasks_from: main
        public: true
      vars:
        vllm_manage: false

    - name: Write the instances' files
      ansible.builtin.template:
        src: "{{ roles }}/vllm/templates/instance.env.j2"
        dest: "{{ out }}/{{ inventory_hostname }}.env"
        mode: "0600"
      vars:
        __vllm_it: "{{ __vllm_all[0] }}"
        __vllm_cuda_version: "13.0"
"""


@dataclass(frozen=True)
class Outcome:
    """`stopped`: what the role stopped with, or "". `environment`: of the first engine, if it did not."""

    stopped: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """All cases in one play: starting Ansible takes seconds."""
    path = tmp_path_factory.mktemp("role")
    stopped = play(path, PLAY, {name: host(path, name) for name in CASES}).failures
    return {name: Outcome(stopped.get(name, ""), environment(path / f"{name}.env")) for name in CASES}


def host(path: Path, name: str) -> dict[str, object]:
    """The variables of one host, among them a checkout whose vllm-memory says what the case wants."""
    case = CASES[name]
    program = path / "checkouts" / name / "systemd/libexec/vllm-memory"
    program.parent.mkdir(parents=True)
    answer = {"driver": case.driver, "toolkit": case.toolkit, "instances": [case.instance]}
    program.write_text(f"import sys\nsys.stdin.read()\nprint({json.dumps(answer)!r})\n")
    return {
        "sluicegate_files": str(path / "checkouts" / name),
        "roles": str(ROLES),
        "out": str(path),
        "preflight": case.preflight,
        "vllm_instances": [{"name": "main", "model": "Qwen/Qwen3-8B"}],
        "__vllm_prepared": {"model": "/model", "served_name": "model"},
        **case.variables,
    }


def environment(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    pairs = (line.partition("=") for line in path.read_text().splitlines() if not line.startswith("#"))
    return {name: value.strip("'") for name, _, value in pairs if name}


@pytest.mark.parametrize("name", CASES)
def test_it_stops_where_it_should_and_nowhere_else(outcomes: dict[str, Outcome], name: str) -> None:
    stopped = outcomes[name].stopped
    if CASES[name].stops:
        assert CASES[name].stops in stopped
    else:
        assert stopped == ""
        assert outcomes[name].environment


def test_flashinfer_sampler_needs_a_compiler(outcomes: dict[str, Outcome]) -> None:
    """FlashInfer's sampler is off where the host has nothing to compile it with."""
    found = {
        name: outcome.environment.get("VLLM_USE_FLASHINFER_SAMPLER")
        for name, outcome in outcomes.items()
        if outcome.environment
    }
    off = {name for name, value in found.items() if value == "0"}
    assert off == set(found) - {
        *("fp8-with-toolkit", "fp8-with-the-hosts-own", "own-cuda", "own-sampler", "own-sampler-of-one", "cpu")
    }
    assert found["own-sampler"] == found["own-sampler-of-one"] == "1"
    assert found["fp8-with-toolkit"] is found["cpu"] is None


def test_a_toolkit_of_ours_is_where_kernels_look_for_it(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["fp8-with-toolkit"].environment["CUDA_HOME"] == "/usr/local/cuda-13.0"
    assert outcomes["own-cuda"].environment["CUDA_HOME"] == "/opt/cuda"
    assert "CUDA_HOME" not in outcomes["new-driver"].environment


def test_engines_wait_for_each_other(outcomes: dict[str, Outcome]) -> None:
    """An engine waits for its peers as long as a start may take."""
    found = {name: outcomes[name].environment["VLLM_ENGINE_READY_TIMEOUT_S"] for name in ("new-driver", "cpu")}
    assert found == {"new-driver": "1800", "cpu": "1800"}
    assert outcomes["long-start"].environment["VLLM_ENGINE_READY_TIMEOUT_S"] == "5400"
    assert outcomes["own-timeout"].environment["VLLM_ENGINE_READY_TIMEOUT_S"] == "60"
