from collections.abc import Iterator
from dataclasses import fields

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from sluicegate.account.ledger import AlreadySettledError, Ledger
from sluicegate.account.record import LOGGED, Record
from sluicegate.observe.metrics import Metrics
from sluicegate.outcome import Outcome
from tests.unit.observe.captured import Captured

CHAT = "/v1/chat/completions"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Book:
    """A ledger with what it writes to."""

    def __init__(self) -> None:
        self._captured = Captured("json")
        self.clock = Clock()
        self.metrics = Metrics([CHAT, "/tokenize"], "0")
        self.ledger = Ledger([self.metrics.settled, self._captured.log.settled], self.clock)

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    def lines(self) -> list[dict[str, object]]:
        return self._captured.objects()

    def close(self) -> None:
        self._captured.close()


@pytest.fixture
def book() -> Iterator[Book]:
    book = Book()
    yield book
    book.close()


def test_a_streamed_request_from_head_to_last_byte(book: Book) -> None:
    record = book.ledger.open("r1", CHAT, stream=True)
    record.queued_at = 1000.5  # the body took half a second to arrive
    record.queue_position = 2
    record.granted_at = 1002.5
    record.first_at = 1003.0
    record.status = 200
    record.prompt_tokens = 11
    record.completion_tokens = 21
    record.model = "smollm2"
    book.clock.now = 1007.5
    book.ledger.settle(record, Outcome.SERVED)

    line = book.lines()[0]
    del line["time"]
    assert line == {
        "level": "info",
        "event": "request",
        "request_id": "r1",
        "outcome": "served",
        "status": 200,
        "endpoint": CHAT,
        "model": "smollm2",
        "stream": True,
        "queue_position": 2,
        "queue_s": 2.0,
        "ttft_s": 3.0,
        "total_s": 7.5,
        "prompt_tokens": 11,
        "completion_tokens": 21,
        "tokens_per_s": 4.2,
    }
    assert book.value("api_requests_total", endpoint=CHAT, status="200") == 1
    assert book.value("api_outcomes_total", outcome="served") == 1
    assert book.value("api_request_latency_seconds_sum", endpoint=CHAT) == 7.5
    assert book.value("api_queue_wait_seconds_sum") == 2.0
    assert book.value("api_time_to_first_token_seconds_sum") == 3.0
    assert book.value("api_inter_token_seconds_sum") == pytest.approx(4.5 / 20)
    assert book.value("api_tokens_per_second_sum") == pytest.approx(4.2)
    assert book.value("api_tokens_total", kind="prompt") == 11
    assert book.value("api_tokens_total", kind="completion") == 21


def test_a_second_outcome_is_refused_and_counts_nothing(book: Book) -> None:
    record = book.ledger.open("r1", CHAT)
    book.ledger.settle(record, Outcome.CLIENT_GONE_QUEUED)
    for again in (Outcome.SERVED, Outcome.CLIENT_GONE_QUEUED):
        with pytest.raises(AlreadySettledError, match="r1 is client_gone_queued already"):
            book.ledger.settle(record, again)
    assert record.outcome is Outcome.CLIENT_GONE_QUEUED
    assert (book.ledger.opened, book.ledger.settled, book.ledger.open_count) == (1, 1, 0)
    assert book.value("api_outcomes_total", outcome="served") == 0
    assert book.value("api_outcomes_total", outcome="client_gone_queued") == 1
    assert len(book.lines()) == 1


def test_open_and_settled_are_counted(book: Book) -> None:
    records = [book.ledger.open(f"r{number}", CHAT) for number in range(3)]
    assert (book.ledger.opened, book.ledger.settled, book.ledger.open_count) == (3, 0, 3)
    book.ledger.settle(records[1], Outcome.SERVED)
    assert (book.ledger.opened, book.ledger.settled, book.ledger.open_count) == (3, 1, 2)
    assert repr(book.ledger) == "<Ledger opened=3 settled=1>"


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_is_counted_once_and_logged_once(book: Book, outcome: Outcome) -> None:
    record = book.ledger.open("r1", CHAT)
    record.status = 503
    book.ledger.settle(record, outcome)
    assert [line["outcome"] for line in book.lines()] == [outcome.value]
    assert sum(book.value("api_outcomes_total", outcome=each) or 0 for each in Outcome) == 1
    assert book.value("api_outcomes_total", outcome=outcome) == 1
    assert book.value("api_requests_total", endpoint=CHAT, status="503") == 1


