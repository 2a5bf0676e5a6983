"""The gateway's wheel as it would be released, and a later one."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.deploy.playbooks import REPOSITORY

#: Where the version stands.
VERSION_FILE, VERSION = "daemon/sluicegate/__init__.py", r'^(__version__ = )".+"$'


def build(directory: Path, version: str | None = None) -> Path:
    """Build the wheel of the working tree, or of one that is the same but for its version. Takes some seconds."""
    tree = directory / "tree"
    tree.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tree)
    shutil.copytree(REPOSITORY / "daemon", tree / "daemon", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    if version:
        file = tree / VERSION_FILE
        text, replaced = re.subn(VERSION, rf'\g<1>"{version}"', file.read_text(), flags=re.MULTILINE)
        assert replaced == 1, f"{VERSION_FILE} does not say the version once, as {VERSION}"
        file.write_text(text)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(directory), str(tree)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"pip wheel failed:\n{result.stdout}{result.stderr}"
    shutil.rmtree(tree)
    [wheel] = directory.glob("*.whl")
    return wheel
