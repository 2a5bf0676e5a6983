#!/usr/bin/python3
"""Stands in for NVIDIA's DCGM exporter: two GPUs that do not exist, and the counters that its file asks for.

Installed as /usr/bin/dcgm-exporter by a package of the same name. It takes the real one's flags, refuses fields that
DCGM does not know, as the real one does, and needs the host engine if it is told to use one.
"""

import argparse
import csv
import math
import signal
import socket
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

GPUS = 2
MIB = 81559
STARTED = time.time()
#: "GPU stopped processing": a program's fault, not the GPU's.
XID = 43


def _load(gpu: int) -> float:
    """A load between 0.2 and 0.9 that moves, as one does."""
    return 0.55 + 0.35 * math.sin(time.time() / 60 + gpu)


def _energy(gpu: int) -> float:
    return (time.time() - STARTED + 3600) * 400_000


#: The fields of DCGM 4 that a counters file may name here, with a plausible value: the real exporter knows about 400
#: and stops at others just the same. Names: dcgm_fields.h.
FIELDS: dict[str, Callable[[int], float]] = {
    "DCGM_FI_DEV_SM_CLOCK": lambda gpu: 1980 - 300 * _load(gpu),
    "DCGM_FI_DEV_MEM_CLOCK": lambda _: 2619,
    "DCGM_FI_DEV_GPU_TEMP": lambda gpu: 35 + 40 * _load(gpu),
    "DCGM_FI_DEV_MEMORY_TEMP": lambda gpu: 45 + 40 * _load(gpu),
    "DCGM_FI_DEV_SLOWDOWN_TEMP": lambda _: 92,
    "DCGM_FI_DEV_SHUTDOWN_TEMP": lambda _: 97,
    "DCGM_FI_DEV_GPU_MAX_OP_TEMP": lambda _: 87,
    "DCGM_FI_DEV_POWER_USAGE": lambda gpu: 90 + 600 * _load(gpu),
    "DCGM_FI_DEV_POWER_MGMT_LIMIT": lambda _: 700,
    "DCGM_FI_DEV_ENFORCED_POWER_LIMIT": lambda _: 700,
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": _energy,
    "DCGM_FI_DEV_GPU_UTIL": lambda gpu: 100 * _load(gpu),
    "DCGM_FI_DEV_MEM_COPY_UTIL": lambda gpu: 60 * _load(gpu),
    "DCGM_FI_DEV_ENC_UTIL": lambda _: 0,
    "DCGM_FI_DEV_DEC_UTIL": lambda _: 0,
    # The second GPU has had a fault, and keeps its number, as a GPU does.
    "DCGM_FI_DEV_XID_ERRORS": lambda gpu: XID if gpu == 1 else 0,
    "DCGM_FI_DEV_CLOCKS_EVENT_REASONS": lambda _: 0,
    "DCGM_FI_DEV_POWER_VIOLATION": lambda _: 0,
    "DCGM_FI_DEV_THERMAL_VIOLATION": lambda _: 0,
    "DCGM_FI_DEV_FB_TOTAL": lambda _: MIB,
    "DCGM_FI_DEV_FB_FREE": lambda _: MIB - 74000 - 600,
    "DCGM_FI_DEV_FB_USED": lambda _: 74000,
    "DCGM_FI_DEV_FB_RESERVED": lambda _: 600,
    "DCGM_FI_DEV_FB_USED_PERCENT": lambda _: 74000 / MIB,
    "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": lambda _: 0,
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": lambda _: 0,
    "DCGM_FI_DEV_ECC_SBE_AGG_TOTAL": lambda _: 0,
    "DCGM_FI_DEV_ECC_DBE_AGG_TOTAL": lambda _: 0,
    "DCGM_FI_DEV_RETIRED_PENDING": lambda _: 0,
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": lambda _: 0,
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": lambda _: 0,
    "DCGM_FI_DEV_ROW_REMAP_FAILURE": lambda _: 0,
    "DCGM_FI_DEV_ROW_REMAP_PENDING": lambda _: 0,
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": lambda _: 0,
    "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL": lambda gpu: _energy(gpu) / 1000,
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": _load,
    "DCGM_FI_PROF_SM_ACTIVE": lambda gpu: 0.9 * _load(gpu),
    "DCGM_FI_PROF_SM_OCCUPANCY": lambda gpu: 0.4 * _load(gpu),
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": lambda gpu: 0.5 * _load(gpu),
    "DCGM_FI_PROF_DRAM_ACTIVE": lambda gpu: 0.7 * _load(gpu),
    "DCGM_FI_PROF_PCIE_TX_BYTES": lambda gpu: _energy(gpu),
    "DCGM_FI_PROF_PCIE_RX_BYTES": lambda gpu: _energy(gpu),
    "DCGM_FI_PROF_NVLINK_TX_BYTES": lambda gpu: _energy(gpu),
    "DCGM_FI_PROF_NVLINK_RX_BYTES": lambda gpu: _energy(gpu),
}


def counters(path: Path) -> list[tuple[str, str, str]]:
    """The file's lines: field, type, help."""
    lines = (line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#"))
    found = []
    for row in csv.reader(lines, skipinitialspace=True):
        if len(row) != 3:
            sys.exit(f"malformed CSV record; it must have 3 fields: {row}")
        field, kind, text = (cell.strip() for cell in row)
        # Labels are constant texts beside the values, the driver's version for one.
        if kind == "label":
            continue
        if field not in FIELDS:
            sys.exit(f"could not find DCGM field; fieldName: '{field}'")
        if kind not in ("gauge", "counter"):
            sys.exit(f"could not find Prometheus metric type; type: '{kind}'")
        found.append((field, kind, text))
    return found


def metrics(wanted: list[tuple[str, str, str]]) -> str:
    """The exporter's answer, with its labels."""
    lines = []
    for field, kind, text in wanted:
        lines += [f"# HELP {field} {text}", f"# TYPE {field} {kind}"]
        for gpu in range(GPUS):
            labels = {
                "gpu": gpu,
                "UUID": f"GPU-00000000-0000-0000-0000-00000000000{gpu}",
                "pci_bus_id": f"00000000:0{gpu + 1}:00.0",
                "device": f"nvidia{gpu}",
                "modelName": "NVIDIA H100 80GB HBM3",
                "Hostname": socket.gethostname(),
                "DCGM_FI_DRIVER_VERSION": "580.95.05",
            }
            if field == "DCGM_FI_DEV_XID_ERRORS":
                labels |= (
                    {"err_code": XID, "err_msg": "GPU stopped processing"}
                    if gpu == 1
                    else {"err_code": 0, "err_msg": "No Error"}
                )
            joined = ",".join(f'{name}="{value}"' for name, value in labels.items())
            lines.append(f"{field}{{{joined}}} {FIELDS[field](gpu):f}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Check what the real one checks at its start, then serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-f", "--collectors", type=Path, default=Path("/etc/dcgm-exporter/default-counters.csv"))
    parser.add_argument("-a", "--address", default=":9400")
    parser.add_argument("-c", "--collect-interval", type=int, default=30000)
    parser.add_argument("-r", "--remote-hostengine-info", default="")
    given = parser.parse_args()
    wanted = counters(given.collectors)
    if given.remote_hostengine_info:
        host, _, port = given.remote_hostengine_info.rpartition(":")
        socket.create_connection((host, int(port)), timeout=5).close()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = {"/metrics": metrics(wanted), "/health": "KO" if not wanted else "OK"}
            body = known.get(self.path, "").encode()
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    host, _, port = given.address.rpartition(":")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ThreadingHTTPServer((host, int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
