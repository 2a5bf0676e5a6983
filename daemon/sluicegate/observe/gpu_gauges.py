"""The metrics of GPUs. Which there are is known at each reading only: cards come and go, and some tell less."""

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Gauge


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One reading of one GPU; None where the device does not tell."""

    utilization_ratio: float | None = None  # 0 to 1
    memory_used_bytes: float | None = None
    memory_total_bytes: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None


class GpuGauges:
    """One gauge for each value of a reading, with the label `gpu` (NVML index)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._available = Gauge("api_gpu_available", "1 if NVML gives readings of a GPU, else 0.", registry=registry)
        self._gauges = {
            "utilization_ratio": Gauge(
                "api_gpu_utilization_ratio", "Share of time with a kernel running, 0 to 1.", ["gpu"], registry=registry
            ),
            "memory_used_bytes": Gauge(
                "api_gpu_memory_used_bytes", "GPU memory in use, in bytes.", ["gpu"], registry=registry
            ),
            "memory_total_bytes": Gauge(
                "api_gpu_memory_total_bytes", "GPU memory, in bytes.", ["gpu"], registry=registry
            ),
            "temperature_celsius": Gauge(
                "api_gpu_temperature_celsius", "GPU temperature, in degrees Celsius.", ["gpu"], registry=registry
            ),
            "power_watts": Gauge("api_gpu_power_watts", "GPU power draw, in watts.", ["gpu"], registry=registry),
        }
        self._shown: dict[str, set[str]] = {name: set() for name in self._gauges}

    def show(self, readings: Mapping[int, GpuReading]) -> None:
        """Show these readings, by NVML index, and no others: what is missing is removed, never left stale."""
        self._available.set(bool(readings))
        for name, gauge in self._gauges.items():
            shown = set()
            for gpu, reading in readings.items():
                value: float | None = getattr(reading, name)
                if value is not None:
                    gauge.labels(str(gpu)).set(value)
                    shown.add(str(gpu))
            for gone in self._shown[name] - shown:
                gauge.remove(gone)
            self._shown[name] = shown
