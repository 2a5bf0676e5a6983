"""The cache of base images keeps one of each suite."""

from pathlib import Path

import pytest

from tests.deploy import image
from tests.deploy.outside import Outside


def test_each_suite_has_an_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Making an image removes only old images that no suite uses."""
    made = []

    def make(root: Path, suite: str, outside: Outside) -> None:
        made.append(suite)
        root.mkdir()

    monkeypatch.setenv("SLUICEGATE_CACHE", str(tmp_path))
    monkeypatch.setattr(image, "_make", make)
    old = image.cache() / "base-0123456789ab"
    old.mkdir()
    roots = {image.base_image(Outside(), suite) for _ in range(2) for suite in image.SUITES}
    assert made == list(image.SUITES)
    assert set(image.cache().glob("base-*")) == roots
