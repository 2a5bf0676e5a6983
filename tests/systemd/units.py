"""The unit files of this repository, as text, and a file system in which systemd-analyze finds them as on a host."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SYSTEMD = Path(__file__).parents[2] / "systemd"
LIBEXEC = SYSTEMD / "libexec"
VENDOR = Path(__file__).parent / "vendor"

#: What systemd-analyze looks at beside the units themselves; on a host they come with systemd and the kernel.
TARGETS = ("sysinit", "basic", "shutdown", "sockets", "slices", "multi-user", "network", "network-online", "time-sync")
EXECUTABLES = ("/bin/kill",)


@dataclass(frozen=True)
class Line:
    section: str
    key: str
    value: str


def files() -> list[Path]:
    """Every unit and drop-in that a role copies."""
    return sorted(path for path in SYSTEMD.rglob("*") if path.suffix in (".service", ".socket", ".slice", ".conf"))


def names() -> list[str]:
    """Every unit of ours, of a template the instance `main`, and every one that gets drop-ins."""
    own = (path.name.replace("@.", "@main.") for path in files() if path.suffix != ".conf")
    return sorted([*own, *(path.name.removesuffix(".d") for path in (SYSTEMD / "dropins").iterdir())])


def lines(path: Path) -> list[Line]:
    found, section = [], ""
    for text in path.read_text().splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", text):
            section = match[1]
        elif text and not text.startswith("#"):
            key, _, value = text.partition("=")
            found.append(Line(section, key, value))
    return found


def values(unit: str, key: str) -> list[str]:
    return [line.value for line in lines(SYSTEMD / unit) if line.key == key]


def seconds(unit: str, key: str) -> float:
    (value,) = values(unit, key)
    return float(value.removesuffix("s"))


def executables() -> Iterator[str]:
    for path in [*files(), *VENDOR.iterdir()]:
        for line in lines(path):
            if line.key.startswith("Exec") and line.value:
                yield line.value.lstrip("-+!@:").split()[0]


def install(root: Path) -> None:
    """Put the units, their drop-ins, the vendors' units and stand-ins for all that they start under `root`."""
    own, vendor = root / "etc/systemd/system", root / "usr/lib/systemd/system"
    shutil.copytree(SYSTEMD / "dropins", own)
    shutil.copytree(VENDOR, vendor)
    for path in SYSTEMD.iterdir():
        if path.is_file():
            shutil.copy(path, own)
    for name in TARGETS:
        (vendor / f"{name}.target").write_text("[Unit]\n")
    for name in {*EXECUTABLES, *executables()}:
        program = root / name.lstrip("/")
        program.parent.mkdir(parents=True, exist_ok=True)
        program.touch(0o755)


def analyze(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    assert program, "systemd-analyze is missing: install Debian's package systemd."
    return subprocess.run(
        [program, "--no-pager", f"--root={root}", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
