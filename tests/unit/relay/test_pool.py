"""Kept connections: which one is used again, which one is closed, and how many there are. On virtual time."""

import pytest
import trio
from trio.testing import MockClock

from sluicegate.relay.connection import EngineConnection
from sluicegate.relay.pool import IDLE_MAX, IDLE_S, Pool
from tests.unit.relay.scripted import ScriptedWire

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Dialling:
    """Makes wires whose engine answers once per use; keeps them to be looked at."""

    def __init__(self) -> None:
        self.wires: list[ScriptedWire] = []
        self.refuses = False

    async def __call__(self) -> ScriptedWire:
        await trio.lowlevel.checkpoint()
        if self.refuses:
            raise ConnectionRefusedError("refused")
        self.wires.append(ScriptedWire(ANSWER, ANSWER, ANSWER))
        return self.wires[-1]

    @property
    def open(self) -> int:
        return sum(not wire.closed for wire in self.wires)


@pytest.fixture
def dial() -> Dialling:
    return Dialling()


@pytest.fixture
def pool(dial: Dialling) -> Pool:
    return Pool(dial)


async def use(connection: EngineConnection) -> None:
    await connection.send(b"request")
    await connection.head()
    while await connection.body_part() is not None:
        pass


async def used(pool: Pool, count: int) -> list[EngineConnection]:
    """So many connections, used at the same time and released in order."""
    connections = [await pool.acquire() for _ in range(count)]
    for connection in connections:
        await use(connection)
    for connection in connections:
        pool.release(connection)
    return connections


async def test_a_connection_is_used_again(pool: Pool, dial: Dialling) -> None:
    first = await pool.acquire()
    assert not first.reused
    assert repr(pool) == "<Pool 1 busy, 0 idle>"
    await use(first)
    pool.release(first)
    assert (pool.busy, pool.idle) == (0, 1)
    again = await pool.acquire()
    assert again is first
    assert again.reused
    assert len(dial.wires) == 1


async def test_the_last_one_given_back_is_the_first_one_used(pool: Pool) -> None:
    *_, newest = await used(pool, 3)
    assert await pool.acquire() is newest


async def test_one_left_in_the_middle_of_an_exchange_is_closed(pool: Pool, dial: Dialling) -> None:
    connection = await pool.acquire()
    await connection.send(b"request")
    pool.release(connection)
    assert (pool.busy, pool.idle, dial.open) == (0, 0, 0)


async def test_fresh_connection_on_request(pool: Pool) -> None:
    """A fresh connection is opened if asked for, and the kept one stays."""
    (kept,) = await used(pool, 1)
    fresh = await pool.acquire(fresh=True)
    assert fresh is not kept
    assert (pool.busy, pool.idle) == (1, 1)


async def test_dead_idle_connection_is_passed_over(pool: Pool, dial: Dialling) -> None:
    """A connection that died while idle is closed, and an older one is used."""
    oldest, middle, newest = await used(pool, 3)
    for wire in dial.wires[1:]:
        wire.alive = False
    assert await pool.acquire() is oldest
    assert [wire.closed for wire in dial.wires] == [False, True, True]
    assert (pool.busy, pool.idle) == (1, 0)
    assert middle is not newest


async def test_all_died_so_a_new_one_is_opened(pool: Pool, dial: Dialling) -> None:
    await used(pool, 2)
    for wire in dial.wires:
        wire.alive = False
    fresh = await pool.acquire()
    assert not fresh.reused
    assert dial.open == 1


async def test_connection_idle_too_long_is_closed(pool: Pool, dial: Dialling, mock_clock: MockClock) -> None:
    """A connection that was idle too long is closed together with all older ones."""
    await used(pool, 3)
    mock_clock.jump(IDLE_S + 0.1)
    fresh = await pool.acquire()
    assert not fresh.reused
    assert (dial.open, pool.idle) == (1, 0)


async def test_just_within_the_limit_it_is_still_used(pool: Pool, mock_clock: MockClock) -> None:
    (kept,) = await used(pool, 1)
    mock_clock.jump(IDLE_S)
    assert await pool.acquire() is kept


async def test_surplus_connections_age(pool: Pool, dial: Dialling, mock_clock: MockClock) -> None:
    """Surplus connections grow old while another one is in use."""
    await used(pool, 2)
    mock_clock.jump(IDLE_S / 2)
    await used(pool, 1)
    mock_clock.jump(IDLE_S / 2 + 0.1)
    busy = await pool.acquire()
    assert busy.reused
    await pool.acquire()
    assert [wire.closed for wire in dial.wires] == [True, False, False]


async def test_no_more_are_kept_than_the_bound(pool: Pool, dial: Dialling) -> None:
    await used(pool, IDLE_MAX + 3)
    assert (pool.busy, pool.idle, dial.open) == (0, IDLE_MAX, IDLE_MAX)


async def test_closing_the_idle_leaves_the_busy_alone(pool: Pool, dial: Dialling) -> None:
    busy, *_ = [await pool.acquire() for _ in range(1)]
    await use(busy)
    await used(pool, 2)
    pool.close_idle()
    assert (pool.busy, pool.idle, dial.open) == (1, 0, 1)
    pool.release(busy)
    assert (pool.busy, pool.idle) == (0, 1)


async def test_an_engine_that_cannot_be_reached_costs_nothing(pool: Pool, dial: Dialling) -> None:
    dial.refuses = True
    with pytest.raises(ConnectionRefusedError):
        await pool.acquire()
    assert (pool.busy, pool.idle) == (0, 0)


async def test_cancelled_while_it_connects_it_counts_nothing(pool: Pool) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await pool.acquire()
    assert scope.cancelled_caught
    assert (pool.busy, pool.idle) == (0, 0)
