"""`make bench`: measure our gateway and whichever peers are here, print a table, and draw the cost of an event.

python -m tests.bench [--streams 16,64,256,512] [--peer-bin VENV/bin] [--json FILE] [--plot FILE.svg] [--rounds N]
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.gateways import Gateway, ours, peers
from tests.bench.measure import build_tools, measure


def main() -> int:
    options = _options()
    streams = [int(count) for count in options.streams.split(",")]
    with tempfile.TemporaryDirectory() as directory:
        tools = build_tools(Path(directory))
        gateways = [ours(), *peers(Path(directory), options.peer_bin)]
        rows = []
        print("warming up", file=sys.stderr, flush=True)
        measure(gateways[0], tools, streams[:2], json_requests=300)  # the first one would find a cold machine
        for done, gateway in enumerate(gateways):
            print(f"[{done + 1}/{len(gateways)}] {gateway.name} ({version(gateway)})", file=sys.stderr, flush=True)
            rows.append(measure(gateway, tools, streams))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(table(rows, streams))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    if options.plot:
        plot(rows, streams, options.plot)
    return 0


def table(rows: list[dict[str, Any]], streams: list[int]) -> str:
    """The figures as a Markdown table: a gateway a row."""
    head = ["gateway"]
    head += [f"µs CPU per event, {count} streams" for count in streams]
    head += [f"relay p50 / p99 µs, {streams[-1]}", "µs CPU per JSON request", "TTFT idle, ms p50", "memory MB", "lost"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        relay = row[f"{streams[-1]} streams"]["relay_us"]
        cells = [row["gateway"]]
        cells += [str(row[f"{count} streams"]["cpu_us_per_event"]) for count in streams]
        cells += [f"{relay['p50']} / {relay['p99']}", str(row["cpu_us_per_json"]), str(row["ttft_ms"]["p50"])]
        lost = sum(row[f"{count} streams"]["err"] for count in streams) + row["json_err"]
        lines.append([*cells, str(row["rss_mb"]), str(lost)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(rows: list[dict[str, Any]], streams: list[int], path: Path) -> None:
    """CPU per event over the number of streams, a line a gateway."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "sluicegate"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for row in rows:
        costs = [row[f"{count} streams"]["cpu_us_per_event"] for count in streams]
        axes.plot(
            streams, costs, marker="o", label=row["gateway"], linewidth=2.5 if row["gateway"] == "sluicegate" else 1
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(streams, [str(count) for count in streams])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("streams, 50 events a second each")
    axes.set_ylabel("µs of CPU per event")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def version(gateway: Gateway) -> str:
    done = subprocess.run(gateway.version, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1] if lines else "version unknown"


def machine() -> str:
    """The processor's name, cores and kernel."""
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()]
    named = [name for name in models if "CPU" in name or "EPYC" in name or "Xeon" in name or "Ryzen" in name]
    return (
        f"{named[0] if named else platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="16,64,256,512")
    parser.add_argument("--peer-bin", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
