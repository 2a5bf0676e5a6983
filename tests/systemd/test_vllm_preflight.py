"""vllm-preflight, before a stand-in nvidia-smi that says what the real one says in each case."""

import os
from pathlib import Path

import pytest

from tests.systemd.conftest import Fake
from tests.systemd.programs import load, run

UNIT = "vllm@main.service"
#: No process can have it: it lies above the kernel's largest.
NOBODY = 99_999_999
GPUS = "0, GPU-aaaa0000, 81559, 4\n1, GPU-bbbb1111, 81559, 4"


@pytest.fixture
def nvidia_smi(fake: Fake, bin_dir: Path) -> Fake:
    """Lets nvidia-smi list these GPUs and these processes."""

    def listing(gpus: str, processes: str) -> Path:
        (bin_dir / "gpus").write_text(gpus + "\n")
        (bin_dir / "processes").write_text(processes + "\n" if processes else "")
        return fake(
            "nvidia-smi", f'case "$1" in *-gpu=*) /bin/cat {bin_dir}/gpus;; *) /bin/cat {bin_dir}/processes;; esac'
        )

    return listing


def preflight(bin_dir: Path, **settings: str) -> tuple[int, str]:
    env = {"PATH": str(bin_dir), "ENGINE_PREFLIGHT_WAIT_S": "0", "LC_ALL": "C.UTF-8"} | settings
    done = run("vllm-preflight", UNIT, env=env)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_free_gpus_are_fine(nvidia_smi: Fake, bin_dir: Path) -> None:
    nvidia_smi(GPUS, "")
    assert preflight(bin_dir) == (0, "")
    assert preflight(bin_dir, ENGINE_GPUS="1") == (0, "")
    assert preflight(bin_dir, ENGINE_GPUS="GPU-bbbb1111") == (0, "")


def test_on_the_cpu_nothing_is_asked(fake: Fake, bin_dir: Path) -> None:
    fake("nvidia-smi", f"/bin/touch {bin_dir}/asked; exit 1")
    assert preflight(bin_dir, ENGINE_DEVICE="cpu") == (0, "")
    assert not (bin_dir / "asked").exists()


def test_an_engine_left_behind_is_named(nvidia_smi: Fake, bin_dir: Path) -> None:
    nvidia_smi(GPUS, f"GPU-bbbb1111, {NOBODY}, 512, VLLM::EngineCore")
    status, said = preflight(bin_dir)
    assert status == 1
    assert said == (
        f"GPU 1 is held by process {NOBODY} (VLLM::EngineCore, 512 MiB), an orphaned engine that belongs to no "
        f"other running vllm@ service: end it with `kill -9 {NOBODY}` and start {UNIT} again.\n"
    )


def test_leftover_engine_on_another_gpu_passes(nvidia_smi: Fake, bin_dir: Path) -> None:
    """Preflight ignores a leftover engine on a GPU that this instance does not use."""
    nvidia_smi(GPUS, f"GPU-bbbb1111, {NOBODY}, 70000, VLLM::EngineCore")
    assert preflight(bin_dir, ENGINE_GPUS="0") == (0, "")


@pytest.mark.parametrize(
    ("cgroup", "stale"),
    [
        ("0::/inference.slice/vllm@other.service\n", False),
        ("0::/inference.slice/vllm@other.service/sub\n", False),
        ("0::/inference.slice/vllm@main.service\n", True),
        ("0::/user.slice/user-1000.slice/session-1.scope\n", True),
    ],
)
def test_another_instance_is_not_one_left_behind(
    nvidia_smi: Fake, bin_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: str, stale: bool
) -> None:
    nvidia_smi(GPUS, "GPU-aaaa0000, 4711, 30000, VLLM::EngineCore")
    program = load("vllm-preflight")
    monkeypatch.setattr(program, "PROC", tmp_path / "proc")
    monkeypatch.setenv("PATH", str(bin_dir))
    (tmp_path / "proc/4711").mkdir(parents=True)
    (tmp_path / "proc/4711/cgroup").write_text(cgroup)
    if stale:
        with pytest.raises(program.Busy, match="process 4711"):
            program.check({}, UNIT)
    else:
        program.check({}, UNIT)


