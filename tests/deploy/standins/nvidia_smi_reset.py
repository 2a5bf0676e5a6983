#!/usr/bin/python3
"""Stands in for nvidia-smi with three GPUs that do not exist: lists them, and resets one that no process holds.

A GPU's device is a plain file, /dev/nvidia<minor>. As the real one it refuses to reset a GPU while a process has that
open, with status 255. What it did reset is written to RESETS, a line each: seconds since boot, and the UUIDs.
While the file BROKEN exists it fails every reset.
"""

import argparse
import glob
import os
import sys
import time
from pathlib import Path

#: Index → UUID and minor number of the device, which need not be the index.
GPUS = {0: ("GPU-aaaaaaaa-0000", 0), 1: ("GPU-bbbbbbbb-1111", 2), 2: ("GPU-cccccccc-2222", 1)}
RESETS = Path("/run/nvidia-smi.resets")
BROKEN = Path("/run/nvidia-smi.broken")


def _held(device: str) -> bool:
    for link in glob.glob("/proc/[0-9]*/fd/*"):
        try:
            if os.readlink(link) == device:
                return True
        except FileNotFoundError:
            continue
    return False


def _reset(chosen: list[int]) -> None:
    refused = [index for index in chosen if _held(f"/dev/nvidia{GPUS[index][1]}")]
    if refused or BROKEN.exists():
        print("The following GPUs could not be reset:")
        for index in refused or chosen:
            print(f"  GPU 00000000:0{index + 1}:00.0: {'In use by another client' if refused else 'Unknown Error'}")
        sys.exit(255)
    with RESETS.open("a") as log:
        log.write(f"{time.clock_gettime(time.CLOCK_MONOTONIC)} {' '.join(GPUS[index][0] for index in chosen)}\n")
    print("All done.")


def main() -> None:
    """Do what is asked; 6 if there is no such GPU, as the real one says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-i", "--id", default="")
    parser.add_argument("-q", "--query", action="store_true")
    parser.add_argument("-r", "--gpu-reset", action="store_true")
    parser.add_argument("--query-gpu", default="")
    parser.add_argument("--format", default="")
    given = parser.parse_args()
    names = given.id.split(",") if given.id else [uuid for uuid, _ in GPUS.values()]
    chosen = [index for index, (uuid, _) in GPUS.items() if uuid in names or str(index) in names]
    if len(chosen) != len(names):
        print("No devices were found")
        sys.exit(6)
    if given.gpu_reset:
        _reset(chosen)
    elif given.query_gpu:
        for index in chosen:
            fields = {"index": str(index), "uuid": GPUS[index][0], "mig.mode.current": "Disabled"}
            print(", ".join(fields[name] for name in given.query_gpu.split(",")))
    elif given.query:
        for index in chosen:
            print(f"GPU 00000000:0{index + 1}:00.0\n    GPU UUID                              : {GPUS[index][0]}")
            print(f"    Minor Number                          : {GPUS[index][1]}")


if __name__ == "__main__":
    main()
