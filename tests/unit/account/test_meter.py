"""Usage out of answers and streams. That batching never matters is in tests/property/test_framing.py."""

import json
from collections.abc import Callable, Iterable

import pytest

from sluicegate.account.meter import StreamMeter, read_usage
from sluicegate.dialects.usage import Usage
from sluicegate.exchange import Dialect

from .streams import CHAT, CHAT_USAGE, CHUNK, DONE, MESSAGES, RESPONSES, STREAMS, Stream, data, delta, named

ROLE = CHAT[0]


def ticking(*times: float) -> Callable[[], float]:
    """A clock that shows these times, one after the other."""
    return iter(times).__next__


def still() -> float:
    """A clock that stands at 12."""
    return 12.0


def meter_for(dialect: Dialect = Dialect.CHAT, usage_asked: bool = False) -> StreamMeter:
    return StreamMeter(dialect, usage_asked, still, 10.0)


def relay(meter: StreamMeter, events: Iterable[bytes]) -> list[bytes]:
    return [meter.pass_on(event) for event in events]


@pytest.mark.parametrize("stream", STREAMS.values(), ids=str)
def test_who_did_not_ask_gets_all_but_the_usage_chunk(stream: Stream) -> None:
    meter = meter_for(stream.dialect)
    passed = relay(meter, stream.events)
    withheld = stream.withheld(asked=False)
    assert passed == [b"" if index in withheld else event for index, event in enumerate(stream.events)]
    assert all(out is event for out, event in zip(passed, stream.events, strict=True) if out)
    assert (meter.usage, meter.ended, meter.failed) == (stream.usage, stream.ended, stream.failed)


@pytest.mark.parametrize("stream", STREAMS.values(), ids=str)
def test_who_asked_gets_the_usage_chunk_with_a_stamp(stream: Stream) -> None:
    meter = meter_for(stream.dialect, usage_asked=True)
    passed = relay(meter, stream.events)
    for index, (out, event) in enumerate(zip(passed, stream.events, strict=True)):
        if index == stream.usage_chunk:
            stamp = out[(same := shared_start(out, event)) : len(out) - len(event) + same]
            assert out == event[:same] + stamp + event[same:]
            assert json.loads(b"{" + stamp.lstrip(b",") + b"}").keys() == {"sluicegate"}
            before, after = (json.loads(text.split(b"data: ")[1]) for text in (event, out))
            assert stream.usage is not None
            assert after == before | {
                "sluicegate": {"ttft_s": 2.0, "latency_s": 2.0, "tokens_per_second": stream.usage.completion / 2}
            }
        elif index in stream.withheld(asked=True):
            assert out == b""
        else:
            assert out is event
    assert (meter.usage, meter.ended, meter.failed) == (stream.usage, stream.ended, stream.failed)


def shared_start(one: bytes, other: bytes) -> int:
    return next(index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)


@pytest.mark.parametrize("stream", STREAMS.values(), ids=str)
def test_the_final_frame_of_who_did_not_ask(stream: Stream) -> None:
    meter = meter_for(stream.dialect)
    relay(meter, stream.events)
    frame = meter.final_frame()
    if not stream.ended or stream.failed:
        assert frame == b""
        return
    assert frame.startswith(b": sluicegate {")
    assert frame.endswith(b"}\n\n")
    assert frame.count(b"\n") == 2
    times = {"ttft_s": 2.0, "latency_s": 2.0}
    if stream.usage is not None:
        tokens = {"prompt_tokens": stream.usage.prompt, "completion_tokens": stream.usage.completion}
        times |= tokens | {"tokens_per_second": stream.usage.completion / 2}
    assert json.loads(frame.removeprefix(b": sluicegate ")) == times


def test_no_final_frame_after_a_stamped_usage() -> None:
    """The final frame is empty where the usage chunk has the stamp."""
    meter = meter_for(usage_asked=True)
    relay(meter, CHAT)
    assert meter.final_frame() == b""


def test_final_frame_without_a_usage_chunk() -> None:
    """The final frame stands in for a requested usage chunk that never came."""
    meter = meter_for(usage_asked=True)
    relay(meter, (ROLE, DONE))
    assert meter.final_frame() == b': sluicegate {"ttft_s":2.0,"latency_s":2.0}\n\n'


