"""A client that leaves, at whatever byte and in whatever manner: the engine stops working for it."""

from typing import Any

import pytest
import trio

from tests.conformance.subject import PATIENCE_S, FakeSubject, Subject
from tests.engine_contract.raw import leave
from tests.engine_contract.target import DIALECTS, Target
from tests.fakes.script import Behaviour

every_dialect = pytest.mark.parametrize("dialect", DIALECTS)
every_manner = pytest.mark.parametrize("how", ["close", "half_close", "reset"])

#: How soon the engine must be free again (seconds): what the gateway promises, and room for a busy machine.
NOTICE_S = 5.0


async def aborted(subject: FakeSubject, count: int) -> None:
    """Wait until the engine has dropped so many requests and works on none."""
    fake = subject.fake
    with trio.fail_after(NOTICE_S):
        await fake.until(lambda: (fake.aborted, fake.running, fake.waiting) == (count, 0, 0))


@every_dialect
@every_manner
async def test_a_client_that_leaves_before_the_first_byte(subject: FakeSubject, dialect: str, how: str) -> None:
    subject.fake.script.default = Behaviour(hold=trio.Event(), hold_at=0)
    async with subject.client() as client:
        await client.stream.send_all(subject.question(dialect))
        await subject.fake.until(lambda: subject.fake.running == 1)
        await leave(client.stream, how)
        await aborted(subject, 1)


@every_dialect
@every_manner
async def test_a_client_that_leaves_in_mid_stream(subject: FakeSubject, dialect: str, how: str) -> None:
    subject.fake.script.default = Behaviour(hold=trio.Event(), hold_at=6, token_interval_s=0.003)
    async with subject.client() as client:
        await client.stream.send_all(subject.question(dialect))
        await client.until_events(5)
        await leave(client.stream, how)
        await aborted(subject, 1)


@every_dialect
async def test_client_leaves_a_whole_answer(subject: FakeSubject, dialect: str) -> None:
    """A client that disconnects from an answer that is no stream aborts its request at the engine."""
    subject.fake.script.default = Behaviour(hold=trio.Event(), hold_at=6)
    async with subject.client() as client:
        await client.stream.send_all(subject.question(dialect, stream=False))
        await subject.fake.until(lambda: subject.fake.running == 1)
        await leave(client.stream, "close")
        await aborted(subject, 1)


@every_dialect
async def test_a_client_that_leaves_at_any_byte(subject: FakeSubject, dialect: str) -> None:
    """The engine has begun and is held: whatever the client has read of that, the engine is told."""
    subject.fake.script.default = Behaviour(hold=trio.Event(), hold_at=3)
    async with subject.client() as client:
        await client.stream.send_all(subject.question(dialect))
        length = len((await client.until_events(3)).raw)
    await aborted(subject, 1)
    moments = range(1, length, max(1, length // 50))
    for count, at in enumerate(moments, 2):
        async with subject.client() as client:
            await client.stream.send_all(subject.question(dialect))
            received = 0
            while received < at:
                received += len(await client.stream.receive_some(at - received))
            await leave(client.stream, ("close", "half_close", "reset")[count % 3])
            await aborted(subject, count)


# --- with the real engine ---


async def running(engine: Target, count: int) -> None:
    """Wait until the real engine says that it works on so many requests."""
    async with engine.client() as client:
        while True:
            numbers = await engine.numbers(client)
            if (numbers.running, numbers.waiting) == (count, 0):
                return


@pytest.mark.engine
@every_dialect
@every_manner
async def test_a_client_that_leaves_the_real_engine(real: Subject, dialect: str, how: str) -> None:
    endless: dict[str, Any] = {"limit": 1500, "ignore_eos": True}
    with trio.fail_after(PATIENCE_S + NOTICE_S):
        await running(real.engine, 0)
        async with await real.gateway.connect() as client:
            await client.stream.send_all(real.question(dialect, **endless))
            await client.until_events(6)
            await running(real.engine, 1)
            await leave(client.stream, how)
            with trio.fail_after(NOTICE_S):
                await running(real.engine, 0)
