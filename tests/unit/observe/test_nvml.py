"""One contract for NVML: our fake, pynvml over a fake driver library (new and old), and the real driver."""

from collections.abc import Callable, Iterator

import pytest

from sluicegate.observe.nvml import Nvml, NvmlError, PyNvml
from tests.unit.observe.fake_nvml import FakeDriver, FakeGpu, FakeNvml

LoadDriver = Callable[[FakeDriver | None], None]


@pytest.fixture(
    params=["fake", "pynvml", "pynvml on an old driver", pytest.param("real", marks=pytest.mark.gpu)],
)
def nvml(request: pytest.FixtureRequest) -> Nvml:
    if request.param == "real":
        real: Nvml = request.getfixturevalue("real_nvml")
        return real
    if request.param == "fake":
        return FakeNvml([FakeGpu(), FakeGpu()])
    load_driver: LoadDriver = request.getfixturevalue("load_driver")
    load_driver(FakeDriver([FakeGpu(), FakeGpu()], old="old" in request.param))
    return PyNvml()


@pytest.fixture
def opened(nvml: Nvml) -> Iterator[Nvml]:
    nvml.init()
    yield nvml
    nvml.shutdown()


class TestContract:
    def test_readings_are_in_range(self, opened: Nvml) -> None:
        assert opened.count() >= 1
        used, total = opened.memory_bytes(0)
        assert 0 < used < total
        assert total > 1 << 28
        assert 0 <= opened.utilization_ratio(0) <= 1
        assert 0 < opened.temperature_celsius(0) < 120
        assert 1 < opened.power_watts(0) < 2000

    def test_a_gpu_that_is_not_there(self, opened: Nvml) -> None:
        for read in (
            opened.memory_bytes,
            opened.utilization_ratio,
            opened.temperature_celsius,
            opened.power_watts,
        ):
            with pytest.raises(NvmlError):
                read(opened.count())

    def test_nothing_works_before_init_and_after_shutdown(self, nvml: Nvml) -> None:
        nvml.init()
        nvml.shutdown()
        with pytest.raises(NvmlError, match="Uninitialized"):
            nvml.count()
        with pytest.raises(NvmlError, match="Uninitialized"):
            nvml.power_watts(0)
        with pytest.raises(NvmlError, match="Uninitialized"):
            nvml.shutdown()

    def test_it_can_be_opened_again(self, nvml: Nvml) -> None:
        for _ in range(2):
            nvml.init()
            assert nvml.count() >= 1
            nvml.shutdown()


@pytest.mark.parametrize("old", [False, True])
def test_units_come_out_as_promised(load_driver: LoadDriver, old: bool) -> None:
    gpu = FakeGpu(utilization_percent=73, used=3 << 30, total=80 << 30, celsius=61, milliwatts=312_500)
    load_driver(FakeDriver([FakeGpu(), gpu], old=old))
    nvml = PyNvml()
    nvml.init()
    assert nvml.utilization_ratio(1) == 0.73
    assert nvml.memory_bytes(1) == (3 << 30, 80 << 30)
    assert nvml.temperature_celsius(1) == 61
    assert nvml.power_watts(1) == 312.5
    nvml.shutdown()


def test_what_a_gpu_does_not_support_is_our_error(load_driver: LoadDriver) -> None:
    load_driver(FakeDriver([FakeGpu(broken={"utilization", "memory", "temperature", "power"})]))
    nvml = PyNvml()
    nvml.init()
    for read in (nvml.utilization_ratio, nvml.memory_bytes, nvml.temperature_celsius, nvml.power_watts):
        with pytest.raises(NvmlError, match="Not Supported"):
            read(0)
    nvml.shutdown()


def test_a_lost_gpu_is_our_error(load_driver: LoadDriver) -> None:
    load_driver(FakeDriver([FakeGpu(lost=True)]))
    nvml = PyNvml()
    nvml.init()
    assert nvml.count() == 1
    with pytest.raises(NvmlError, match="GPU is lost"):
        nvml.power_watts(0)
    nvml.shutdown()


def test_a_host_without_a_driver(load_driver: LoadDriver) -> None:
    load_driver(None)
    with pytest.raises(NvmlError, match="NVML Shared Library Not Found"):
        PyNvml().init()


@pytest.mark.gpu
def test_readings_agree_with_nvidia_smi(real_nvml: Nvml, nvidia_smi: Callable[..., list[str]]) -> None:
    """Fields that barely move between two readings, with the room that they do need."""
    real_nvml.init()
    try:
        used, total = real_nvml.memory_bytes(0)
        celsius = real_nvml.temperature_celsius(0)
        watts = real_nvml.power_watts(0)
        smi_used, smi_total, smi_celsius, smi_watts = (
            float(value) for value in nvidia_smi("memory.used", "memory.total", "temperature.gpu", "power.draw")
        )
    finally:
        real_nvml.shutdown()
    assert total / 2**20 == pytest.approx(smi_total, abs=1)
    assert used / 2**20 == pytest.approx(smi_used, abs=64)
    assert celsius == pytest.approx(smi_celsius, abs=5)
    assert watts == pytest.approx(smi_watts, rel=0.5, abs=20)
