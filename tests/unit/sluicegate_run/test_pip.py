from pathlib import Path

import pytest

from sluicegate_run.pip import PipOutput


def read(*lines: str) -> PipOutput:
    output = PipOutput()
    for line in lines:
        output.feed(line)
    return output


# As pip 26.3 writes it.
def test_names_the_package_that_is_being_downloaded() -> None:
    lines = (
        "Collecting regex==2026.11.15 (from -r pins.txt (line 125))",
        "  Downloading regex-2026.11.15-cp311-cp311-manylinux2014_x86_64.whl (806 kB)",
    )
    assert read(*lines).current == "regex"
    assert read(*lines, "  Using cached idna-3.20-py3-none-any.whl (70 kB)").current == "idna"


def test_sees_the_installation_begin() -> None:
    output = read("  Downloading a-1.whl (2.5 MB)")
    assert not output.installing
    output.feed("Installing collected packages: a, b")
    assert output.installing


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
    error = output.failure("vLLM", tmp_path / "log")
    assert str(error) == (
        f"pip could not install vLLM (Failed building wheel for a): read {tmp_path}/log and run it again."
    )
