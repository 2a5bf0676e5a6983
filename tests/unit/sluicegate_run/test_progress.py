import io
import sys

import pytest

from sluicegate_run.progress import Progress, share


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_come_at_their_interval() -> None:
    out, clock = io.StringIO(), Clock()
    with Progress(out, every_s=5, clock=clock).bar("Downloading it", 200e6, "bytes") as bar:
        bar.update(1e6)
        clock.now += 5
        bar.update(50e6, "torch")
        clock.now += 4
        bar.update(60e6)
        clock.now += 1
        bar.update(100e6, total=400e6)
    assert out.getvalue().splitlines() == [
        "Downloading it ...",
        "Downloading it: 25% (50 of about 200 MB, torch)",
        "Downloading it: 25% (100 of about 400 MB)",
        "Downloading it: done in 10 s",
    ]


def test_plain_lines_say_when_a_step_was_not_finished() -> None:
    out, clock = io.StringIO(), Clock()

    def interrupted() -> None:
        with Progress(out, clock=clock).bar("Starting", 60, "seconds") as bar:
            clock.now += 7
            bar.update(7)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert out.getvalue().splitlines() == [
        "Starting ...",
        "Starting: 12% (7 s of about 60 s)",
        "Starting: stopped after 7 s",
    ]


@pytest.mark.parametrize(
    ("done", "total", "expected"), [(0, 10, 0), (5, 10, 0.5), (-1, 10, 0), (20, 10, 0.99), (10, 10, 0.99), (1, 0, 0)]
)
def test_only_the_end_of_a_step_is_its_end(done: float, total: float, expected: float) -> None:
    assert share(done, total) == expected


def drawn(monkeypatch: pytest.MonkeyPatch) -> tuple[Terminal, Progress]:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    return out, Progress(out)


def test_a_terminal_gets_a_bar_and_one_line_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    out, progress = drawn(monkeypatch)
    with progress.bar("Downloading [it]", 200e6, "bytes") as bar:
        bar.update(50e6, "torch")
        bar.update(100e6, total=400e6)
    progress.say("the [end]")
    text = out.getvalue()
    assert "Downloading [it]" in text
    assert "━" in text
    assert text.endswith("Downloading [it]: done in 0 s\nthe [end]\n")


def test_a_bar_says_when_its_step_was_not_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    out, progress = drawn(monkeypatch)
    with pytest.raises(KeyboardInterrupt), progress.bar("Starting", 60, "seconds"):
        raise KeyboardInterrupt
    assert out.getvalue().endswith("Starting: stopped after 0 s\n")


def test_a_terminal_without_rich_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    out, progress = drawn(monkeypatch)
    with progress.bar("Starting", 60, "seconds"):
        pass
    assert out.getvalue() == "Starting ...\nStarting: done in 0 s\n"