def test_requests_and_outcomes_add_up(book: Book) -> None:
    for number, outcome in enumerate(list(Outcome) * 20):
        record = book.ledger.open(f"r{number}", [CHAT, "/tokenize", "/nowhere"][number % 3])
        record.status = [200, 429, 503, None][number % 4]
        book.ledger.settle(record, outcome)
        book.lines()
    counted = {
        name: sum(s.value for family in book.metrics.registry.collect() for s in family.samples if s.name == name)
        for name in ("api_requests_total", "api_outcomes_total")
    }
    assert counted == {"api_requests_total": 20 * len(Outcome), "api_outcomes_total": 20 * len(Outcome)}


def test_faults_of_the_engine_and_ours_are_warnings(book: Book) -> None:
    for outcome in Outcome:
        book.ledger.settle(book.ledger.open("r", CHAT), outcome)
    assert {line["outcome"] for line in book.lines() if line["level"] == "warning"} == {
        "engine_unavailable",
        "engine_error",
        "engine_truncated",
        "timeout_first_token",
        "timeout_idle",
        "timeout_total",
        "internal_error",
        "shed_exhausted",
    }


def test_shed_request_has_no_latency(book: Book) -> None:
    """A request that is refused at once has neither a latency nor a time in the queue."""
    record = book.ledger.open("r1", CHAT, stream=True)
    record.queued_at = 1000.0
    record.status = 429
    record.detail = "The queue is full."
    book.clock.now = 1000.001
    book.ledger.settle(record, Outcome.SHED_QUEUE_FULL)
    assert book.value("api_request_latency_seconds_count", endpoint=CHAT) is None
    assert book.value("api_queue_wait_seconds_count") == 0
    assert book.value("api_time_to_first_token_seconds_count") == 0
    [line] = book.lines()
    assert line["detail"] == "The queue is full."
    assert line["total_s"] == 0.001
    assert not {"queue_s", "ttft_s", "model", "tokens_per_s"} & line.keys()


@pytest.mark.parametrize("outcome", [Outcome.SHED_QUEUE_TIMEOUT, Outcome.CLIENT_GONE_QUEUED])
def test_waiting_in_vain_counts_as_waiting(book: Book, outcome: Outcome) -> None:
    record = book.ledger.open("r1", CHAT)
    record.queue_position = 0
    book.clock.now = 1120.0
    book.ledger.settle(record, outcome)
    assert book.value("api_queue_wait_seconds_sum") == 120.0
    assert book.lines()[0]["queue_s"] == 120.0


def test_shed_at_once_did_not_wait(book: Book) -> None:
    record = book.ledger.open("r1", CHAT)
    book.clock.now = 1000.5
    book.ledger.settle(record, Outcome.SHED_QUEUE_TIMEOUT)
    assert book.value("api_queue_wait_seconds_count") == 0
    assert "queue_s" not in book.lines()[0]


def test_served_without_a_slot_has_a_latency_and_no_wait(book: Book) -> None:
    record = book.ledger.open("r1", "/tokenize", received_at=999.0)
    record.status = 200
    book.ledger.settle(record, Outcome.SERVED)
    assert book.value("api_request_latency_seconds_sum", endpoint="/tokenize") == 1.0
    assert book.value("api_queue_wait_seconds_count") == 0