def test_the_final_frame_in_full() -> None:
    meter = StreamMeter(Dialect.CHAT, False, ticking(10.25, 11.0, 13.00004), 10.0)
    relay(meter, (ROLE, delta('"content":"x"'), CHAT_USAGE, DONE))
    assert meter.final_frame() == (
        b': sluicegate {"prompt_tokens":36,"completion_tokens":8,'
        b'"ttft_s":0.25,"latency_s":3.0,"tokens_per_second":2.67}\n\n'
    )


def test_no_rate_where_no_time_has_passed() -> None:
    meter = StreamMeter(Dialect.CHAT, False, still, 12.0)
    relay(meter, CHAT)
    assert b"tokens_per_second" not in meter.final_frame()
    assert b'"latency_s":0.0' in meter.final_frame()


def test_a_stream_of_nothing_but_its_end_tells_no_ttft() -> None:
    meter = meter_for()
    assert meter.pass_on(DONE) is DONE
    assert json.loads(meter.final_frame().removeprefix(b": sluicegate ")).keys() >= {"latency_s"}


def test_times_of_first_event_and_end() -> None:
    """The times are those of the first event and of the end; a comment does not count."""
    meter = StreamMeter(Dialect.CHAT, False, ticking(1.0, 2.0, 3.0, 4.0, 5.0), 0.0)
    assert meter.pass_on(b": ping\n\n") == b": ping\n\n"
    assert (meter.first_at, meter.last_at) == (None, None)
    meter.pass_on(ROLE)
    assert (meter.first_at, meter.last_at) == (2.0, 2.0)
    meter.pass_on(delta('"content":"x"'))
    assert (meter.first_at, meter.last_at) == (2.0, 2.0)
    meter.pass_on(DONE)
    assert (meter.first_at, meter.last_at) == (2.0, 3.0)
    meter.pass_on(b": ping\n\n")
    meter.pass_on(b"")
    assert (meter.first_at, meter.last_at) == (2.0, 3.0)


@pytest.mark.parametrize(
    ("dialect", "event"),
    [
        (Dialect.RESPONSES, RESPONSES[0]),
        (Dialect.RESPONSES, RESPONSES[1]),
        (Dialect.RESPONSES, named("response.queued", '"response":{}')),
        (Dialect.MESSAGES, MESSAGES[2]),
        (Dialect.CHAT, data('"error":{"message":"m"}')),
        (Dialect.CHAT, b"retry: 3000\n\n"),
    ],
)
def test_what_is_no_output_does_not_count_as_the_first(dialect: Dialect, event: bytes) -> None:
    meter = meter_for(dialect)
    assert meter.pass_on(event) is event
    assert meter.first_at is None


def test_a_second_done_is_dropped() -> None:
    meter = meter_for()
    assert meter.pass_on(ROLE + DONE + DONE + b": after\n\n") == ROLE + DONE + b": after\n\n"
    assert meter.pass_on(DONE) == b""
    assert meter.done_count == 3


def test_done_ends_no_dialect_with_its_own_end() -> None:
    """[DONE] does not end a dialect that has a final event of its own."""
    for dialect in (Dialect.RESPONSES, Dialect.MESSAGES):
        meter = meter_for(dialect)
        assert relay(meter, (DONE, DONE)) == [DONE, b""]
        assert not meter.ended


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize(
    "event",
    [
        b'event: error\ndata: {"message":"boom"}\n\n',
        b"event:error\ndata: boom\n\n",
        b'data: {"type":"error","code":null}\n\n',
        b'data: {"error" : {"message":"boom"}}\n\n',
        b'data: {"error":"boom"}\n\n',
        b'data: {"error":true}\n\n',
        b'data: {"error":500}\n\n',
        b'data: {"error":["boom"]}\n\n',
        b'data: {"error":{"message":"","code":500}}\n\n',
        b'data: {"error":{"message":"\xff"}}\n\n',
    ],
)
def test_an_error_of_the_engine_is_passed_on_and_noted(dialect: Dialect, event: bytes) -> None:
    meter = meter_for(dialect)
    meter.pass_on(ROLE)
    assert meter.pass_on(event) is event
    assert meter.failed


