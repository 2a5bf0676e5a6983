"""On virtual time that only the tests move: the autojump clock would run ahead while NVML's thread works."""

import math
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked, wait_all_threads_completed

from sluicegate.observe.gpu_gauges import GpuReading
from sluicegate.observe.gpus import CLOSE_LIMIT_S, RETRY_S, ROUND_LIMIT_S, sample_forever
from sluicegate.observe.metrics import Metrics
from sluicegate.observe.nvml import Nvml
from tests.unit.observe.captured import Captured
from tests.unit.observe.fake_nvml import FakeGpu, FakeNvml

INTERVAL_S = 5.0


class WatchedMetrics(Metrics):
    """Metrics that tell of each round."""

    def __init__(self) -> None:
        super().__init__([], "0")
        self._tell, self._rounds = trio.open_memory_channel[None](math.inf)

    def set_gpus(self, readings: Mapping[int, GpuReading]) -> None:
        super().set_gpus(readings)
        self._tell.send_nowait(None)

    async def round(self) -> None:
        """Wait until the next round has been shown, and its sampler sleeps."""
        await self._rounds.receive()
        await wait_all_tasks_blocked()

    @property
    def rounds_unseen(self) -> int:
        return self._rounds.statistics().current_buffer_used

    def value(self, name: str, gpu: int | None = None) -> float | None:
        return self.registry.get_sample_value(name, {} if gpu is None else {"gpu": str(gpu)})


class Sampling:
    """A sampler at work, after its first round."""

    def __init__(self, clock: MockClock, scope: trio.CancelScope) -> None:
        self.captured = Captured("json")
        self.metrics = WatchedMetrics()
        self.clock = clock
        self.scope = scope

    async def after(self, seconds: float) -> None:
        """Let time pass, and a round that is due then happen."""
        self.clock.jump(seconds)
        await self.metrics.round()

    async def nothing_after(self, seconds: float) -> None:
        self.clock.jump(seconds)
        await wait_all_tasks_blocked()
        await wait_all_threads_completed()
        await wait_all_tasks_blocked()
        assert self.metrics.rounds_unseen == 0

    def said(self) -> list[tuple[object, object]]:
        """Events since the last call, each with what it tells."""
        lines = self.captured.objects()
        assert all(line["level"] == "info" for line in lines)
        return [(line["event"], line.get("detail", line.get("count"))) for line in lines]


@asynccontextmanager
async def sampling(nvml: Nvml, clock: MockClock) -> AsyncIterator[Sampling]:
    """A sampler after its first round; cancelled at the end of the block."""
    # pytest-trio runs on a clock only if the test itself asks for it.
    assert trio.lowlevel.current_clock() is clock
    async with trio.open_nursery() as nursery:
        run = Sampling(clock, nursery.cancel_scope)

        async def sample() -> None:
            await sample_forever(nvml, run.metrics, lambda: INTERVAL_S, log=run.captured.log)

        nursery.start_soon(sample)
        await run.metrics.round()
        yield run
        nursery.cancel_scope.cancel()
    run.captured.close()


async def test_readings_follow_the_gpus(mock_clock: MockClock) -> None:
    gpus = [FakeGpu(), FakeGpu(utilization_percent=100)]
    async with sampling(FakeNvml(gpus), mock_clock) as run:
        assert run.metrics.value("api_gpu_available") == 1
        assert run.metrics.value("api_gpu_utilization_ratio", 0) == 0.4
        assert run.metrics.value("api_gpu_utilization_ratio", 1) == 1.0
        assert run.metrics.value("api_gpu_memory_used_bytes", 0) == 2 << 30
        assert run.metrics.value("api_gpu_memory_total_bytes", 0) == 80 << 30
        assert run.metrics.value("api_gpu_temperature_celsius", 0) == 55
        assert run.metrics.value("api_gpu_power_watts", 0) == 123.456
        gpus[0].celsius = 80
        await run.nothing_after(INTERVAL_S - 1)
        await run.after(1)
        assert run.metrics.value("api_gpu_temperature_celsius", 0) == 80
        assert run.said() == [("gpu_available", 2)]


async def test_host_without_a_gpu(mock_clock: MockClock) -> None:
    """The host is reported once and tried again once a minute."""
    nvml = FakeNvml(failure="NVML Shared Library Not Found")
    async with sampling(nvml, mock_clock) as run:
        assert run.metrics.value("api_gpu_available") == 0
        for _ in range(5):
            await run.nothing_after(RETRY_S - 1)
            await run.after(1)
        assert run.metrics.value("api_gpu_available") == 0
        assert run.said() == [("gpu_unavailable", "NVML Shared Library Not Found")]
        # The driver is installed.
        nvml.failure = ""
        nvml.gpus = [FakeGpu()]
        await run.after(RETRY_S)
        assert run.metrics.value("api_gpu_available") == 1
        assert run.said() == [("gpu_available", 1)]
        await run.after(INTERVAL_S)
    assert (nvml.inits, nvml.open) == (1, 0)


async def test_a_driver_without_a_device(mock_clock: MockClock) -> None:
    nvml = FakeNvml([])
    async with sampling(nvml, mock_clock) as run:
        assert run.metrics.value("api_gpu_available") == 0
        assert run.said() == [("gpu_unavailable", "no GPU")]
        assert nvml.open == 0


