"""The programs that the units start: loaded as modules, or run as systemd runs them."""

import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

from tests.systemd.units import LIBEXEC


def load(name: str) -> ModuleType:
    """A new module each time, so that a test may change its constants."""
    loader = SourceFileLoader(name.replace("-", "_"), str(LIBEXEC / name))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    # dataclasses look their module up there.
    sys.modules[loader.name] = module
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def run(program: str | Path, *arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a program with `env` and nothing else in its environment, by this Python instead of the host's."""
    return subprocess.run(
        [sys.executable, "-I", str(LIBEXEC / program), *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
