import json
import os
import pty
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluicegate.account.record import LOGGED, Record
from sluicegate.observe.logs import ERROR, INFO, Fields, Log, choose_format, is_journal
from sluicegate.observe.sink import LINE_MAX_BYTES
from sluicegate.outcome import Outcome
from tests.unit.observe.captured import NOON, Captured

REQUEST: dict[str, object] = {
    "request_id": "r1",
    "outcome": "served",
    "status": 200,
    "stream": True,
    "queue_s": 0.25,
    "completion_tokens": 7,
}


@pytest.fixture
def as_json() -> Iterator[Captured]:
    captured = Captured("json")
    yield captured
    captured.close()


@pytest.fixture
def as_text() -> Iterator[Captured]:
    captured = Captured("text")
    yield captured
    captured.close()


def test_json_line(as_json: Captured) -> None:
    as_json.log.emit(INFO, "request", REQUEST)
    assert as_json.lines() == [
        '{"time":"2026-01-01T12:00:00.000Z","level":"info","event":"request","request_id":"r1","outcome":"served",'
        '"status":200,"stream":true,"queue_s":0.25,"completion_tokens":7}'
    ]


def test_text_line(as_text: Captured) -> None:
    as_text.log.warning("engine_down", engine="127.0.0.1:8000", detail='no answer: "refused"', models="", seconds=0.1)
    as_text.log.info("ready")
    assert as_text.lines() == [
        '2026-01-01T12:00:00.000Z WARNING engine_down engine=127.0.0.1:8000 detail="no answer: \\"refused\\""'
        ' models="" seconds=0.1',
        "2026-01-01T12:00:00.000Z INFO    ready",
    ]


def test_time_has_milliseconds_and_follows_the_clock() -> None:
    times = iter([NOON, NOON + 0.9999, NOON + 1.25, NOON + 86400])
    captured = Captured("json", now=lambda: next(times))
    for _ in range(4):
        captured.log.info("tick")
    assert [line["time"] for line in captured.objects()] == [
        "2026-01-01T12:00:00.000Z",
        "2026-01-01T12:00:00.999Z",
        "2026-01-01T12:00:01.250Z",
        "2026-01-02T12:00:00.000Z",
    ]
    captured.close()


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warning", "error", "info", "warning"]),
        ("info", ["info", "warning", "error", "info", "warning"]),
        ("warning", ["warning", "error", "warning"]),
        ("error", ["error"]),
    ],
)
def test_levels(level: str, expected: list[str]) -> None:
    captured = Captured("json", level)
    captured.log.debug("one")
    captured.log.info("one")
    captured.log.warning("one")
    captured.log.error("one")
    for outcome in (Outcome.SHED_BUSY, Outcome.ENGINE_ERROR):
        captured.log.settled(Record("r1", "/v1/chat/completions", 0.0, outcome=outcome))
    assert [line["level"] for line in captured.objects()] == expected
    captured.close()


@pytest.mark.parametrize(("format_", "level"), [("xml", "info"), ("json", "loud"), ("auto", "info")])
def test_unknown_formats_and_levels_are_refused(format_: str, level: str) -> None:
    with pytest.raises(KeyError):
        Log(format_, level)


@pytest.mark.parametrize("format_", ["json", "text"])
def test_only_known_fields_and_plain_values_come_through(format_: str) -> None:
    captured = Captured(format_)
    careless: dict[str, object] = {
        "prompt": "my prompt",
        "authorization": "Bearer my-key",
        "detail": b"my body",
        "error": ["my list"],
        "model": {"my": "mapping"},
        "count": 1 << 80,
        "status": 200,
        "engine": None,
    }
    captured.log.emit(INFO, "request", careless)
    [line] = captured.lines()
    assert "my" not in line
    assert "bytes" in line
    assert "200" in line
    assert "engine" not in line
    captured.close()


def test_not_a_number_is_null(as_json: Captured) -> None:
    as_json.log.emit(INFO, "odd", {"seconds": float("nan"), "queue_s": float("inf")})
    assert as_json.objects()[0] | {"time": ""} == {
        "time": "", "level": "info", "event": "odd", "seconds": None, "queue_s": None,
    }  # fmt: skip


#: What would end a line, move a cursor, turn the reading direction, or break the encoder.
HOSTILE = "a\nb\r\x00\x1b[2J\x7f\x9b1m\u2028\u2029\u202e\ud800\udcff\x85\x0b\x0c"


