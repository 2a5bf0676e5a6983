"""The fake engine answers in the shape of recorded answers of the real one, field by field and event by event."""

from itertools import groupby

import msgspec
import pytest

from tests.engine_contract.raw import RawAnswer, RawClient, parse, post
from tests.fakes.engine import open_engine
from tests.recordings.recorded import Recorded, recordings

#: What the fake engine has no notion of; wire tests replay these recordings instead.
BEYOND_THE_FAKE = ("echo", "logprobs", "reasoning", "tools", "two_choices")
MODEL = "smollm2"


def shape(value: object) -> object:
    """`value` without what it says: keys in their order, types, and None."""
    if isinstance(value, dict):
        return [(key, shape(each)) for key, each in value.items()]
    if isinstance(value, list):
        return ["list", *(key for key, _ in groupby(map(shape, value)))]
    return type(value).__name__


def event_shapes(answer: RawAnswer) -> list[object]:
    """The shapes of its events in order, repetitions left out."""
    shapes: list[object] = []
    for event in answer.events():
        name, _, data = event.rpartition(b"data: ")
        shapes.append((name, "[DONE]" if data == b"[DONE]" else shape(msgspec.json.decode(data))))
    return [key for key, _ in groupby(shapes)]


@pytest.mark.parametrize("recording", recordings(), ids=repr)
def test_a_recording_is_a_whole_answer(recording: Recorded) -> None:
    answer = parse(recording.raw)
    assert answer is not None
    assert answer.complete
    assert answer.body
    assert all(chunk.endswith(b"\n\n") for chunk in answer.chunks)
    assert len(recording.raw) < 16_384


@pytest.mark.parametrize(
    "recording",
    [each for each in recordings() if not each.name.partition("_")[2].startswith(BEYOND_THE_FAKE)],
    ids=repr,
)
async def test_the_fake_answers_in_the_same_shape(recording: Recorded) -> None:
    real = parse(recording.raw)
    assert real is not None
    async with open_engine(model=MODEL) as engine, RawClient(engine.dial()) as client:
        fake = await client.ask(post(recording.path, {"model": MODEL, **recording.body}))
    assert fake.status == real.status
    assert [name for name, _ in fake.headers] == [name for name, _ in real.headers]
    assert fake.header("content-type") == real.header("content-type")
    if real.chunks:
        assert event_shapes(fake) == event_shapes(real)
    else:
        assert shape(fake.json()) == shape(real.json())