OCCUPIED = "0, GPU-aaaa0000, 80000, 20000"


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ({}, 1),
        ({"ENGINE_GPU_MEMORY_UTILIZATION": "0.76"}, 1),
        ({"ENGINE_GPU_MEMORY_UTILIZATION": "0.74"}, 0),
        ({"ENGINE_VRAM_USED_MAX_MIB": "19999"}, 1),
        ({"ENGINE_VRAM_USED_MAX_MIB": "20000"}, 0),
        ({"ENGINE_VRAM_USED_MAX_MIB": "20000", "ENGINE_GPU_MEMORY_UTILIZATION": "0.9"}, 0),
    ],
)
def test_occupied_memory(nvidia_smi: Fake, bin_dir: Path, settings: dict[str, str], status: int) -> None:
    nvidia_smi(OCCUPIED, f"GPU-aaaa0000, {NOBODY}, 19000, /usr/bin/python3, the second")
    found, said = preflight(bin_dir, **settings)
    assert found == status
    assert ("process 99999999 (/usr/bin/python3, the second, 19000 MiB)" in said) == bool(status)
    assert ("raise ENGINE_VRAM_USED_MAX_MIB" in said) == bool(status)


def test_memory_that_nobody_seems_to_use(nvidia_smi: Fake, bin_dir: Path) -> None:
    nvidia_smi(OCCUPIED, "")
    assert "no process that can be seen from here" in preflight(bin_dir)[1]


def test_a_gpu_that_counts_no_memory_of_its_own(nvidia_smi: Fake, bin_dir: Path) -> None:
    nvidia_smi("0, GPU-aaaa0000, [N/A], [N/A]", f"GPU-aaaa0000, {NOBODY}, [N/A], python3")
    assert preflight(bin_dir) == (0, "")


def test_memory_that_becomes_free_is_waited_for(fake: Fake, bin_dir: Path) -> None:
    """The first question finds the GPU full, each later one free."""
    full, free = OCCUPIED, OCCUPIED.replace("20000", "4")
    asked = bin_dir / "asked"
    fake(
        "nvidia-smi",
        f'case "$1" in *apps*) exit;; esac; if [ -e {asked} ]; then echo "{free}"; else echo "{full}"; : > {asked}; fi',
    )
    assert preflight(bin_dir, ENGINE_PREFLIGHT_WAIT_S="30") == (0, "")


def test_what_no_wait_mends_is_said_at_once(bin_dir: Path) -> None:
    """The wait of 120 s would outlast the test's own deadline."""
    status, said = preflight(bin_dir, ENGINE_PREFLIGHT_WAIT_S="120")
    assert status == 1
    assert said == "nvidia-smi is not there: install the NVIDIA driver, or set ENGINE_DEVICE=cpu in /etc/vllm.\n"


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("echo 'Driver/library version mismatch'; exit 18", "status 18 and said “Driver/library version mismatch”"),
        ("exit 9", "status 9 and said “nothing”"),
        ("exit 0", "nvidia-smi lists no GPU"),
    ],
)
def test_a_driver_that_does_not_work(fake: Fake, bin_dir: Path, script: str, sentence: str) -> None:
    fake("nvidia-smi", script)
    status, said = preflight(bin_dir)
    assert status == 1
    assert sentence in said


def test_a_driver_that_hangs(fake: Fake, bin_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("nvidia-smi", "exec /bin/sleep 1000")
    program = load("vllm-preflight")
    monkeypatch.setattr(program, "ANSWER_S", 0.2)
    monkeypatch.setenv("PATH", str(bin_dir))
    with pytest.raises(program.Refused, match="the driver hangs"):
        program.list_gpus()


def test_a_gpu_that_is_not_there(nvidia_smi: Fake, bin_dir: Path) -> None:
    nvidia_smi(GPUS, "")
    assert preflight(bin_dir, ENGINE_GPUS="0,7") == (
        1,
        "ENGINE_GPUS names 7, and nvidia-smi lists only 0, 1: change it in /etc/vllm.\n",
    )


def test_a_mig_instance_is_left_to_vllm(nvidia_smi: Fake, bin_dir: Path) -> None:
    nvidia_smi(OCCUPIED, "")
    assert preflight(bin_dir, ENGINE_GPUS="MIG-12345678-aaaa") == (0, "")


@pytest.mark.parametrize(
    "name", ["ENGINE_PREFLIGHT_WAIT_S", "ENGINE_VRAM_USED_MAX_MIB", "ENGINE_GPU_MEMORY_UTILIZATION"]
)
@pytest.mark.parametrize("value", ["-1", "x", "1e3", "99999999999"])
def test_a_wrong_number_is_refused_by_name(nvidia_smi: Fake, bin_dir: Path, name: str, value: str) -> None:
    nvidia_smi(GPUS, "")
    status, said = preflight(bin_dir, **{name: value})
    assert status == 1
    assert said.startswith(f"{name} = '{value}' must be a number")


def test_it_finds_the_unit_of_a_real_process() -> None:
    """This process is in a control group, and in no engine's."""
    assert load("vllm-preflight").unit_of(os.getpid()) is None
