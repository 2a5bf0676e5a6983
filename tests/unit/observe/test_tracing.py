"""How the sending of spans ends; tests/wire/test_tracing.py has the rest."""

import queue

import pytest

from sluicegate.account.record import Record
from sluicegate.account.trace import Trace
from sluicegate.config.live import Live
from sluicegate.config.schema import Config, TracingConfig
from sluicegate.observe import tracing
from sluicegate.observe.foreign import foreign_loggers
from sluicegate.observe.tracing import Tracing
from sluicegate.outcome import Outcome
from tests.unit.observe.captured import Captured
from tests.wire.collector import open_collector

TRACE = Trace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", None, 1)


def settled() -> Record:
    return Record("r", "/v1/chat/completions", 0.0, ended_at=1.0, trace=TRACE, outcome=Outcome.SERVED)


@pytest.mark.parametrize(
    ("state", "spans", "dropped", "reason"),
    [
        ("well", 300, 0, ""),
        ("gone", 0, 300, "/v1/traces takes no spans: Transient error"),
        ("refuses", 0, 300, "/v1/traces takes no spans: Failed to export spans batch code: 404"),
        ("hangs", 0, 0, "/v1/traces does not answer; the last spans are lost"),
    ],
)
def test_the_last_spans(monkeypatch: pytest.MonkeyPatch, state: str, spans: int, dropped: int, reason: str) -> None:
    """What is queued at the end is sent, or dropped within a bound and with a reason; the library logs nothing."""
    if state != "well":
        monkeypatch.setattr(tracing, "LAST_S", 0.2)
    captured = Captured("json")
    lost: list[int] = []
    with open_collector() as collector:
        collector.status = 404 if state == "refuses" else 200
        if state == "hangs":
            collector.hold()
        config = Config(tracing=TracingConfig("http://127.0.0.1:1" if state == "gone" else collector.url))
        with foreign_loggers(captured.log):
            sender = Tracing(Live(config), lambda: 1.0, lost.append, captured.log)
            sender.start()
            for _ in range(300):
                sender.settled(settled())
            sender.close()
        assert (len(collector.spans), sum(lost)) == (spans, dropped)
        lines = captured.objects()
        collector.released.set()
    captured.close()
    assert [line["event"] for line in lines] == (["tracing_down"] if reason else [])
    assert all(reason in str(line["detail"]) for line in lines)


def test_the_log_says_when_it_fails_and_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each, however many messages fail, with the address and the reason."""
    monkeypatch.setattr(tracing, "INTERVAL_S", 0.01)
    captured = Captured("json")
    lost: queue.Queue[int] = queue.Queue()
    with open_collector() as collector:
        config = Config(tracing=TracingConfig(collector.url))
        sender = Tracing(Live(config), lambda: 1.0, lost.put, captured.log)
        sender.start()
        collector.status = 404
        for _ in range(3):
            sender.settled(settled())
            assert lost.get(timeout=60) == 1
        collector.status = 200
        sender.settled(settled())
        sender.close()
    down, up = captured.objects()
    captured.close()
    assert (down["event"], down["level"]) == ("tracing_down", "warning")
    assert (up["event"], up["level"]) == ("tracing_up", "info")
    assert str(down["detail"]).startswith(f"{collector.url}/v1/traces takes no spans: ")
    assert "404" in str(down["detail"])