@pytest.mark.parametrize(
    ("reading", "gauges"),
    [
        ("utilization", ["api_gpu_utilization_ratio"]),
        ("memory", ["api_gpu_memory_used_bytes", "api_gpu_memory_total_bytes"]),
        ("temperature", ["api_gpu_temperature_celsius"]),
        ("power", ["api_gpu_power_watts"]),
    ],
)
async def test_a_reading_that_fails_is_left_out_and_comes_back(
    mock_clock: MockClock, reading: str, gauges: list[str]
) -> None:
    gpu = FakeGpu()
    async with sampling(FakeNvml([gpu]), mock_clock) as run:
        before = [run.metrics.value(gauge, 0) for gauge in ALL_GAUGES]
        assert None not in before
        gpu.broken = {reading}
        await run.after(INTERVAL_S)
        assert [gauge for gauge in ALL_GAUGES if run.metrics.value(gauge, 0) is None] == gauges
        assert run.metrics.value("api_gpu_available") == 1
        gpu.broken = set()
        await run.after(INTERVAL_S)
        assert [run.metrics.value(gauge, 0) for gauge in ALL_GAUGES] == before


ALL_GAUGES = [
    "api_gpu_utilization_ratio",
    "api_gpu_memory_used_bytes",
    "api_gpu_memory_total_bytes",
    "api_gpu_temperature_celsius",
    "api_gpu_power_watts",
]


async def test_one_lost_gpu_leaves_the_other(mock_clock: MockClock) -> None:
    gpus = [FakeGpu(), FakeGpu()]
    async with sampling(FakeNvml(gpus), mock_clock) as run:
        gpus[0].lost = True
        await run.after(INTERVAL_S)
        assert all(run.metrics.value(gauge, 0) is None for gauge in ALL_GAUGES)
        assert run.metrics.value("api_gpu_power_watts", 1) == 123.456
        assert run.metrics.value("api_gpu_available") == 1
        assert run.said() == [("gpu_available", 2), ("gpu_available", 1)]


async def test_when_all_are_lost_nvml_is_opened_afresh(mock_clock: MockClock) -> None:
    gpu = FakeGpu()
    nvml = FakeNvml([gpu])
    async with sampling(nvml, mock_clock) as run:
        gpu.lost = True
        await run.after(INTERVAL_S)
        assert run.metrics.value("api_gpu_available") == 0
        assert nvml.open == 0
        gpu.lost = False
        await run.nothing_after(INTERVAL_S)
        await run.after(RETRY_S - INTERVAL_S)
        assert run.metrics.value("api_gpu_available") == 1
        assert run.said() == [("gpu_available", 1), ("gpu_unavailable", "no GPU answers"), ("gpu_available", 1)]
    assert (nvml.inits, nvml.open) == (2, 0)


async def test_a_driver_that_goes_away_while_open(mock_clock: MockClock) -> None:
    nvml = FakeNvml([FakeGpu()], shutdown_failure="Driver Not Loaded")
    async with sampling(nvml, mock_clock) as run:
        nvml.failure = "Driver Not Loaded"
        await run.after(INTERVAL_S)
        assert run.metrics.value("api_gpu_available") == 0
        assert run.said() == [("gpu_available", 1), ("gpu_unavailable", "Driver Not Loaded")]
    assert nvml.open == 0


class Wedge:
    """Something for a fake driver to hang on, until told otherwise."""

    def __init__(self) -> None:
        self.entered = 0
        self._free = threading.Event()

    def hang(self) -> None:
        self.entered += 1
        assert self._free.wait(30), "the driver was not freed"

    def free(self) -> None:
        self._free.set()


async def test_hanging_driver_costs_one_thread(mock_clock: MockClock) -> None:
    """A driver that hangs costs its gauges and one thread, and nothing else."""
    nvml = FakeNvml([FakeGpu()])
    wedge = Wedge()
    async with sampling(nvml, mock_clock) as run:
        try:
            nvml.hold = wedge.hang
            run.clock.jump(INTERVAL_S)
            for _ in range(3):
                await wait_all_tasks_blocked()
                await run.after(ROUND_LIMIT_S)
                assert run.metrics.value("api_gpu_available") == 0
                assert run.metrics.value("api_gpu_power_watts", 0) is None
                run.clock.jump(RETRY_S)
            assert wedge.entered == 1
            assert run.said() == [("gpu_available", 1), ("gpu_unavailable", "the driver does not answer")]
        finally:
            wedge.free()
        # The round that waited for the thread goes through.
        await run.metrics.round()
        assert run.metrics.value("api_gpu_available") == 1
    assert nvml.open == 0


async def test_cancelled_in_the_middle_it_shuts_nvml_down(mock_clock: MockClock) -> None:
    nvml = FakeNvml([FakeGpu()])
    async with sampling(nvml, mock_clock) as run:
        assert nvml.open == 1
        run.scope.cancel()
    assert (nvml.inits, nvml.open) == (1, 0)
    assert run.metrics.value("api_gpu_available") == 0


async def test_the_end_does_not_wait_for_a_driver_that_hangs(mock_clock: MockClock) -> None:
    nvml = FakeNvml([FakeGpu()])
    wedge = Wedge()
    try:
        async with sampling(nvml, mock_clock) as run:
            nvml.hold = wedge.hang
            run.clock.jump(INTERVAL_S)
            await wait_all_tasks_blocked()
            run.scope.cancel()
            mock_clock.autojump_threshold = 0  # from here on nothing but the deadline is waited for
            began = trio.current_time()
        assert trio.current_time() - began == pytest.approx(CLOSE_LIMIT_S)
    finally:
        wedge.free()


@pytest.mark.gpu
async def test_a_real_gpu(mock_clock: MockClock, real_nvml: Nvml) -> None:
    async with sampling(real_nvml, mock_clock) as run:
        assert run.metrics.value("api_gpu_available") == 1
        used = run.metrics.value("api_gpu_memory_used_bytes", 0)
        total = run.metrics.value("api_gpu_memory_total_bytes", 0)
        assert used is not None
        assert total is not None
        assert 0 < used < total
