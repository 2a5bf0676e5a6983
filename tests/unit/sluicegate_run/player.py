"""Runs a preparation, or all of `sluicegate run`, in a process of its own: player.py WHAT WORLD [ARGUMENT ...]"""

import os
import sys
from pathlib import Path

from sluicegate_run.failure import RunError
from sluicegate_run.prepare import Outside, prepare
from sluicegate_run.progress import Progress
from sluicegate_run.recipe import NO_GPU
from sluicegate_run.run import Machine, main


def play(what: str, world: Path, arguments: list[str]) -> int:
    outside = Outside(
        os.environ, world / "python", look=lambda: NO_GPU, free=lambda _: 10**12, has_library=lambda _: True
    )
    if what == "run":
        return main(arguments, Machine(outside, [str(world / "python"), "serve"]))
    try:
        prepare(world / "cache", Progress(sys.stderr), outside=outside)
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(play(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
