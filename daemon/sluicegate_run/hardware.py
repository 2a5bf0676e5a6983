"""What this machine has for an engine to run on."""

import ctypes
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pynvml

from .errors import EmbeddedError

# The vLLM wheels of the package index are built for CUDA 13 since 0.33; on a driver of CUDA 12 they fail at the first
# kernel. NVML reports 13000 for 13.0.
CUDA_OF_THE_WHEELS = 13000


# What vLLM's CPU build is linked against and does not bring; without it the engine starts and knows no operator.
CPU_LIBRARY = "libnuma.so.1"


@dataclass(frozen=True)
class Hardware:
    """`gpus`: how many NVIDIA GPUs the driver shows; `cuda`: the newest CUDA it can run, as NVML counts (13000);
    `compiler`: whether C programs can be compiled here against Python's headers."""

    gpus: int
    cuda: int
    compiler: bool


NO_GPU = Hardware(gpus=0, cuda=0, compiler=False)


def look() -> Hardware:
    """Ask the driver. A machine without one has no GPU; that is no error."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return NO_GPU
    try:
        return Hardware(pynvml.nvmlDeviceGetCount(), pynvml.nvmlSystemGetCudaDriverVersion_v2(), _has_compiler())
    except pynvml.NVMLError:
        return NO_GPU
    finally:
        pynvml.nvmlShutdown()


def require_gpu_tools(hardware: Hardware) -> None:
    """What vLLM on a GPU would miss after minutes of downloading, said before."""
    if hardware.cuda < CUDA_OF_THE_WHEELS:
        raise EmbeddedError(
            f"The NVIDIA driver runs CUDA up to {_dotted(hardware.cuda)} and vLLM's wheels need "
            f"{_dotted(CUDA_OF_THE_WHEELS)}: install a newer driver, or use the CPU with `sluicegate run --cpu`."
        )
    # Triton compiles a small C launcher for its kernels when the engine starts.
    if not hardware.compiler:
        raise EmbeddedError(
            "vLLM on a GPU compiles kernels when it starts and needs a C compiler and Python's headers for that: "
            "install them (on Debian and Ubuntu: apt install gcc python3-dev) and run it again."
        )


def has_library(name: str) -> bool:
    """Whether the dynamic linker finds this library."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def require_cpu_library(found: bool) -> None:
    """What vLLM on the CPU would miss after minutes of downloading, said before."""
    if not found:
        raise EmbeddedError(
            f"vLLM on the CPU needs the library {CPU_LIBRARY}: install it (on Debian and Ubuntu: apt install libnuma1) "
            "and run it again."
        )


def _dotted(cuda: int) -> str:
    return f"{cuda // 1000}.{cuda % 1000 // 10}"


def _has_compiler() -> bool:
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return headers.is_file() and any(shutil.which(name) for name in ("cc", "gcc", "clang"))
