"""Two fakes of NVML: one of our protocol, one of the driver's C library beneath the real pynvml."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pynvml

from sluicegate.observe.nvml import NvmlError

SUCCESS: int = pynvml.NVML_SUCCESS
UNINITIALIZED: int = pynvml.NVML_ERROR_UNINITIALIZED
INVALID_ARGUMENT: int = pynvml.NVML_ERROR_INVALID_ARGUMENT
NOT_SUPPORTED: int = pynvml.NVML_ERROR_NOT_SUPPORTED
GPU_IS_LOST: int = pynvml.NVML_ERROR_GPU_IS_LOST


@dataclass
class FakeGpu:
    """One GPU. `broken` names the readings that it refuses: utilization, memory, temperature, power."""

    utilization_percent: int = 40
    used: int = 2 << 30
    total: int = 80 << 30
    celsius: int = 55
    milliwatts: int = 123_456
    broken: set[str] = field(default_factory=set)
    lost: bool = False


@dataclass
class FakeNvml:
    """Our protocol over FakeGpus. `failure` is what init and count raise; `hold` is run in every count."""

    gpus: list[FakeGpu] = field(default_factory=list)
    failure: str = ""
    hold: Callable[[], object] = lambda: None
    inits: int = 0
    shutdowns: int = 0
    shutdown_failure: str = ""

    @property
    def open(self) -> int:
        """Successful inits without their shutdown."""
        return self.inits - self.shutdowns

    def init(self) -> None:
        if self.failure:
            raise NvmlError(self.failure)
        self.inits += 1

    def shutdown(self) -> None:
        self._need_init()
        self.shutdowns += 1
        if self.shutdown_failure:
            raise NvmlError(self.shutdown_failure)

    def count(self) -> int:
        self._need_init()
        self.hold()
        if self.failure:
            raise NvmlError(self.failure)
        return len(self.gpus)

    def utilization_ratio(self, gpu: int) -> float:
        return self._gpu(gpu, "utilization").utilization_percent / 100

    def memory_bytes(self, gpu: int) -> tuple[int, int]:
        found = self._gpu(gpu, "memory")
        return found.used, found.total

    def temperature_celsius(self, gpu: int) -> int:
        return self._gpu(gpu, "temperature").celsius

    def power_watts(self, gpu: int) -> float:
        return self._gpu(gpu, "power").milliwatts / 1000

    def _need_init(self) -> None:
        if not self.open:
            raise NvmlError("Uninitialized")

    def _gpu(self, gpu: int, reading: str) -> FakeGpu:
        self._need_init()
        if not 0 <= gpu < len(self.gpus):
            raise NvmlError("Invalid Argument")
        if self.gpus[gpu].lost:
            raise NvmlError("GPU is lost")
        if reading in self.gpus[gpu].broken:
            raise NvmlError("Not Supported")
        return self.gpus[gpu]


class FakeDriver:
    """libnvidia-ml.so.1 as pynvml calls it: status codes, and results through pointers.

    `old`: without the functions that drivers before 510 lack.
    """

    def __init__(self, gpus: list[FakeGpu], *, old: bool = False) -> None:
        self.gpus = gpus
        self.inits = 0
        self.missing = {"nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetTemperatureV"} if old else set[str]()

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in self.missing:
            raise AttributeError(name)  # as ctypes does for a symbol that the library lacks
        return object.__getattribute__(self, name)

    def nvmlInitWithFlags(self, flags: int) -> int:  # noqa: N802
        self.inits += 1
        return SUCCESS

    def nvmlShutdown(self) -> int:  # noqa: N802
        if not self.inits:
            return UNINITIALIZED
        self.inits -= 1
        return SUCCESS

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        if not self.inits:
            return UNINITIALIZED
        count._obj.value = len(self.gpus)
        return SUCCESS

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, device: Any) -> int:  # noqa: N802
        if not self.inits:
            return UNINITIALIZED
        if index.value >= len(self.gpus):
            return INVALID_ARGUMENT
        if self.gpus[index.value].lost:
            return GPU_IS_LOST
        ctypes.memmove(device, ctypes.byref(ctypes.c_void_p(index.value + 1)), ctypes.sizeof(ctypes.c_void_p))
        return SUCCESS

    def nvmlDeviceGetUtilizationRates(self, device: Any, rates: Any) -> int:  # noqa: N802
        return self._tell(device, "utilization", rates, gpu=self._gpu(device).utilization_percent)

    def nvmlDeviceGetMemoryInfo(self, device: Any, memory: Any) -> int:  # noqa: N802
        gpu = self._gpu(device)
        return self._tell(device, "memory", memory, used=gpu.used, total=gpu.total)

    def nvmlDeviceGetMemoryInfo_v2(self, device: Any, memory: Any) -> int:  # noqa: N802
        assert memory._obj.version == pynvml.nvmlMemory_v2
        return self.nvmlDeviceGetMemoryInfo(device, memory)

    def nvmlDeviceGetTemperatureV(self, device: Any, temperature: Any) -> int:  # noqa: N802
        return self._tell(device, "temperature", temperature, temperature=self._gpu(device).celsius)

    def nvmlDeviceGetTemperature(self, device: Any, sensor: Any, temperature: Any) -> int:  # noqa: N802
        return self._tell(device, "temperature", temperature, value=self._gpu(device).celsius)

    def nvmlDeviceGetPowerUsage(self, device: Any, watts: Any) -> int:  # noqa: N802
        return self._tell(device, "power", watts, value=self._gpu(device).milliwatts)

    def _gpu(self, device: Any) -> FakeGpu:
        address = ctypes.cast(device, ctypes.c_void_p).value
        assert address is not None
        return self.gpus[address - 1]

    def _tell(self, device: Any, reading: str, target: Any, **values: int) -> int:
        if reading in self._gpu(device).broken:
            return NOT_SUPPORTED
        for name, value in values.items():
            setattr(target._obj, name, value)
        return SUCCESS
