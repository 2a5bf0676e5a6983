import os
from pathlib import Path

import pytest

from sluicegate_run import cache


@pytest.mark.parametrize(
    ("environ", "directory"),
    [
        ({}, "/home/me/.cache/sluicegate"),
        ({"XDG_CACHE_HOME": "/big"}, "/big/sluicegate"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/sluicegate"),
        ({"XDG_CACHE_HOME": "/big", "SLUICEGATE_CACHE": "/mine"}, "/mine"),
        ({"SLUICEGATE_CACHE": "~/mine"}, "/home/me/mine"),
        ({"SLUICEGATE_CACHE": ""}, "/home/me/.cache/sluicegate"),
    ],
)
def test_where_the_cache_is(environ: dict[str, str], directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert cache.default_cache(environ) == Path(directory)


def test_a_relative_cache_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cache.default_cache({"SLUICEGATE_CACHE": "here"}) == tmp_path / "here"


def test_a_part_is_not_whole_while_it_is_filled(tmp_path: Path) -> None:
    seen: list[bool] = []
    part = tmp_path / "engines" / "one"
    cache.make(part, lambda directory: seen.append(cache.is_whole(directory)))
    assert seen == [False]
    assert cache.is_whole(part)
    assert [file.name for file in part.iterdir()] == ["COMPLETE"]


def test_marker_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The marker is written only after everything is on the disk."""
    part = tmp_path / "engines" / "one"
    at_sync: list[list[str]] = []
    monkeypatch.setattr(os, "sync", lambda: at_sync.append([file.name for file in part.iterdir()]))
    cache.make(part, lambda directory: (directory / "content").touch())
    assert at_sync == [["content"]]


def test_part_without_its_marker_is_a_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part whose maker was killed just before the marker counts as a leftover."""
    part = tmp_path / "engines" / "one"

    def killed(descriptor: int) -> None:
        raise SystemExit("killed")

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(SystemExit):
        cache.make(part, lambda directory: (directory / "content").touch())
    assert (part / "COMPLETE.pending").exists()
    assert not cache.is_whole(part)
    assert cache.leftovers(tmp_path) == [part]


def test_a_part_that_cannot_be_filled_is_removed(tmp_path: Path) -> None:
    part = tmp_path / "models" / "one"

    def fail(directory: Path) -> None:
        (directory / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.make(part, fail)
    assert not part.exists()


def test_making_a_part_anew_removes_what_was_there(tmp_path: Path) -> None:
    part = tmp_path / "models" / "one"
    cache.make(part, lambda directory: (directory / "old").touch())
    cache.make(part, lambda directory: (directory / "new").touch())
    assert sorted(file.name for file in part.iterdir()) == ["COMPLETE", "new"]


def test_a_part_half_removed_is_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = tmp_path / "models" / "one"
    cache.make(part, lambda directory: (directory / "content").touch())

    def killed(directory: Path) -> None:
        raise SystemExit("killed")

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(SystemExit):
        cache.discard(part)
    assert (part / "content").exists()
    assert not cache.is_whole(part)


def test_removing_what_is_not_there_is_no_fault(tmp_path: Path) -> None:
    cache.discard(tmp_path / "nothing")


def test_lock_is_free_without_a_holder(tmp_path: Path) -> None:
    """The lock is free again when no process holds its descriptor."""
    said: list[str] = []
    with cache.lock(tmp_path, said.append) as descriptor:
        inherited = os.dup(descriptor)
    # As with a program that inherited it: the file is closed here, and still locked.
    os.close(inherited)
    with cache.lock(tmp_path, said.append):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    assert said == []


def test_bytes_of_a_tree(tmp_path: Path) -> None:
    """All files count, and links are not followed."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"1234")
    (tmp_path / "a" / "b" / "two").write_bytes(b"56789")
    target = tmp_path / "elsewhere"
    target.write_bytes(b"x" * 1000)
    (tmp_path / "a" / "link").symlink_to(target)
    assert cache.bytes_under(tmp_path / "a") == 9 + len(str(target))


def test_vanished_file_counts_nothing(tmp_path: Path) -> None:
    """A file or directory that vanishes during the count adds nothing."""
    assert cache.bytes_under(tmp_path / "gone") == 0


def test_free_space_is_what_the_file_system_says(tmp_path: Path) -> None:
    state = os.statvfs(tmp_path)
    assert cache.free_bytes(tmp_path) == pytest.approx(state.f_bavail * state.f_frsize, rel=0.05)