@pytest.mark.parametrize("format_", ["json", "text"])
def test_control_characters_cannot_forge_a_line(format_: str) -> None:
    captured = Captured(format_)
    captured.log.emit(INFO, f"event{HOSTILE}", {"request_id": f"id{HOSTILE}", "detail": f"x{HOSTILE}"})
    raw = captured.raw()
    assert raw.count(b"\n") == 1
    assert raw.decode()[:-1].isprintable()
    captured.close()


@given(text=st.text(st.characters(codec=None), max_size=3000), format_=st.sampled_from(["json", "text"]))
def test_any_text_gives_one_printable_bounded_line(text: str, format_: str) -> None:
    captured = Captured(format_)
    try:
        captured.log.emit(INFO, text, dict.fromkeys(("request_id", "endpoint", "model", "detail"), text))
        raw = captured.raw()
    finally:
        captured.close()
    assert captured.dropped == 0
    assert len(raw) <= LINE_MAX_BYTES
    assert raw.endswith(b"\n")
    line = raw[:-1].decode()
    assert line.isprintable()
    if format_ == "json":
        assert json.loads(line)["level"] == "info"


@pytest.mark.parametrize("format_", ["json", "text"])
@pytest.mark.parametrize("character", ["x", "\U0010ffff", "\n", '"', "😀"])
def test_every_field_at_its_longest_still_fits_a_line(format_: str, character: str) -> None:
    captured = Captured(format_)
    captured.log.emit(ERROR, character * 9999, dict.fromkeys((*Fields.__annotations__, *LOGGED), character * 9999))
    raw = captured.raw()
    assert captured.dropped == 0
    assert raw.count(b"\n") == 1
    assert len(raw) <= LINE_MAX_BYTES
    captured.close()


def test_a_long_detail_is_cut_and_shows_it(as_json: Captured) -> None:
    as_json.log.info("long", detail="y" * 1000)
    assert as_json.objects()[0]["detail"] == "y" * 511 + "…"


def test_a_lost_line_is_counted(as_json: Captured) -> None:
    as_json.log.close()
    as_json.log.info("gone")
    assert as_json.dropped == 1
    assert as_json.lines() == []


def test_a_lost_line_needs_nobody_to_count_it() -> None:
    log = Log("json", "info", 10_000_000)
    log.info("gone")


def test_journald_gets_the_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    stat = os.fstat(writer)
    monkeypatch.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{stat.st_ino}")
    log = Log("json", "debug", writer)
    log.debug("d")
    log.info("i")
    log.warning("w")
    log.error("e")
    lines = os.read(reader, 1 << 16).splitlines()
    assert [line[:4] for line in lines] == [b"<7>{", b"<6>{", b"<4>{", b"<3>{"]
    log.close()
    os.close(reader)
    os.close(writer)


def test_only_the_very_socket_is_journald(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    assert not is_journal(2)
    assert not is_journal(10_000_000)
    monkeypatch.delenv("JOURNAL_STREAM")
    assert not is_journal(2)


def test_the_format_follows_the_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, terminal = pty.openpty()
    reader, writer = os.pipe()
    assert choose_format("auto", terminal) == "text"
    assert choose_format("auto", writer) == "json"
    assert choose_format("text", writer) == "text"
    assert choose_format("json", terminal) == "json"
    assert choose_format("journal", terminal) == "journal"
    stat = os.fstat(writer)
    monkeypatch.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{stat.st_ino}")
    assert choose_format("auto", writer) == "journal"
    assert choose_format("auto", terminal) == "text"
    assert choose_format("json", writer) == "json"
    for fd in (leader, terminal, reader, writer):
        os.close(fd)


def test_threads_write_whole_lines_side_by_side() -> None:
    reader, writer = os.pipe()
    dropped: list[None] = []
    log = Log("json", "info", writer, on_drop=lambda: dropped.append(None))
    received: list[bytes] = []

    def read() -> None:
        with open(reader, "rb") as lines:
            received.extend(lines)

    def write(thread: int) -> None:
        for number in range(300):
            log.info("side_by_side", count=number, pid=thread, detail="z" * 300)

    consumer = threading.Thread(target=read)
    consumer.start()
    producers = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join()
    log.close()
    os.close(writer)
    consumer.join()
    seen = [(line["pid"], line["count"]) for line in map(json.loads, received)]
    assert len(seen) + len(dropped) == 4 * 300
    for thread in range(4):
        mine = [number for pid, number in seen if pid == thread]
        assert mine == sorted(set(mine))
