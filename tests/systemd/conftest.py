import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.systemd import units

#: Puts a program of this name and Python text or shell text on the PATH that the test's programs see.
Fake = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host's file system as far as systemd-analyze reads it."""
    path = tmp_path_factory.mktemp("root")
    units.install(path)
    return path


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    path = tmp_path / "bin"
    path.mkdir()
    return path


@pytest.fixture
def fake(bin_dir: Path) -> Fake:
    def write(name: str, script: str) -> Path:
        program = bin_dir / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        return program

    return write
