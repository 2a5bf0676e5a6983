import shutil
import sysconfig
from pathlib import Path

import pynvml
import pytest

from sluicegate_run import recipe
from sluicegate_run.recipe import NO_GPU, Hardware


def answer(monkeypatch: pytest.MonkeyPatch, **functions: object) -> None:
    """Let NVML's functions give these values, or raise these exceptions."""

    def function(value: object) -> object:
        def called() -> object:
            if isinstance(value, Exception):
                raise value
            return value

        return called

    for name, value in {"nvmlInit": None, "nvmlShutdown": None, **functions}.items():
        monkeypatch.setattr(pynvml, name, function(value))


def test_a_machine_without_a_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, nvmlInit=pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    assert recipe.look() == NO_GPU


def test_a_driver_that_does_not_answer_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, nvmlDeviceGetCount=pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN))
    assert recipe.look() == NO_GPU


@pytest.mark.parametrize("compiler", [True, False])
def test_counts_the_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiler: bool) -> None:
    answer(monkeypatch, nvmlDeviceGetCount=2, nvmlSystemGetCudaDriverVersion_v2=13010)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/gcc" if name == "gcc" and compiler else None)
    (tmp_path / "Python.h").touch()
    assert recipe.look() == Hardware(gpus=2, cuda=13010, compiler=compiler)
    (tmp_path / "Python.h").unlink()
    assert recipe.look() == Hardware(gpus=2, cuda=13010, compiler=False)


def test_a_library_is_found_or_not() -> None:
    assert recipe.has_library("libc.so.6")
    assert not recipe.has_library("libnobody-has.so.0")
