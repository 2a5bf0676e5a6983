from pathlib import Path

import pytest


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Where a daemon's configuration is to be written."""
    return tmp_path / "sluicegate.toml"
