"""Who exports what: every metric and label that an expression may name."""

import csv
import re

from sluicegate.observe.metrics import Metrics
from tests.grafana.reading import ROOT

_SUFFIXES = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "info": ("_info",),
    "gauge": ("",),
}

#: Labels that the exporters give their metrics and Prometheus its targets.
LABELS = frozenset(
    {
        *("instance", "job"),
        *("endpoint", "status", "outcome", "kind", "state", "model", "version", "python", "result", "generation", "le"),
        *("model_name", "engine", "finished_reason"),
        *("gpu", "mode", "device", "fstype", "mountpoint", "name"),
        *("alertname", "alertstate", "severity"),
    }
)


def gateway() -> set[str]:
    """The gateway's own metrics, from the registry that it exposes."""
    families = Metrics(endpoints=(), version="0").registry.collect()
    return {family.name + suffix for family in families for suffix in _SUFFIXES[family.type]}


def others() -> set[str]:
    """Those of vLLM, node_exporter, Prometheus and DCGM, and what the recording rules make of them all."""
    listed = set[str]()
    for path in (*(ROOT / "prometheus" / "metrics").glob("*.txt"), ROOT / "grafana" / "metrics.txt"):
        listed.update(line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#"))
    with (ROOT / "prometheus" / "dcgm" / "sluicegate-counters.csv").open(encoding="utf-8") as counters:
        fields = {row[0] for row in csv.reader(counters) if row and not row[0].startswith("#")}
    rules = (ROOT / "prometheus" / "rules" / "recording.yml").read_text("utf-8")
    recorded = set(re.findall(r"record: (\S+)", rules))
    # The lists name a histogram without its suffixes.
    histograms = {name + suffix for name in listed for suffix in _SUFFIXES["histogram"]}
    return listed | histograms | fields | recorded | {"ALERTS"}
