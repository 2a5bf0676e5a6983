"""Reads the GPUs every few seconds. A host without one, or one that breaks, costs a gauge and never a request."""

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import trio

from sluicegate.observe.gpu_gauges import GpuReading
from sluicegate.observe.logs import Log
from sluicegate.observe.metrics import Metrics
from sluicegate.observe.nvml import Nvml, NvmlError

#: Seconds until a host without readings is tried again: a driver may be installed later, but not often.
RETRY_S = 60.0
#: Longest that one round may take, in seconds. A healthy driver answers in milliseconds, a wedged one never.
ROUND_LIMIT_S = 10.0
#: Longest that the end of the daemon waits for NVML's shutdown, in seconds.
CLOSE_LIMIT_S = 1.0

T = TypeVar("T")


async def sample_forever(nvml: Nvml, metrics: Metrics, interval_s: Callable[[], float], *, log: Log) -> None:
    """Show the GPUs' readings in `metrics` every `interval_s()` seconds, until cancelled.

    Without a reading: api_gpu_available is 0, the log says why, once, and the next try is after RETRY_S. A single
    reading that fails is left out. Owns `nvml`: init and shutdown are paired, also when cancelled.
    """
    session = _Session(nvml)
    # NVML blocks, so it has a thread; one, so that a wedged driver cannot pile them up. A thread that is given up
    # keeps its place until it returns, so that no two calls ever overlap.
    limiter = trio.CapacityLimiter(1)
    said = ""
    try:
        while True:
            readings: dict[int, GpuReading] = {}
            reason = "the driver does not answer"
            with trio.move_on_after(ROUND_LIMIT_S):
                readings, reason = await trio.to_thread.run_sync(session.read, limiter=limiter, abandon_on_cancel=True)
            metrics.set_gpus(readings)
            said = _announce(log, readings, reason, said)
            await trio.sleep(interval_s() if readings else max(interval_s(), RETRY_S))
    finally:
        metrics.set_gpus({})
        with trio.move_on_after(CLOSE_LIMIT_S, shield=True):
            await trio.to_thread.run_sync(session.close, limiter=limiter, abandon_on_cancel=True)


def _announce(log: Log, readings: dict[int, GpuReading], reason: str, said: str) -> str:
    """Log the state if it is not what was said last; returns what is said now."""
    state = f"{len(readings)} GPUs" if readings else reason
    if state != said:
        if readings:
            log.info("gpu_available", count=len(readings))
        else:
            log.info("gpu_unavailable", detail=reason)
    return state


class _Session:
    """NVML between its init and its shutdown. Lives in the sampler's thread, one call at a time."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self._open = False

    def read(self) -> tuple[dict[int, GpuReading], str]:
        """The readings by GPU; if there are none, why, and NVML is closed, so that the next round starts afresh."""
        try:
            if not self._open:
                self._nvml.init()
                self._open = True
            count = self._nvml.count()
        except NvmlError as error:
            self.close()
            return {}, str(error)
        readings = {gpu: reading for gpu in range(count) if (reading := self._read_gpu(gpu)) != GpuReading()}
        if not readings:
            self.close()
        return readings, "no GPU answers" if count else "no GPU"

    def close(self) -> None:
        if self._open:
            self._open = False
            with suppress(NvmlError):  # the driver went away first
                self._nvml.shutdown()

    def _read_gpu(self, gpu: int) -> GpuReading:
        memory = _or_none(self._nvml.memory_bytes, gpu)
        used, total = memory if memory is not None else (None, None)
        return GpuReading(
            utilization_ratio=_or_none(self._nvml.utilization_ratio, gpu),
            memory_used_bytes=used,
            memory_total_bytes=total,
            temperature_celsius=_or_none(self._nvml.temperature_celsius, gpu),
            power_watts=_or_none(self._nvml.power_watts, gpu),
        )


def _or_none(read: Callable[[int], T], gpu: int) -> T | None:
    """What `read` says, or None if this GPU does not tell."""
    try:
        return read(gpu)
    except NvmlError:
        return None
