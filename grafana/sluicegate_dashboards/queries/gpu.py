"""The GPUs' metrics from DCGM, and those that the gateway reads from NVML itself."""

from .gateway import COMPLETION_TOKENS_BY_HOST
from .promql import rate, ratio, select, total

MEBIBYTE = 1024 * 1024
#: NVML's nvmlClocksEventReason* bits that mean slower than could be, and whether a person can do something about it.
THROTTLE_REASONS = {
    "power cap": 0x4,
    "hardware slowdown": 0x8,
    "thermal (software)": 0x20,
    "thermal (hardware)": 0x40,
    "power brake": 0x80,
}

UTILIZATION = f"{select('DCGM_FI_DEV_GPU_UTIL')} / 100"
MEMORY_USED = f"{select('DCGM_FI_DEV_FB_USED')} * {MEBIBYTE}"
MEMORY_TOTAL = (
    f"({select('DCGM_FI_DEV_FB_USED')} + {select('DCGM_FI_DEV_FB_FREE')} + {select('DCGM_FI_DEV_FB_RESERVED')})"
    f" * {MEBIBYTE}"
)
TEMPERATURE = select("DCGM_FI_DEV_GPU_TEMP")
POWER = select("DCGM_FI_DEV_POWER_USAGE")
SM_CLOCK = f"{select('DCGM_FI_DEV_SM_CLOCK')} * 1e6"
LAST_XID = select("DCGM_FI_DEV_XID_ERRORS")
#: By number, over the 5 minutes that the exporter counts; only those that there were.
XIDS = select("sluicegate:gpu_xid:count5m")
DOUBLE_BIT_ERRORS = select("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL")
TENSOR_ACTIVE = select("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE")
DRAM_ACTIVE = select("DCGM_FI_PROF_DRAM_ACTIVE")
#: DCGM counts millijoules.
ENERGY_POWER = f"{rate('DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION')} / 1000"


def throttled(bit: int) -> str:
    """1 while this bit of the clocks event reasons is set: PromQL has no bit operators."""
    return f"floor({select('DCGM_FI_DEV_CLOCKS_EVENT_REASONS')} / {bit}) % 2"


GATEWAY_AVAILABLE = select("api_gpu_available")
GATEWAY_UTILIZATION = select("api_gpu_utilization_ratio")
GATEWAY_MEMORY_USED = select("api_gpu_memory_used_bytes")
GATEWAY_MEMORY_TOTAL = select("api_gpu_memory_total_bytes")
GATEWAY_TEMPERATURE = select("api_gpu_temperature_celsius")
GATEWAY_POWER = select("api_gpu_power_watts")

# By host: DCGM's values where it is scraped, else those of the gateway.

UTILIZATION_BY_HOST = f"avg by (instance) ({UTILIZATION}) or avg by (instance) ({GATEWAY_UTILIZATION})"
TOKENS_PER_JOULE = ratio(
    COMPLETION_TOKENS_BY_HOST,
    f"({total(ENERGY_POWER, 'instance')} or {total(GATEWAY_POWER, 'instance')})",
)
