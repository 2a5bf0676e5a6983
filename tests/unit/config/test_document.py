"""The manual: its tables are current, its examples are valid, and the output that it shows is what is printed."""

import re
from pathlib import Path

import pytest

from sluicegate import cli
from sluicegate.config.document import BEGIN, END, main, settings_tables, with_settings
from sluicegate.config.load import ConfigError, load
from sluicegate.config.settings import SETTINGS

MANUAL = Path(__file__).parents[3] / "docs" / "configuration.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", MANUAL.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
TOML = [block for language, block in BLOCKS if language == "toml"]
OUTPUT = [block for language, block in BLOCKS if language == "text"]


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for setting in SETTINGS.values():
        if setting.env:
            monkeypatch.delenv(setting.env, raising=False)
    return tmp_path


def test_the_manual_is_current() -> None:
    assert main(["--check", str(MANUAL)]) == 0


def test_a_stale_manual_is_noticed_left_alone_and_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "m.md"
    stale = MANUAL.read_text(encoding="utf-8").replace("| `max_active` |", "| `max_activ` |")
    file.write_text(stale, encoding="utf-8")
    assert main(["--check", str(file)]) == 1
    assert f"{file}: stale" in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == stale
    assert main([str(file)]) == 0
    assert file.read_text(encoding="utf-8") == MANUAL.read_text(encoding="utf-8")
    assert main(["--check", str(file)]) == 0


@pytest.mark.parametrize("text", ["", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}", f"{BEGIN}{END}{END}"])
def test_a_manual_without_its_markers_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    file = tmp_path / "m.md"
    file.write_text(text)
    assert main([str(file)]) == 2
    assert capsys.readouterr().err == f"{file}: expected one pair of markers for the settings\n"
    assert file.read_text() == text


def test_an_absent_manual(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", str(tmp_path / "m.md")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_the_manual_is_the_default(in_tmp_path: Path) -> None:
    Path("docs").mkdir()
    manual = Path("docs/configuration.md")
    manual.write_text(f"{BEGIN}{END}")
    assert main(["--check"]) == 1
    assert main([]) == 0
    assert manual.read_text() == with_settings(f"{BEGIN}{END}")


def test_help_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "usage: python -m sluicegate.config.document [-h] [--check] [FILE]" in text
    assert "Writes the tables of all settings" in text
    assert " only say whether FILE is up to date\n" in text


def test_what_stands_around_the_tables_stays() -> None:
    assert with_settings(f"before {BEGIN} old {END} after") == f"before {BEGIN}\n\n{settings_tables()}\n{END} after"


def test_every_setting_is_in_the_tables() -> None:
    rows = [line for line in settings_tables().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [setting.name for setting in SETTINGS.values()]


def test_only_the_first_example_is_broken() -> None:
    """The document's first TOML example is the broken one; the others are valid."""
    assert len(TOML) == 6
    with pytest.raises(ConfigError):
        load(TOML[0], "f.toml", {})
    for example in TOML[1:]:
        load(example, "f.toml", {})


def test_the_faults_shown_are_those_printed(
    in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = in_tmp_path / "sluicegate.toml"
    file.write_text(TOML[0])
    monkeypatch.setenv("MAX_ACTIVE", "none")
    assert cli.main(["check", "--config", file.name]) == 2
    assert capsys.readouterr().err == OUTPUT[0]


def test_the_syntax_error_shown_is_the_one_printed(in_tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = in_tmp_path / "sluicegate.toml"
    file.write_text("[admission]\nmax_active 8\n")
    assert cli.main(["check", "--config", file.name]) == 2
    assert capsys.readouterr().err == OUTPUT[1]


def test_the_configuration_shown_is_the_one_printed(
    in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = in_tmp_path / "sluicegate.toml"
    file.write_text("[admission]\nmax_active = 8\n")
    monkeypatch.setenv("QUEUE_MODE", "reject")
    assert cli.main(["check", "--show", "--config", file.name]) == 0
    verdict, *rest = OUTPUT[2].splitlines(keepends=True)
    printed = capsys.readouterr().out
    assert printed.startswith(verdict)
    assert "".join(rest) in printed
