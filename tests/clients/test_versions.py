"""docs/clients.md names the versions that the tests use."""

import json
import re
from pathlib import Path

from tests.clients.install import GUIDELLM, HERE, PYTHON

DOCS = HERE.parents[1] / "docs/clients.md"


def pinned(*requirements: Path) -> set[tuple[str, str]]:
    lines = "\n".join(file.read_text() for file in requirements)
    return set(re.findall(r"^([\w-]+)==(\S+)$", lines, re.MULTILINE))


def test_docs_name_the_pinned_versions() -> None:
    packages = [json.loads((HERE / folder / "package.json").read_text()) for folder in ("node", "agents")]
    node = {pin for package in packages for pin in package["dependencies"].items()}
    rows = re.findall(r"^\| .*?`([\w@/-]+)`[^|]*\| ([\d.]+) \|", DOCS.read_text(), re.MULTILINE)
    assert len(rows) == 14
    assert set(rows) <= pinned(PYTHON, GUIDELLM) | node
    assert node <= set(rows)
