"""A scrape of the engine's metrics: bounded in size and time, and with a name for everything that goes wrong."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from sluicegate.config.schema import Address, TcpAddress, UnixAddress
from sluicegate.engines import scrape as scrape_module
from sluicegate.engines.scrape import Scrape
from sluicegate.outcome import Outcome, Refusal
from tests.fakes.engine import open_engine
from tests.fakes.script import BEFORE_HEAD, Behaviour, Fault, Kind
from tests.unit.engines.servers import answer_all, none_left, serving, tcp


@asynccontextmanager
async def scraping(address: Address) -> AsyncIterator[Scrape]:
    scrape = Scrape(address)
    try:
        with trio.fail_after(10):
            yield scrape
    finally:
        await scrape.aclose()


async def refused(scrape: Scrape) -> str:
    """Why there are no metrics, as clients are told; the log is told the address, too."""
    with pytest.raises(Refusal) as caught:
        await scrape(None)
    refusal = caught.value
    assert (refusal.outcome, refusal.status, refusal.retry_after_s) == (Outcome.ENGINE_UNAVAILABLE, 503, 5)
    address = str(scrape.address)
    assert (address in refusal.message, address in refusal.detail) == (False, True)
    return refusal.message


async def test_text_and_content_type_are_passed_on(tmp_path: Path) -> None:
    """The engine's text and content type pass unchanged, over TCP and over a Unix socket."""
    async with open_engine() as engine:
        addresses: list[Address] = [tcp(await engine.listen_tcp()), UnixAddress(f"{tmp_path}/engine.sock")]
        await engine.listen_unix(f"{tmp_path}/engine.sock")
        for address in addresses:
            async with scraping(address) as scrape:
                body, content_type = await scrape(None)
                assert b'vllm:num_requests_running{engine="0",model_name="fake-model"} 0.0' in body
                assert content_type == "text/plain; version=1.0.0; charset=utf-8"


async def test_scrape_carries_the_key() -> None:
    """vLLM leaves /metrics open; a proxy in front of it may not."""
    async with open_engine() as engine:
        scrape = Scrape(tcp(await engine.listen_tcp()), lambda: b"Bearer sesame")
        await scrape(None)
        await scrape.aclose()
        assert engine.seen[0].header("authorization") == "Bearer sesame"


async def test_one_connection_serves_many_scrapes() -> None:
    """Concurrent scrapes share one connection."""
    async with open_engine() as engine, scraping(tcp(await engine.listen_tcp())) as scrape:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(scrape, None)
        assert engine.accepted == 1


@pytest.mark.parametrize(
    ("accept", "asked"),
    [
        (None, "text/plain; version=0.0.4"),
        ("*/*, secret", "text/plain; version=0.0.4"),
        (
            "application/openmetrics-text;version=1.0.0,*/*",
            "application/openmetrics-text; version=1.0.0, text/plain; q=0.5",
        ),
    ],
)
async def test_accept_header_is_normalized(accept: str | None, asked: str) -> None:
    """The engine is asked for the client's format in the gateway's own words."""
    async with open_engine() as engine, scraping(tcp(await engine.listen_tcp())) as scrape:
        await scrape(accept)
        (seen,) = engine.seen
        assert seen.header("accept") == asked
        assert seen.header("accept-encoding") == "identity"


async def test_nobody_listens(tmp_path: Path) -> None:
    async with scraping(UnixAddress(f"{tmp_path}/nobody.sock")) as scrape:
        assert await refused(scrape) == "The engine cannot be reached."


async def test_an_engine_that_fails_and_then_does_not() -> None:
    async with open_engine() as engine, scraping(tcp(await engine.listen_tcp())) as scrape:
        engine.script.probes = Behaviour(fault=Fault(Kind.STATUS, status=500))
        assert "answers /metrics with 500" in await refused(scrape)
        engine.script.probes = Behaviour(fault=Fault(Kind.RESET, BEFORE_HEAD))
        assert "cannot be reached" in await refused(scrape)
        engine.script.probes = Behaviour()
        assert (await scrape(None))[0]


@pytest.mark.parametrize("fault", [Fault(Kind.STALL, BEFORE_HEAD), Fault(Kind.STALL)], ids=["no head", "half a body"])
async def test_an_engine_that_does_not_answer(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape_module, "SCRAPE_TIMEOUT_S", 0.2)
    async with open_engine() as engine, scraping(tcp(await engine.listen_tcp())) as scrape:
        engine.script.probes = Behaviour(fault=fault)
        assert "did not tell its metrics within 0.2 s" in await refused(scrape)
        await none_left(engine)


async def test_an_answer_without_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape_module, "SCRAPE_TIMEOUT_S", 0.3)

    async def pour(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"x" * 65536)

    async with serving(pour) as address, scraping(address) as scrape:
        assert "did not tell its metrics" in await refused(scrape)


async def test_answer_over_the_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large answer is passed on; an answer over the bound is refused."""
    monkeypatch.setattr(scrape_module, "SCRAPE_MAX_BYTES", 100_000)
    for size in (100_000, 100_001):
        async with serving(partial(answer_all, b"x" * size)) as address, scraping(address) as scrape:
            if size == 100_000:
                assert await scrape(None) == (b"x" * size, "text/plain; charset=utf-8")
            else:
                assert "tells more than 100000 bytes of metrics" in await refused(scrape)


async def test_it_can_be_closed_unused_and_twice() -> None:
    scrape = Scrape(TcpAddress("127.0.0.1", 1))
    await scrape.aclose()
    await scrape.aclose()