@pytest.mark.parametrize(
    "nothing",
    ["null", '""', '" "', "{}", "[]", "false", "0", "0.0", '{"message":"","code":null}', '[{"message":" "},{}]'],
)
@pytest.mark.parametrize("dialect", [Dialect.CHAT, Dialect.COMPLETIONS, Dialect.PLAIN])
def test_an_error_that_says_nothing_is_none(dialect: Dialect, nothing: str) -> None:
    """Some engines put one into every chunk; the stream is healthy, and its [DONE] the client's."""
    meter = meter_for(dialect)
    chunk = data(CHUNK, f'"error":{nothing}', '"choices":[{"index":0}]')
    assert relay(meter, (chunk, chunk, DONE)) == [chunk, chunk, DONE]
    assert (meter.failed, meter.ended, meter.begun) == (False, True, True)
    assert meter.final_frame()


@pytest.mark.parametrize("usage_asked", [False, True])
@pytest.mark.parametrize(
    "event",
    [
        b'data: not JSON, but "usage"\n\n',
        b'data: "usage"\n\n',
        b'data: ["usage"]\n\n',
        b'data: {"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n',  # no choices: not the usage chunk
        b'data: {"usage":{"prompt_tokens":1,"completion_tokens":1},"choices":null}\n\n',
        b'data: {"usage":' + b"[" * 100_000 + b"\n\n",
        b'event: "usage"\n\n',
        b': "usage" error [DONE]\n\n',
        b'id: 1\nretry: 5\ndata: {"type":1,"choices":"usage"}\n\n',
        b'data: {"usage"',  # a piece of an event too large to hold
        b'"usage":1},"error":{},[DONE]\n\ndata: {"choi',
    ],
)
def test_what_is_not_understood_passes_unharmed(event: bytes, usage_asked: bool) -> None:
    meter = meter_for(usage_asked=usage_asked)
    meter.pass_on(ROLE)
    assert meter.pass_on(event) is event
    assert not meter.ended
    assert not meter.failed


@pytest.mark.parametrize("counts", ["{}", '{"prompt_tokens":"1","completion_tokens":2}', '{"prompt_tokens":1}', "[]"])
def test_odd_usage_chunk_is_hidden(counts: str) -> None:
    """A usage chunk with odd counts is hidden like any other, and the last good counts stay."""
    meter = meter_for()
    meter.pass_on(data(CHUNK, '"choices":[{"index":0}]', '"usage":{"prompt_tokens":3,"completion_tokens":2}'))
    assert meter.pass_on(data(CHUNK, '"choices":[]', f'"usage":{counts}')) == b""
    assert meter.usage == Usage(3, 2)


def test_data_on_several_lines_is_stamped_in_its_last() -> None:
    meter = meter_for(usage_asked=True)
    event = (
        b'event: x}\ndata: {"choices":[],\ndata: "usage":{"prompt_tokens":1,"completion_tokens":2}\n'
        b"data: }\nid: }\ndata:\n\n"
    )
    out = meter.pass_on(event)
    stamp = b',"sluicegate":{"ttft_s":2.0,"latency_s":2.0,"tokens_per_second":1.0}'
    assert out == event.replace(b"data: }\n", b"data: " + stamp + b"}\n")


def test_huge_last_event_is_known_by_its_name() -> None:
    """The name alone marks the end if the last event is too large to hold."""
    meter = meter_for(Dialect.RESPONSES)
    piece = b'event: response.completed\ndata: {"type":"response.completed","response":{"output":[{"text":"aaa'
    assert meter.pass_on(piece) is piece
    assert (meter.ended, meter.failed, meter.usage) == (True, False, None)


def test_message_start_keeps_its_input_tokens() -> None:
    """A message_delta without input tokens keeps those of the message_start."""
    for counts in ('{"output_tokens":8}', '{"output_tokens":8,"input_tokens":0}'):
        meter = meter_for(Dialect.MESSAGES)
        relay(meter, (MESSAGES[0], named("message_delta", f'"usage":{counts}')))
        assert meter.usage == Usage(36, 8)


