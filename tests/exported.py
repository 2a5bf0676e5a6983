"""Which service exports what: every metric that Prometheus can scrape from a host."""

from pathlib import Path

from sluicegate.observe.metrics import Metrics

PROMETHEUS = Path(__file__).parents[1] / "prometheus"

_SUFFIXES = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "info": ("_info",),
    "gauge": ("",),
}


def exported() -> set[str]:
    """The metrics of the gateway, DCGM, vLLM, node_exporter and Prometheus."""
    names = gateway() | {row[0] for row in counters()}
    return names.union(*(listed(path) for path in (PROMETHEUS / "metrics").glob("*.txt")))


def gateway() -> set[str]:
    """The gateway's own metrics, from the registry that it exposes."""
    families = Metrics(endpoints=(), version="0").registry.collect()
    return {family.name + suffix for family in families for suffix in _SUFFIXES[family.type]}


def counters() -> list[list[str]]:
    """The rows that DCGM's exporter is configured with: field, kind, help text."""
    lines = (PROMETHEUS / "dcgm" / "sluicegate-counters.csv").read_text("utf-8").splitlines()
    return [[cell.strip() for cell in line.split(",")] for line in lines if line and not line.startswith("#")]


def listed(path: Path) -> set[str]:
    """The names in a list of metrics, with what a histogram of that name is made of: lists name it without suffixes."""
    names = {line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")}
    return names | {name + suffix for name in names for suffix in _SUFFIXES["histogram"]}
