from pathlib import Path

import pytest

from grafana.sluicegate_dashboards import build


def test_the_committed_dashboards_are_what_the_source_builds() -> None:
    for path, text in build.rendered().items():
        assert path.read_text("utf-8") == text, f"{path.name} is stale: run {build.COMMAND}"


def test_building_twice_gives_the_same_bytes() -> None:
    assert build.rendered() == build.rendered()


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


def test_a_dashboard_that_nobody_builds_is_refused_and_then_removed(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build.main([])
    old = out / "sluicegate-old.json"
    old.write_text("{}")
    assert build.main(["--check"]) == 1
    assert str(old) in capsys.readouterr().err
    build.main([])
    assert not old.exists()
