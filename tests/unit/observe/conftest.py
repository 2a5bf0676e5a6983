import shutil
import subprocess
from collections.abc import Callable

import pynvml
import pytest

from sluicegate.observe.nvml import Nvml, NvmlError, PyNvml
from tests.unit.observe.fake_nvml import FakeDriver


@pytest.fixture
def load_driver(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeDriver | None], None]:
    """Put a fake driver library beneath pynvml, or none, as on a host without a driver."""

    def load(driver: FakeDriver | None) -> None:
        monkeypatch.setattr(pynvml, "nvmlLib", driver)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        if driver is None:

            def cannot_load(name: str) -> None:
                raise OSError(f"{name}: cannot open shared object file")

            monkeypatch.setattr(pynvml, "CDLL", cannot_load)

    return load


@pytest.fixture
def real_nvml() -> Nvml:
    """The real driver's NVML, not yet initialized; skips where there is no GPU."""
    nvml = PyNvml()
    try:
        nvml.init()
    except NvmlError as error:
        pytest.skip(f"needs an NVIDIA GPU: NVML says {error}")
    try:
        if not nvml.count():
            pytest.skip("needs an NVIDIA GPU: the driver is here, but no device")
    finally:
        nvml.shutdown()
    return nvml


@pytest.fixture
def nvidia_smi() -> Callable[..., list[str]]:
    """Asks nvidia-smi for fields of GPU 0, without units."""
    path = shutil.which("nvidia-smi")
    if path is None:
        pytest.skip("needs nvidia-smi, which comes with the driver's tools")

    def ask(*fields: str) -> list[str]:
        command = [path, "--id=0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        return [value.strip() for value in answer.stdout.split(",")]

    return ask
