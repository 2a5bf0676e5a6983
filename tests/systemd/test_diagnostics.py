"""sluicegate-diagnostics: it ends in time, stays small, and keeps secrets to itself."""

import os
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests.systemd.conftest import Fake
from tests.systemd.programs import load, run

UNIT = "vllm@main.service"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, bin_dir: Path, tmp_path: Path) -> ModuleType:
    monkeypatch.setenv("PATH", str(bin_dir))
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}:{tmp_path}/diagnostics")
    (tmp_path / "diagnostics").mkdir()
    return load("sluicegate-diagnostics")


def reports(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "diagnostics").iterdir())


def report(tmp_path: Path) -> str:
    (path,) = reports(tmp_path)
    assert path.name.startswith(f"{UNIT}-2")
    assert path.suffix == ".txt"
    return path.read_text()


def test_it_holds_what_the_commands_said(bin_dir: Path, tmp_path: Path, fake: Fake) -> None:
    for name in ("systemctl", "journalctl", "nvidia-smi", "ss", "free", "df", "readlink"):
        fake(name, f'echo "{name} was asked for $*"')
    state = tmp_path / "diagnostics"
    state.mkdir()
    done = run("sluicegate-diagnostics", UNIT, env={"PATH": str(bin_dir), "STATE_DIRECTORY": str(state)})
    assert (done.returncode, done.stderr) == (0, "")
    text = report(tmp_path)
    assert done.stdout == f"The diagnostics of {UNIT} are in {reports(tmp_path)[0]}.\n"
    assert f"journalctl was asked for --no-pager --output=short-iso-precise --lines=500 --unit={UNIT}" in text
    assert "nvidia-smi was asked for" in text
    assert "ss was asked for -ltne" in text
    assert "===== uptime\n(not run: No such file or directory)" in text


def test_a_command_that_fails_does_not_stop_the_others(program: ModuleType, tmp_path: Path, fake: Fake) -> None:
    fake("systemctl", "echo broken >&2; exit 3")
    fake("df", "echo 90%")
    assert program.main(UNIT) == 0
    assert "broken\n\n(exit status 3)" in report(tmp_path)
    assert "90%" in report(tmp_path)


@pytest.mark.parametrize(
    "script",
    [
        "exec /bin/sleep 1000",
        "while :; do echo again; done",
        "exec >&- 2>&-; exec /bin/sleep 1000",
        "/bin/sleep 1000 & echo started",
    ],
    ids=["silent", "endless", "output closed", "child left behind"],
)
def test_a_command_that_does_not_end_is_stopped(
    program: ModuleType, tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(program, "COMMAND_S", 0.3)
    fake("nvidia-smi", script)
    fake("free", "echo still asked")
    start = time.monotonic()
    assert program.main(UNIT) == 0
    assert time.monotonic() - start < 30
    text = report(tmp_path)
    assert "(stopped: not done within 0 s)" in text
    assert "still asked" in text
    assert len(text) < 2 * program.OUTPUT_BYTES


def test_the_end_of_a_long_output_is_kept(program: ModuleType, tmp_path: Path, fake: Fake) -> None:
    fake(
        "journalctl",
        f"/usr/bin/head -c {program.OUTPUT_BYTES * 2} /dev/zero | /usr/bin/tr '\\0' '\\n'; echo the last line",
    )
    assert program.main(UNIT) == 0
    text = report(tmp_path)
    assert "(the beginning is left out)" in text
    assert "the last line" in text
    assert len(text) < 5 * program.OUTPUT_BYTES


def test_the_whole_report_has_a_deadline(
    program: ModuleType, tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "TOTAL_S", 0.0)
    fake("free", "echo never asked")
    assert program.main(UNIT) == 0
    text = report(tmp_path)
    assert text.count("(left out: the time for this report is over)") == len(program.commands(UNIT))
    assert "never asked" not in text


def test_the_newest_twenty_are_kept(program: ModuleType, tmp_path: Path) -> None:
    directory = tmp_path / "diagnostics"
    for number in range(25):
        old = directory / f"sluicegate.service-20200101T0000{number:02}Z.txt"
        old.touch()
        os.utime(old, (number, number))
    (directory / "notes").touch()
    assert program.main(UNIT) == 0
    kept = [path.name for path in reports(tmp_path) if path.suffix == ".txt"]
    assert len(kept) == program.KEEP == 20
    assert [name for name in kept if name.startswith(UNIT)]
    assert kept[0] == "sluicegate.service-20200101T000006Z.txt"
    assert (directory / "notes").exists()


@pytest.mark.parametrize(
    "text",
    [
        "HF_TOKEN=hunter22",
        "hf_token: hunter22",
        '"api_key": "hunter22"',
        "'api_key': ['hunter22']",
        "vllm serve --api-key hunter22 --port 1",
        "--hf-token=hunter22",
        "Authorization: Bearer hunter22",
        "authorization=Basic hunter22",
        "curl -H 'bearer hunter22'",
        "WEBUI_SECRET_KEY=hunter22",
        "password = hunter22",
        "saw hf_hunter22hunter22hunter22 there",
        "key sk-hunter22hunter22",
        "http://user:hunter22@gpu1:8000/",
    ],
)
def test_secrets_are_masked(program: ModuleType, tmp_path: Path, fake: Fake, text: str) -> None:
    (tmp_path / "said").write_text(f"before\n{text}\nafter\n")
    fake("journalctl", f"exec /bin/cat {tmp_path}/said")
    assert program.main(UNIT) == 0
    found = report(tmp_path)
    assert "before\n" in found
    assert "\nafter\n" in found
    assert "***" in found
    assert "hunter22" not in found


@pytest.mark.parametrize(
    "text",
    [
        "generation_tokens_total 123456",
        "max_num_batched_tokens=8192, tokenizer='Qwen/Qwen3-8B', tokenizer_mode=auto",
        "Avg generation throughput: 512.0 tokens/s",
        "http://127.0.0.1:8000/v1",
        "GET /secrets",
    ],
)
def test_what_is_no_secret_stays(program: ModuleType, text: str) -> None:
    assert program.mask(text) == text


@pytest.mark.parametrize("unit", ["../../etc/passwd", "", ".hidden", "a/b", "a b", "x" * 300, "a\n"])
def test_what_is_no_unit_writes_no_file(program: ModuleType, tmp_path: Path, unit: str) -> None:
    assert program.main(unit) == 1
    assert reports(tmp_path) == []


def test_an_escaped_instance_name_is_a_unit(program: ModuleType, tmp_path: Path) -> None:
    assert program.main("vllm@a\\x2db.service") == 0
    assert len(reports(tmp_path)) == 1


def test_a_directory_that_is_gone_is_explained(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "diagnostics").rmdir()
    assert program.main(UNIT) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_outside_of_its_unit_it_says_so() -> None:
    done = run("sluicegate-diagnostics", UNIT, env={})
    assert done.returncode == 1
    assert "start this by systemctl" in done.stderr
