"""Entries for journald, read back as journald reads them."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluicegate.account.record import LOGGED
from sluicegate.observe.journal import ENTRY_MAX_BYTES, INLINE_MAX_CHARS, Journal, entry
from sluicegate.observe.logs import INFO, Fields, Log


def parsed(data: bytes) -> dict[str, str]:
    """The fields of an entry, by the letter of the protocol."""
    fields: dict[str, str] = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, separator, value = line.partition(b"=")
        if not separator:
            size = int.from_bytes(data[:8], "little")
            value, end, data = data[8 : 8 + size], data[8 + size : 9 + size], data[9 + size :]
            assert end == b"\n"
        assert name.decode("ascii") not in fields
        fields[name.decode("ascii")] = value.decode()
    return fields


class Journald:
    """Its end of the socket."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(self.path)
        self.sock.setblocking(False)

    def received(self) -> list[dict[str, str]]:
        """Everything since the last call."""
        entries = []
        with contextlib.suppress(BlockingIOError):
            while True:
                entries.append(parsed(self.sock.recv(1 << 20)))
        return entries

    def stop(self) -> None:
        self.sock.close()
        os.unlink(self.path)


class Stderr:
    """A pipe in the place of standard error."""

    def __init__(self) -> None:
        self._reader, self.fd = os.pipe()
        os.set_blocking(self._reader, False)

    def lines(self) -> list[str]:
        with contextlib.suppress(BlockingIOError):
            return os.read(self._reader, 1 << 16).decode().splitlines()
        return []

    def close(self) -> None:
        os.close(self._reader)
        os.close(self.fd)