def test_message_without_output_has_no_usage() -> None:
    """A message that never gives its output tokens has no usage."""
    meter = meter_for(Dialect.MESSAGES)
    relay(meter, (MESSAGES[0], named("message_delta", '"usage":{"input_tokens":1}'), named("message_other", '"x":1')))
    assert meter.usage is None


def test_a_message_start_that_is_not_understood() -> None:
    meter = meter_for(Dialect.MESSAGES)
    relay(meter, (named("message_start", '"message":"m"'), named("message_delta", '"usage":{"output_tokens":1}')))
    assert meter.usage is None


@pytest.mark.parametrize(
    ("dialect", "body", "usage"),
    [
        (
            Dialect.CHAT,
            '{"choices":[],"usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2}}',
            Usage(3, 2),
        ),
        (Dialect.COMPLETIONS, '{"usage":{"prompt_tokens":3,"completion_tokens":0,"x":{}}}', Usage(3, 0)),
        (Dialect.CHAT, '{"usage":{"prompt_tokens":3,"completion_tokens":null}}', None),
        (Dialect.PLAIN, '{"data":[],"usage":{"prompt_tokens":3,"total_tokens":3}}', Usage(3, 0)),
        (Dialect.PLAIN, '{"usage":{"prompt_tokens":3,"completion_tokens":null}}', Usage(3, 0)),
        (Dialect.PLAIN, '{"text":"Hello","usage":{"type":"duration","seconds":3}}', None),
        (
            Dialect.RESPONSES,
            '{"usage":{"input_tokens":3,"input_tokens_details":{"cached_tokens":2},"output_tokens":2}}',
            Usage(3, 2),
        ),
        (Dialect.MESSAGES, '{"usage":{"input_tokens":3,"output_tokens":2}}', Usage(3, 2)),
        (
            Dialect.MESSAGES,
            '{"usage":{"input_tokens":3,"cache_read_input_tokens":4,"cache_creation_input_tokens":5,"output_tokens":2}}',
            Usage(12, 2),
        ),
        (Dialect.MESSAGES, '{"input_tokens":3}', None),  # count_tokens: nothing was generated
        (Dialect.CHAT, '{"usage":{"input_tokens":3,"output_tokens":2}}', None),
        (Dialect.CHAT, "{}", None),
        (Dialect.CHAT, '{"usage":null}', None),
        (Dialect.CHAT, '{"usage":[1]}', None),
        (Dialect.CHAT, '{"usage":{"prompt_tokens":true,"completion_tokens":1}}', None),
        (Dialect.CHAT, '{"usage":{"prompt_tokens":1.5,"completion_tokens":1}}', None),
        (Dialect.CHAT, '{"usage":{"prompt_tokens":-1,"completion_tokens":1}}', None),
        (Dialect.CHAT, '{"usage":{"prompt_tokens":"\udc80","completion_tokens":1}}', None),
        (Dialect.CHAT, "[]", None),
        (Dialect.CHAT, "", None),
        (Dialect.CHAT, "Internal Server Error", None),
        (Dialect.CHAT, '{"x":' + "[" * 100_000, None),
    ],
)
def test_usage_of_a_whole_answer(dialect: Dialect, body: str, usage: Usage | None) -> None:
    assert read_usage(dialect, body.encode(errors="surrogateescape")) == usage


def numbered(number: int) -> bytes:
    return named("response.output_text.delta", f'"sequence_number":{number}', '"delta":"a \\"sequence_number\\":99 b"')


def test_sequence_number_follows_the_last_event() -> None:
    """The next sequence number is one more than that of the latest event."""
    meter = StreamMeter(Dialect.RESPONSES, False, lambda: 1.0, 0.0)
    assert meter.next_sequence_number == 0
    for number in range(5):  # the first is looked at, the others pass unseen
        meter.pass_on(numbered(number))
        assert meter.next_sequence_number == number + 1
    meter.pass_on(numbered(5) + numbered(6))
    assert meter.next_sequence_number == 7
    meter.pass_on(b": a comment\n\n")
    assert meter.next_sequence_number == 7


def test_other_dialects_number_no_events() -> None:
    meter = StreamMeter(Dialect.CHAT, False, lambda: 1.0, 0.0)
    meter.pass_on(delta('"content":"x"'))
    meter.pass_on(delta('"content":"y"'))
    assert meter.next_sequence_number == 0
