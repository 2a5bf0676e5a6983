#!/usr/bin/python3
"""Stands in for NVIDIA's DCGM exporter: two GPUs that do not exist, and the counters that its file asks for.

Installed as /usr/bin/dcgm-exporter by its package. It takes the real one's flags and behaves as the facts say that are
in tests/deploy/vendor/dcgm_exporter.yml: it refuses fields that DCGM does not know, leaves profiling fields out without
DCGM's profiling module, opens the GPUs through NVML, and exits with 1 when the host engine that it is told to use does
not listen, and at the next reading when that one has gone.
"""

import argparse
import csv
import glob
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

GPUS = 2
#: Of the last architecture whose profiling fields need the module, which is a package of its own.
MODEL = "NVIDIA A100-SXM4-80GB"
PROFILING_MODULE = Path("/usr/lib/x86_64-linux-gnu/libdcgmmoduleprofiling.so.4")
MIB = 81920
STARTED = time.time()
#: "GPU stopped processing": a program's fault, not the GPU's. The second GPU has it over and over, at this distance.
XID = 43
XID_EVERY_MS = 60_000


def _load(gpu: int) -> float:
    """A load between 0.2 and 0.9 that moves, as one does."""
    return 0.55 + 0.35 * math.sin(time.time() / 60 + gpu)


def _energy(gpu: int) -> float:
    return (time.time() - STARTED + 3600) * 250_000