class Rig:
    """A log whose journald and whose standard error the test holds."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "socket"
        self.journald = Journald(self.path)
        self.stderr = Stderr()
        self.dropped = 0
        self.log = Log("journal", "debug", self.stderr.fd, on_drop=self._drop, journal_path=str(self.path))

    def _drop(self) -> None:
        self.dropped += 1

    def close(self) -> None:
        self.log.close()
        self.stderr.close()
        self.journald.sock.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def test_entry_has_line_priority_and_fields(rig: Rig) -> None:
    """An entry has the text line, its priority and each field by name."""
    fields = {"request_id": "abc", "outcome": "served", "status": 200, "stream": True, "queue_s": 0.25}
    rig.log.emit(INFO, "request", fields)
    assert rig.journald.received() == [
        {
            "MESSAGE": "request request_id=abc outcome=served status=200 stream=true queue_s=0.25",
            "PRIORITY": "6",
            "SYSLOG_IDENTIFIER": "sluicegate",
            "SLUICEGATE_EVENT": "request",
            "SLUICEGATE_REQUEST_ID": "abc",
            "SLUICEGATE_OUTCOME": "served",
            "SLUICEGATE_STATUS": "200",
            "SLUICEGATE_STREAM": "true",
            "SLUICEGATE_QUEUE_S": "0.25",
        }
    ]
    assert rig.stderr.lines() == []


def test_every_level_has_its_priority(rig: Rig) -> None:
    rig.log.debug("d")
    rig.log.info("i")
    rig.log.warning("w")
    rig.log.error("e")
    assert [(e["MESSAGE"], e["PRIORITY"]) for e in rig.journald.received()] == [
        ("d", "7"), ("i", "6"), ("w", "4"), ("e", "3"),
    ]  # fmt: skip
    rig.log.set_level("error")
    rig.log.warning("w")
    assert rig.journald.received() == []


def test_a_long_value_goes_by_its_length(rig: Rig) -> None:
    detail = "y" * (INLINE_MAX_CHARS + 1)
    rig.log.info("long", detail=detail)
    (received,) = rig.journald.received()
    assert received["SLUICEGATE_DETAIL"] == detail
    assert received["MESSAGE"] == f"long detail={detail}"


@given(st.dictionaries(st.from_regex(r"\A[A-Z][A-Z0-9_]{0,20}\Z"), st.text(st.characters(codec="utf-8"), max_size=600)))
def test_any_values_come_back_as_they_went(fields: dict[str, str]) -> None:
    assert parsed(entry(fields.items())) == fields


@pytest.mark.parametrize("character", ["x", "\U0010ffff", "\n", '"', "=", "😀"])
def test_no_forged_field_and_all_fields_fit(rig: Rig, character: str) -> None:
    """No value can forge a field, and an entry with every field at its longest fits."""
    fields = dict.fromkeys((*Fields.__annotations__, *LOGGED), character * 9999)
    rig.log.emit(40, character * 9999, fields)
    (received,) = rig.journald.received()
    assert received.keys() == {
        "MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "SLUICEGATE_EVENT",
        *(f"SLUICEGATE_{name.upper()}" for name in fields),
    }  # fmt: skip
    assert all(value.isprintable() for value in received.values())
    assert len(entry(received.items())) <= ENTRY_MAX_BYTES


def test_fields_that_nobody_named_are_left_out(rig: Rig) -> None:
    rig.log.emit(INFO, "request", {"prompt": "secret", "status": 200})
    assert rig.journald.received()[0].keys() == {
        "MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "SLUICEGATE_EVENT", "SLUICEGATE_STATUS",
    }  # fmt: skip


def test_stuck_journald_costs_counted_entries(rig: Rig) -> None:
    """A journald that does not read loses entries, which are counted."""
    for sent in range(100_000):
        rig.log.info("one", count=sent)
        if rig.dropped:
            break
    rig.log.info("lost")
    assert rig.dropped == 2
    assert [e["SLUICEGATE_COUNT"] for e in rig.journald.received()] == [str(number) for number in range(sent)]
    rig.log.info("back")
    assert [e["MESSAGE"] for e in rig.journald.received()] == ["back"]
    assert (rig.dropped, rig.stderr.lines()) == (2, [])


def test_while_nobody_listens_lines_go_to_standard_error(rig: Rig) -> None:
    rig.log.info("before")
    assert [e["MESSAGE"] for e in rig.journald.received()] == ["before"]
    rig.journald.stop()
    rig.log.info("meanwhile", count=1)
    (line,) = rig.stderr.lines()
    assert json.loads(line) | {"time": ""} == {"time": "", "level": "info", "event": "meanwhile", "count": 1}
    rig.journald = Journald(rig.path)
    rig.log.info("after")
    assert [e["MESSAGE"] for e in rig.journald.received()] == ["after"]
    assert (rig.dropped, rig.stderr.lines()) == (0, [])


def test_a_socket_that_was_made_anew_loses_nothing(rig: Rig) -> None:
    rig.log.info("before")
    rig.journald.stop()
    rig.journald = Journald(rig.path)
    rig.log.info("after")
    assert [e["MESSAGE"] for e in rig.journald.received()] == ["after"]
    assert rig.stderr.lines() == []


def test_without_a_journald_from_the_start(tmp_path: Path) -> None:
    stderr = Stderr()
    log = Log("journal", "info", stderr.fd, journal_path=str(tmp_path / "absent"))
    log.info("alone")
    assert '"event":"alone"' in stderr.lines()[0]
    log.close()
    stderr.close()


def test_nothing_is_sent_after_close(rig: Rig) -> None:
    """After close() nothing is sent, and what is lost is counted."""
    rig.log.close()
    rig.log.info("gone")
    assert (rig.journald.received(), rig.stderr.lines(), rig.dropped) == ([], [], 1)


def test_entry_too_large_is_not_taken(rig: Rig) -> None:
    """An entry that is too large for the socket is not written; the next one is."""
    dropped: list[None] = []
    with contextlib.closing(Journal(str(rig.path), lambda: dropped.append(None))) as journal:
        assert not journal.write(b"X=" + b"x" * (1 << 24) + b"\n")
        assert journal.write(b"X=1\n")
    assert rig.journald.received() == [{"X": "1"}]
