import os
import subprocess
import sys
from pathlib import Path

import pytest

from grafana.sluicegate_dashboards import build
from tests.grafana.reading import ROOT


def test_committed_dashboards_are_current() -> None:
    """The committed dashboards are what the source builds."""
    rendered = build.rendered()
    assert len(rendered) == 5
    for path, text in rendered.items():
        assert path.read_text("utf-8") == text, f"{path.name} is stale: run {build.COMMAND}"


@pytest.mark.parametrize("seed", ["1", "2"])
def test_another_process_builds_the_same_bytes(seed: str) -> None:
    """The order of a set differs from one process to another, and within one it is always the same."""
    check = [sys.executable, "-m", "grafana.sluicegate_dashboards.build", "--check"]
    environ = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run(check, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(build, "OUT", tmp_path / "dashboards")
    return tmp_path / "dashboards"


def test_check_names_what_is_missing_and_writes_nothing(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--check"]) == 1
    assert not out.exists()
    assert capsys.readouterr().err.count(f"not as built; run {build.COMMAND}") == 5


def test_a_build_satisfies_the_check(out: Path) -> None:
    assert build.main([]) == 0
    assert build.main(["--check"]) == 0


def test_check_finds_a_file_that_was_edited(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build.main([])
    edited = out / "sluicegate-llm.json"
    edited.write_text(edited.read_text("utf-8").replace("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"))
    capsys.readouterr()
    assert build.main(["--check"]) == 1
    assert str(edited) in capsys.readouterr().err
    assert build.main([]) == 0
    assert build.main(["--check"]) == 0


def test_leftover_dashboard_is_removed(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--check refuses a dashboard that nobody builds, and a build removes it."""
    build.main([])
    old = out / "sluicegate-old.json"
    old.write_text("{}")
    assert build.main(["--check"]) == 1
    assert str(old) in capsys.readouterr().err
    build.main([])
    assert not old.exists()
