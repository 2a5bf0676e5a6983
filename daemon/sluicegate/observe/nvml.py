"""NVML, the driver's own interface to the GPU, as far as the sampler needs it.

`pynvml` comes with nvidia-ml-py and needs no GPU to be imported; the library that it loads comes with the driver.
Every call may block for as long as the driver likes: call from a thread.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import pynvml


class NvmlError(Exception):
    """NVML cannot do it: no library, no driver, a lost GPU, a reading that this GPU does not have."""


class Nvml(Protocol):
    """NVML in the units of our metrics. GPUs are numbered from 0, as nvidia-smi does.

    Everything but `init` needs an `init` before it, and each successful `init` a `shutdown`.
    Every method raises NvmlError.
    """

    def init(self) -> None: ...

    def shutdown(self) -> None: ...

    def count(self) -> int:
        """GPUs that the driver knows, lost ones included."""
        ...

    def utilization_ratio(self, gpu: int) -> float:
        """Share of the driver's last sampling period (1/6 to 1 s) with a kernel running, 0 to 1."""
        ...

    def memory_bytes(self, gpu: int) -> tuple[int, int]:
        """Memory in use, and all of it. In use: without the driver's reserve, as nvidia-smi shows it."""
        ...

    def temperature_celsius(self, gpu: int) -> int: ...

    def power_watts(self, gpu: int) -> float: ...


class PyNvml:
    """The real one. Handles are looked up for each reading (microseconds): one that was kept dies with its GPU."""

    def init(self) -> None:
        with _translated():
            pynvml.nvmlInit()

    def shutdown(self) -> None:
        with _translated():
            pynvml.nvmlShutdown()

    def count(self) -> int:
        with _translated():
            return int(pynvml.nvmlDeviceGetCount())

    def utilization_ratio(self, gpu: int) -> float:
        with _translated():
            return float(pynvml.nvmlDeviceGetUtilizationRates(_handle(gpu)).gpu / 100)

    def memory_bytes(self, gpu: int) -> tuple[int, int]:
        with _translated():
            handle = _handle(gpu)
            try:
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
            except pynvml.NVMLError_FunctionNotFound:  # drivers before 510
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            return int(memory.used), int(memory.total)

    def temperature_celsius(self, gpu: int) -> int:
        with _translated():
            handle = _handle(gpu)
            try:
                return int(pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU))
            except pynvml.NVMLError_FunctionNotFound:  # older drivers; the old call goes away with CUDA 14
                return int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))

    def power_watts(self, gpu: int) -> float:
        with _translated():
            return float(pynvml.nvmlDeviceGetPowerUsage(_handle(gpu)) / 1000)


def _handle(gpu: int) -> object:
    return pynvml.nvmlDeviceGetHandleByIndex(gpu)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except pynvml.NVMLError as error:
        raise NvmlError(str(error)) from error