#: The fields of DCGM 4 that a counters file may name here, with a plausible value: the real exporter knows about 400
#: and stops at others just the same. Names: dcgm_fields.h.
FIELDS: dict[str, Callable[[int], float]] = {
    "DCGM_FI_DEV_SM_CLOCK": lambda gpu: 1410 - 300 * _load(gpu),
    "DCGM_FI_DEV_MEM_CLOCK": lambda _: 1593,
    "DCGM_FI_DEV_GPU_TEMP": lambda gpu: 35 + 40 * _load(gpu),
    "DCGM_FI_DEV_MEMORY_TEMP": lambda gpu: 45 + 40 * _load(gpu),
    "DCGM_FI_DEV_SLOWDOWN_TEMP": lambda _: 92,
    "DCGM_FI_DEV_SHUTDOWN_TEMP": lambda _: 97,
    "DCGM_FI_DEV_GPU_MAX_OP_TEMP": lambda _: 87,
    "DCGM_FI_DEV_POWER_USAGE": lambda gpu: 60 + 300 * _load(gpu),
    "DCGM_FI_DEV_POWER_MGMT_LIMIT": lambda _: 400,
    "DCGM_FI_DEV_ENFORCED_POWER_LIMIT": lambda _: 400,
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": _energy,
    "DCGM_FI_DEV_GPU_UTIL": lambda gpu: 100 * _load(gpu),
    "DCGM_FI_DEV_MEM_COPY_UTIL": lambda gpu: 60 * _load(gpu),
    "DCGM_FI_DEV_ENC_UTIL": lambda _: 0,
    "DCGM_FI_DEV_DEC_UTIL": lambda _: 0,
    # The last fault's number stays, as with a real GPU.
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


#: The exporter's own counters, and the only one of them that is known here.
XID_COUNT = "DCGM_EXP_XID_ERRORS_COUNT"

#: Fields whose values become labels of all others where the counters file says `label`.
LABELS = {"DCGM_FI_DRIVER_VERSION": "580.95.05"}


def counters(path: Path) -> list[tuple[str, str, str]]:
    """The file's lines: field, type, help."""
    lines = (line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#"))
    found = []
    for number, row in enumerate(csv.reader(lines)):
        cells = [cell.strip(" ") for cell in row]
        if len(cells) != 3:
            sys.exit(f"malformed CSV record; err: failed to parse line {number} (`{cells}`), expected 3 fields")
        field, kind, text = cells
        if field == XID_COUNT:
            found.append((field, kind, text))
            continue
        if field not in FIELDS and field not in LABELS:
            sys.exit(f"could not find DCGM field; err: unknown ExporterCounter field '{field}'")
        if field.startswith("DCGM_FI_PROF_") and not PROFILING_MODULE.exists():
            print(f"Skipping line {number} ('{field}'): metric not enabled", file=sys.stderr)
            continue
        if kind not in ("gauge", "counter", "label"):
            sys.exit(f"could not find Prometheus metric type '{kind}'")
        found.append((field, kind, text))
    return found


def metrics(wanted: list[tuple[str, str, str]], window_ms: int) -> str:
    """The exporter's answer, with its labels."""
    constant = {field: LABELS[field] for field, kind, _ in wanted if kind == "label"}
    lines = []
    for field, kind, text in wanted:
        if kind == "label":
            continue
        lines += [f"# HELP {field} {text}", f"# TYPE {field} {kind}"]
        for gpu in range(GPUS):
            labels = {
                "gpu": gpu,
                "UUID": f"GPU-00000000-0000-0000-0000-00000000000{gpu}",
                "pci_bus_id": f"00000000:0{gpu + 1}:00.0",
                "device": f"nvidia{gpu}",
                "modelName": MODEL,
                "Hostname": socket.gethostname(),
                **constant,
            }
            faulty = gpu == GPUS - 1
            if field == XID_COUNT:
                # A count in the window before now, without an XID where there was none.
                labels |= {"window_size_in_ms": window_ms, **({"xid": XID} if faulty else {})}
                value = f"{window_ms // XID_EVERY_MS if faulty else 0}"
            else:
                value = f"{FIELDS[field](gpu):f}"
            if field == "DCGM_FI_DEV_XID_ERRORS":
                labels |= (
                    {"err_code": XID, "err_msg": "GPU stopped processing"}
                    if faulty
                    else {"err_code": 0, "err_msg": "No Error"}
                )
            joined = ",".join(f'{name}="{value}"' for name, value in labels.items())
            lines.append(f"{field}{{{joined}}} {value}")
    return "\n".join(lines) + "\n"


class HostEngine:
    """A connection to the host engine, or none if `address` is empty."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        try:
            self._connection = socket.create_connection((host, int(port)), timeout=5) if address else None
        except OSError as error:
            sys.exit(f"Failed to connect to remote hostengine address={address} error={error}")
        if self._connection is not None:
            self._connection.setblocking(False)

    def check(self) -> None:
        """End the process if the host engine has gone."""
        try:
            gone = self._connection is not None and self._connection.recv(1) == b""
        except BlockingIOError:
            return
        except OSError:
            gone = True
        if gone:
            print(
                "Could not retrieve metrics: The connection to the host engine is not valid any longer", file=sys.stderr
            )
            sys.stderr.flush()
            os._exit(1)


def main() -> None:
    """Check what the real one checks at its start, then serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-f", "--collectors", type=Path, default=Path("/etc/dcgm-exporter/default-counters.csv"))
    parser.add_argument("-a", "--address", default=":9400")
    parser.add_argument("-c", "--collect-interval", type=int, default=30000)
    parser.add_argument("-r", "--remote-hostengine-info", default="")
    parser.add_argument("-x", "--xid-count-window-size", type=int, default=300_000)
    given = parser.parse_args()
    engine = HostEngine(given.remote_hostengine_info)
    # As the real one before 4.8.0; later ones open NVML only in Kubernetes.
    held = [open(path, "rb") for path in glob.glob("/dev/nvidia[0-9]*")]  # noqa: SIM115 (until it ends)
    if not PROFILING_MODULE.exists():
        print("Not collecting DCP metrics: a module of DCGM is not currently loaded", file=sys.stderr)
    wanted = counters(given.collectors)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            engine.check()
            known = {"/metrics": metrics(wanted, given.xid_count_window_size), "/health": "OK"}
            body = known.get(self.path, "").encode()
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    host, _, port = given.address.rpartition(":")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
    del held


if __name__ == "__main__":
    main()