def test_an_end_that_the_pipeline_noted_is_kept(book: Book) -> None:
    record = book.ledger.open("r1", CHAT)
    record.granted_at = 1000.0
    record.ended_at = 1001.0
    book.clock.now = 1050.0
    book.ledger.settle(record, Outcome.SERVED)
    assert record.total_s == 1.0


@pytest.mark.parametrize(
    ("record", "inter_token_s", "tokens_per_s"),
    [
        (Record("r", CHAT, 0, stream=True, granted_at=1, first_at=2, ended_at=5, completion_tokens=4), 1.0, 1.0),
        # not a stream: its first byte says nothing about its tokens
        (Record("r", CHAT, 0, granted_at=1, first_at=5, ended_at=5, completion_tokens=4), None, 1.0),
        # one token has no gap
        (Record("r", CHAT, 0, stream=True, granted_at=1, first_at=2, ended_at=2, completion_tokens=1), None, 1.0),
        (Record("r", CHAT, 0, stream=True, granted_at=1, first_at=2, ended_at=5, completion_tokens=0), None, None),
        (Record("r", CHAT, 0, stream=True, granted_at=1, first_at=2, ended_at=5), None, None),
        (Record("r", CHAT, 0, stream=True, granted_at=1, first_at=2, ended_at=5, completion_tokens=-4), None, None),
        # nothing came, or nothing ended
        (Record("r", CHAT, 0, stream=True, granted_at=1, ended_at=5, completion_tokens=4), None, 1.0),
        (Record("r", CHAT, 0, stream=True, granted_at=1, first_at=2, completion_tokens=4), None, None),
        # no time passed, no slot was needed
        (Record("r", CHAT, 0, granted_at=1, first_at=1, ended_at=1, completion_tokens=4), None, None),
        (Record("r", CHAT, 0, first_at=1, ended_at=2, completion_tokens=4), None, None),
    ],
)
def test_speeds(record: Record, inter_token_s: float | None, tokens_per_s: float | None) -> None:
    assert record.inter_token_s == inter_token_s
    assert record.tokens_per_s == tokens_per_s


def test_times_out_of_order_are_never_negative() -> None:
    record = Record("r", CHAT, 10.0, stream=True, granted_at=9.0, first_at=8.0, ended_at=7.0)
    assert (record.queue_s, record.ttft_s, record.total_s) == (0.0, 0.0, 0.0)


def test_no_field_of_a_record_can_hold_an_answer() -> None:
    """A new field needs a decision here whether it may be logged; text fields are listed one by one."""
    texts = {field.name for field in fields(Record) if "str" in str(field.type)}
    assert texts == {"request_id", "endpoint", "client", "method", "path", "model", "model_used", "detail"}
    assert texts - set(LOGGED) == {"model_used"}


def test_every_sink_gets_each_settled_record_once() -> None:
    first: list[Record] = []
    second: list[Record] = []
    ledger = Ledger([first.append, second.append], Clock())
    one, another = ledger.open("r1", CHAT), ledger.open("r2", CHAT)
    assert list(ledger.open_records) == [one, another]
    ledger.settle(one, Outcome.SERVED)
    assert first == second == [one]
    assert list(ledger.open_records) == [another]
    with pytest.raises(AlreadySettledError):
        ledger.settle(one, Outcome.SERVED)
    assert first == second == [one]


async def test_none_open_wakes_all_waiters() -> None:
    """none_open() returns to all its callers when the last request ends."""
    ledger = Ledger([], Clock())
    await ledger.none_open()
    returned: list[int] = []

    async def wait(number: int) -> None:
        await ledger.none_open()
        returned.append(number)

    async with trio.open_nursery() as nursery:
        for _ in range(2):  # an emptied ledger can fill and empty again
            record = ledger.open("r", CHAT)
            nursery.start_soon(wait, 1)
            nursery.start_soon(wait, 2)
            await wait_all_tasks_blocked()
            assert returned == []
            ledger.settle(record, Outcome.SERVED)
            await wait_all_tasks_blocked()
            assert sorted(returned) == [1, 2]
            returned.clear()
