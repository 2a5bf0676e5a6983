"""Infrastructure Health: hardware and host, for when the engine is slow or down and the load does not explain it."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from ..layout import Row, dashboard
from ..names import Uid
from ..panels import FILLING, Query, Text, series, stat, timeline
from ..queries import gpu, host
from . import shared

NO_GPU = "No GPU reading: no GPU on this host, or DCGM does not answer"
NO_HOST = "No reading from node_exporter"


def board() -> Dashboard:
    """The dashboard."""
    return dashboard(
        Uid.INFRASTRUCTURE,
        "GPUs, host, services and Prometheus itself.",
        [_targets(), _gpu(), _gpu_faults(), _host(), _disks(), _prometheus()],
    )


def _targets() -> Row:
    return Row(
        "Targets and services",
        height=8,
        width=12,
        panels=[
            timeline(
                Text(
                    "Targets up",
                    "Whether Prometheus could scrape each exporter. vLLM is scraped through the gateway, so both go "
                    "down with the gateway. The metrics of a target that is down are missing on every dashboard.",
                    "none",
                    runbook=("SluicegateTargetDown", "SluicegateGatewayNotScraped", "SluicegateGatewayDown"),
                ),
                shared.YES_NO,
                Query(host.TARGETS, "{{instance}} {{job}}"),
            ),
            timeline(
                Text(
                    "Units active",
                    "State of the installed systemd units. A unit that goes up and down is restarting; one that stays "
                    "down was stopped or has failed too often (`systemctl status UNIT`).",
                    "none",
                    empty="No unit states: the systemd collector of node_exporter is off",
                ),
                {"0": ("Not active", "red"), "1": ("Active", "green")},
                Query(host.UNITS_ACTIVE, "{{instance}} {{name}}"),
            ),
        ],
    )


def _gpu() -> Row:
    return Row(
        "GPUs",
        height=8,
        width=8,
        panels=[
            series(
                Text(
                    "GPU utilisation",
                    "Share of time with a kernel running, as DCGM and the gateway (NVML) read it. 100 % means that "
                    "the GPU is never idle, not that it is full: see Tensor and memory activity. The two sources "
                    "should agree; if they do not, one reads another GPU or is stale.",
                    "percentunit",
                    more=Uid.CAPACITY,
                    empty=NO_GPU,
                ),
                Query(gpu.UTILIZATION, "{{instance}} GPU {{gpu}}"),
                Query(gpu.GATEWAY_UTILIZATION, "{{instance}} GPU {{gpu}} (gateway)"),
                maximum=1,
                step="30s",
            ),
            series(
                Text(
                    "Tensor and memory activity",
                    "Share of cycles in which the tensor cores and the memory interface were busy. Decoding is bound "
                    "by memory, prefill by the tensor cores: memory near its top with idle tensor cores is normal "
                    "while answers are written.",
                    "percentunit",
                    empty=NO_GPU,
                ),
                Query(gpu.TENSOR_ACTIVE, "{{instance}} GPU {{gpu}} tensor"),
                Query(gpu.DRAM_ACTIVE, "{{instance}} GPU {{gpu}} memory"),
                maximum=1,
                step="30s",
            ),
            series(
                Text(
                    "GPU memory",
                    "Memory in use against all memory of the GPU (dashed), from DCGM and the gateway. vLLM takes its "
                    "share at its start and keeps it, so a flat line is normal. Memory in use while vLLM is down "
                    "belongs to an orphaned process.",
                    "bytes",
                    runbook=("SluicegateGpuMemoryFull",),
                    empty=NO_GPU,
                ),
                Query(gpu.MEMORY_USED, "{{instance}} GPU {{gpu}}"),
                Query(gpu.GATEWAY_MEMORY_USED, "{{instance}} GPU {{gpu}} (gateway)"),
                Query(gpu.MEMORY_TOTAL, "{{instance}} GPU {{gpu}} all", limit=True),
                Query(gpu.GATEWAY_MEMORY_TOTAL, "{{instance}} GPU {{gpu}} all (gateway)", limit=True),
                step="30s",
            ),
            series(
                Text(
                    "GPU temperature",
                    "The slowdown temperature depends on the GPU's model: see `nvidia-smi -q -d TEMPERATURE`. Held "
                    "back below shows when it is reached. One GPU hotter than its neighbours: check its fan and its "
                    "place in the air flow.",
                    "celsius",
                    runbook=("SluicegateGpuHot",),
                    empty=NO_GPU,
                ),
                Query(gpu.TEMPERATURE, "{{instance}} GPU {{gpu}}"),
                Query(gpu.GATEWAY_TEMPERATURE, "{{instance}} GPU {{gpu}} (gateway)"),
                step="30s",
            ),
            series(
                Text(
                    "GPU power",
                    "Power draw now, and the mean power from DCGM's energy counter, which includes peaks between two "
                    "readings. At the card's limit all the time, the clocks are reduced.",
                    "watt",
                    empty=NO_GPU,
                ),
                Query(gpu.POWER, "{{instance}} GPU {{gpu}}"),
                Query(gpu.ENERGY_POWER, "{{instance}} GPU {{gpu}} from energy"),
                Query(gpu.GATEWAY_POWER, "{{instance}} GPU {{gpu}} (gateway)"),
                step="1m",
            ),
            series(
                Text(
                    "SM clock",
                    "Clock of the GPU's cores. A fall under load is throttling (Held back below says why); a fall "
                    "without load saves power.",
                    "hertz",
                    runbook=("SluicegateGpuThrottled",),
                    empty=NO_GPU,
                ),
                Query(gpu.SM_CLOCK, "{{instance}} GPU {{gpu}}"),
                step="30s",
            ),
        ],
    )


def _gpu_faults() -> Row:
    return Row(
        "GPU faults",
        height=7,
        width=(10, 5, 4, 5, 12, 12),
        panels=[
            timeline(
                Text(
                    "Held back",
                    "Why the clocks are lower than they could be. Power cap at full load is by design; heat, hardware "
                    "slowdown and power brake are problems of cooling or power supply.",
                    "none",
                    runbook=("SluicegateGpuThrottled", "SluicegateGpuHot"),
                    empty=NO_GPU,
                ),
                {"0": ("No", "transparent"), "1": ("Yes", "red")},
                *(
                    Query(gpu.throttled(bit), f"{{{{instance}}}} GPU {{{{gpu}}}} {reason}")
                    for reason, bit in gpu.THROTTLE_REASONS.items()
                ),
            ),
            stat(
                Text(
                    "Last XID",
                    "The number of the last error that the driver reported; 0 is none. It stays until DCGM restarts, "
                    "so it may be old, and it hides earlier ones: see XIDs below. The runbook says which ones need a "
                    "reset.",
                    "none",
                    runbook=("SluicegateGpuXid", "SluicegateGpuFault"),
                    # Older versions of DCGM say 0 before the first one, newer ones nothing.
                    empty="No XID since DCGM started, or no GPU reading",
                ),
                Query(gpu.LAST_XID, "{{instance}} GPU {{gpu}}"),
                ((None, "green"), (1, "red")),
            ),
            stat(
                Text(
                    "Uncorrectable errors",
                    "Double-bit ECC errors since the GPU was last reset. After any error reset the GPU; replace it if "
                    "errors come back. Consumer cards have no ECC and show nothing.",
                    "short",
                    runbook=("SluicegateGpuMemoryErrors",),
                    empty="No ECC",
                ),
                Query(gpu.DOUBLE_BIT_ERRORS, "{{instance}} GPU {{gpu}}"),
                ((None, "green"), (1, "red")),
            ),
            timeline(
                Text(
                    "GPU seen by the gateway",
                    "Whether the gateway gets readings from NVML. No, on a host that has a GPU: the driver is "
                    "missing, or was replaced while the gateway ran.",
                    "none",
                    runbook=("SluicegateGpuLost",),
                ),
                {"0": ("No", "orange"), "1": ("Yes", "green")},
                Query(gpu.GATEWAY_AVAILABLE, "{{instance}}"),
            ),
            series(
                Text(
                    "XIDs",
                    "Errors that the driver reported, by number, each counted over the previous 5 minutes. An error "
                    "that needs a reset pages until DCGM is restarted, even when this panel no longer shows it.",
                    "short",
                    runbook=("SluicegateGpuXid", "SluicegateGpuFault"),
                    empty="No XID in this time range",
                ),
                Query(gpu.XIDS, "{{instance}} GPU {{gpu}} XID {{xid}}"),
            ),
            shared.tokens_per_joule(),
        ],
    )


def _host() -> Row:
    return Row(
        "Host",
        height=8,
        width=(8, 8, 8, 12, 12),
        panels=[
            series(
                Text(
                    "Host CPU",
                    "Share of all cores that are busy. The engine's Python needs a free core to keep the GPU busy.",
                    "percentunit",
                    empty=NO_HOST,
                ),
                Query(host.CPU_BUSY, "{{instance}}"),
                maximum=1,
                steps=FILLING,
            ),
            series(
                Text(
                    "Host memory",
                    "Memory that cannot be freed, against all memory (dashed). The page cache does not count. Near "
                    "the limit the kernel kills the largest process, usually the engine.",
                    "bytes",
                    runbook=("SluicegateHostMemoryLow",),
                    empty=NO_HOST,
                ),
                Query(host.MEMORY_USED, "{{instance}} used"),
                Query(host.MEMORY_TOTAL, "{{instance}} all", limit=True),
            ),
            series(
                Text(
                    "Pressure",
                    "Share of time in which processes waited for CPU, memory or disk. It says more than the load: "
                    "above a few percent of memory pressure the host is thrashing.",
                    "percentunit",
                    empty="No pressure figures: the kernel has none (psi=1)",
                ),
                Query(host.PRESSURE_CPU, "{{instance}} CPU"),
                Query(host.PRESSURE_MEMORY, "{{instance}} memory"),
                Query(host.PRESSURE_IO, "{{instance}} disk"),
            ),
            series(
                Text(
                    "Load against cores",
                    "Processes that run or wait, against the cores (dashed).",
                    "short",
                    empty=NO_HOST,
                ),
                Query(host.LOAD, "{{instance}} load, 1 min"),
                Query(host.CPUS, "{{instance}} cores", limit=True),
            ),
            series(
                Text(
                    "Network",
                    "Traffic of the host's own network cards. Tokens are small: megabytes a second are downloads of "
                    "models, or traffic between engines on several hosts.",
                    "Bps",
                    empty=NO_HOST,
                ),
                Query(host.RECEIVED, "{{instance}} {{device}} received"),
                Query(host.SENT, "{{instance}} {{device}} sent"),
            ),
        ],
    )


def _disks() -> Row:
    return Row(
        "Disks",
        height=8,
        width=8,
        panels=[
            series(
                Text(
                    "Disk space used",
                    "Share of each file system in use. Models and Prometheus' data grow most.",
                    "percentunit",
                    runbook=("SluicegateDiskFull", "SluicegateDiskFilling"),
                    empty=NO_HOST,
                ),
                Query(host.DISK_USED, "{{instance}} {{mountpoint}}"),
                maximum=1,
                steps=FILLING,
            ),
            series(
                Text(
                    "Inodes used",
                    "Share of each file system's inodes in use; file systems without a fixed number are not shown. "
                    "Without a free inode no file can be created, even with free space.",
                    "percentunit",
                    runbook=("SluicegateInodesFilling",),
                    empty="No file system here has a fixed number of inodes",
                ),
                Query(host.INODES_USED, "{{instance}} {{mountpoint}}"),
                maximum=1,
                steps=FILLING,
            ),
            series(
                Text(
                    "Disk busy",
                    "Share of time in which the disk was busy. At 100 % the disk limits an engine's start, which "
                    "reads the model.",
                    "percentunit",
                    empty=NO_HOST,
                ),
                Query(host.DISK_BUSY, "{{instance}} {{device}}"),
                maximum=1,
                steps=FILLING,
            ),
        ],
    )


def _prometheus() -> Row:
    return Row(
        "Prometheus itself",
        height=7,
        width=(6, 6, 6, 6, 12, 12),
        panels=[
            series(
                Text(
                    "Scrape time",
                    "The slowest scrape of each job. A target near the scrape timeout will soon be reported down.",
                    "s",
                    runbook=("SluicegateTargetDown",),
                ),
                Query(host.SCRAPE_SECONDS, "{{job}}"),
            ),
            series(
                Text(
                    "Series",
                    "Series that Prometheus holds in memory. It should be flat: growth comes from an unbounded label.",
                    "short",
                ),
                Query(host.SERIES, "{{instance}}"),
            ),
            series(
                Text(
                    "Samples by target",
                    "Samples of each scrape. A jump after an upgrade means that an exporter has more metrics than "
                    "before.",
                    "short",
                ),
                Query(host.SAMPLES, "{{job}}"),
            ),
            series(
                Text(
                    "Rule failures",
                    "Rules that could not be evaluated. Any value above 0 is an error: alerts may be missing.",
                    "suffix: /s",
                    runbook=("SluicegatePrometheusUnwell",),
                ),
                Query(host.RULE_FAILURES, "{{instance}}"),
                steps=((None, "green"), (0.001, "red")),
            ),
            series(
                Text(
                    "Stored data",
                    "Size of Prometheus' blocks on disk. They appear two hours after a first start, and stop growing "
                    "at the retention that was set.",
                    "bytes",
                    runbook=("SluicegateDiskFilling",),
                ),
                Query(host.BLOCKS, "{{instance}}"),
            ),
            timeline(
                Text(
                    "Prometheus' configuration",
                    "Whether the last change of its configuration is in effect. Refused: `promtool check config` says "
                    "why.",
                    "none",
                    runbook=("SluicegatePrometheusUnwell",),
                ),
                {"0": ("Refused", "red"), "1": ("Loaded", "green")},
                Query(host.CONFIG_LOADED, "{{instance}}"),
            ),
        ],
    )
