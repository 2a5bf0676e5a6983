"""The pinned clients, in the cache: installed once for each set of versions, by the first test that needs them."""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from sluicegate_run import cache
from sluicegate_run.prepare import EnginePaths

HERE = Path(__file__).parent
PYTHON = HERE / "python/requirements.txt"
GUIDELLM = HERE / "benchmarks/guidellm.txt"


def python_clients() -> Path:
    """The Python that can import all Python clients."""
    return _installed("python", [PYTHON], functools.partial(_environment, PYTHON)) / "bin/python"


def node_clients() -> Path:
    """The node_modules with all clients for Node."""
    return _node_modules("node")


def agents() -> Path:
    """The node_modules with all coding agents."""
    return _node_modules("agents")


def guidellm(engine: EnginePaths) -> Path:
    """The program guidellm. It imports torch, and so sees the engine's packages: torch alone would be gigabytes."""
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.check_output([engine.python, "-c", ask], text=True).strip()
    fill = functools.partial(_environment, GUIDELLM, see=packages)
    return _installed(f"guidellm-{engine.python.parent.parent.name}", [GUIDELLM], fill) / "bin/guidellm"


def _node_modules(name: str) -> Path:
    recipe = [HERE / name / "package.json", HERE / name / "package-lock.json"]

    def fill(part: Path) -> None:
        for file in recipe:
            shutil.copy(file, part)
        # `npm ci` insists on packages for other platforms, which not every registry has.
        npm = ["npm", "install", "--no-save", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(npm, cwd=part, check=True)

    return _installed(name, recipe, fill) / "node_modules"


def _installed(name: str, recipe: Iterable[Path], fill: Callable[[Path], None]) -> Path:
    """The part of the cache that `fill` made by these files."""
    versions = hashlib.sha256(b"".join(file.read_bytes() for file in recipe)).hexdigest()[:12]
    root = cache.default_cache(os.environ)
    part = root / "clients" / f"{name}-{versions}"
    root.mkdir(parents=True, exist_ok=True)
    with cache.lock(root, print):
        if not cache.is_whole(part):
            cache.make(part, fill)
    return part


def _environment(requirements: Path, part: Path, *, see: str = "") -> None:
    """A virtual environment with these packages, which also sees those in the directory `see`."""
    subprocess.run([sys.executable, "-m", "venv", part], check=True)
    if see:
        (packages,) = part.glob("lib/python*/site-packages")
        (packages / "seen.pth").write_text(f"{see}\n")
    pip: list[str | Path] = [part / "bin/pip", "install", "--disable-pip-version-check", "-q", "--no-deps"]
    subprocess.run([*pip, "-r", requirements], check=True)
