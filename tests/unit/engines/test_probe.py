"""The probe over real sockets: health is what the engine says, and everything else has its own name."""

import contextlib
import os
import resource
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from sluicegate.config.schema import Address, TcpAddress, UnixAddress
from sluicegate.engines import probe as probe_module
from sluicegate.engines.probe import (
    PROBE_ANSWER_MAX,
    HttpProbe,
    ProbeDenied,
    ProbeImpossible,
    ProbeRefused,
    ProbeTimeout,
    ProbeUnhealthy,
)
from sluicegate.engines.scrape import Scrape
from sluicegate.outcome import Outcome, Refusal
from sluicegate.relay.wire import dialer
from sluicegate.shortage import shortage
from tests.fakes.engine import MODEL, open_engine
from tests.fakes.script import BEFORE_HEAD, Behaviour, Fault, Kind
from tests.unit.engines.servers import answer_all, none_left, serving, tcp


async def probe_once(address: Address) -> tuple[tuple[str, ...], bytes]:
    with trio.fail_after(5):
        async with HttpProbe(address) as probe:
            return await probe()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes that time out soon: real sockets know no virtual time."""
    monkeypatch.setattr(probe_module, "PROBE_TIMEOUT_S", 0.2)


async def test_ready_engine_tells_its_models(tmp_path: Path) -> None:
    """The probe works over TCP and over a Unix socket."""
    async with open_engine() as engine:
        address: Address = tcp(await engine.listen_tcp())
        models, body = await probe_once(address)
        assert models == (MODEL,)
        assert b'"object":"list"' in body
        await engine.listen_unix(f"{tmp_path}/engine.sock")
        assert await probe_once(UnixAddress(f"{tmp_path}/engine.sock")) == (models, body)


async def test_one_connection_serves_many_probes() -> None:
    async with open_engine() as engine, HttpProbe(tcp(await engine.listen_tcp())) as probe:
        for _ in range(3):
            await probe()
        assert engine.accepted == 1


async def test_closed_idle_connection_is_no_failure() -> None:
    """An engine that closes idle connections is still ready."""
    async with open_engine() as engine, HttpProbe(tcp(await engine.listen_tcp())) as probe:
        engine.keep_alive_s = 0.05
        await probe()
        await none_left(engine)
        models, _ = await probe()
        assert models == (MODEL,)


async def test_no_model_loaded_is_an_empty_list() -> None:
    async with open_engine(model="") as engine:
        models, _ = await probe_once(tcp(await engine.listen_tcp()))
        assert models == ()


async def test_an_engine_that_says_it_is_unwell() -> None:
    async with open_engine() as engine:
        engine.healthy = False
        with pytest.raises(ProbeUnhealthy, match="/health answers 503"):
            await probe_once(tcp(await engine.listen_tcp()))


@pytest.mark.parametrize(
    ("key", "says"),
    [(b"", "asks for a key: set \\[engine\\] api_key"), (b"Bearer wrong", "refuses the key of \\[engine\\] api_key")],
)
async def test_an_engine_that_asks_for_a_key(key: bytes, says: str) -> None:
    async with open_engine() as engine:
        engine.api_key = "sesame"
        async with HttpProbe(tcp(await engine.listen_tcp()), lambda: key) as probe:
            with pytest.raises(ProbeDenied, match=says):
                await probe()
            key = b"Bearer sesame"  # as after a reload
            assert (await probe())[0] == (MODEL,)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "unix"])
async def test_no_descriptors_left(host: str, tmp_path: Path) -> None:
    """For probe, scrape and request alike that is no news of the engine."""
    async with open_engine() as engine:
        if host == "unix":
            await engine.listen_unix(f"{tmp_path}/engine.sock")
            address: Address = UnixAddress(f"{tmp_path}/engine.sock")
        else:
            address = TcpAddress(host, tcp(await engine.listen_tcp()).port)
        await probe_once(address)  # the first one reads modules from files
        scrape = Scrape(address)
        async with HttpProbe(address) as probe:
            with no_descriptors():
                with pytest.raises(ProbeImpossible, match="no file descriptors left"):
                    await probe()
                with pytest.raises(Refusal) as caught:
                    await scrape(None)
                with pytest.raises(OSError, match=r".") as dialled:
                    await dialer(address, 1.0)()
            assert await probe()
        await scrape.aclose()
        assert caught.value.outcome is Outcome.SHED_EXHAUSTED
        assert shortage(dialled.value) == "file descriptors"


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open no file within the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(ProbeRefused, match="onnect"):
        await probe_once(TcpAddress("127.0.0.1", 1))
    with pytest.raises(ProbeRefused):
        await probe_once(UnixAddress(f"{tmp_path}/nobody.sock"))


@pytest.mark.parametrize("kind", [Kind.RESET, Kind.CLOSE])
async def test_an_engine_that_hangs_up(kind: Kind) -> None:
    async with open_engine() as engine:
        engine.script.probes = Behaviour(fault=Fault(kind, BEFORE_HEAD))
        with pytest.raises(ProbeRefused):
            await probe_once(tcp(await engine.listen_tcp()))


@pytest.mark.parametrize(
    "behaviour",
    [Behaviour(fault=Fault(Kind.STALL, BEFORE_HEAD)), Behaviour(fault=Fault(Kind.STALL)), Behaviour(delay_s=3600)],
    ids=["no head", "half a body", "slow"],
)
async def test_an_engine_that_does_not_answer(behaviour: Behaviour, impatient: None) -> None:
    async with open_engine() as engine:
        engine.script.probes = behaviour
        with pytest.raises(ProbeTimeout):
            await probe_once(tcp(await engine.listen_tcp()))
        await none_left(engine)


async def test_slow_answer_does_not_outlast_the_timeout(impatient: None) -> None:
    """An engine that answers byte by byte is given up when the whole timeout is over."""

    async def drip(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        with contextlib.suppress(trio.BrokenResourceError):
            while True:  # each byte restarts a timeout that only counts silence
                await stream.send_all(b"x")
                await trio.sleep(0.01)

    async with serving(drip) as address:
        with pytest.raises(ProbeTimeout):
            await probe_once(address)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"<html>", "its answer to /v1/models is not a list of models"),
        (b'{"object":"list"}', "its answer to /v1/models is not a list of models"),
        (b'{"data":[{"name":"m"}]}', "its answer to /v1/models is not a list of models"),
        (b" " * PROBE_ANSWER_MAX, "its answer to /v1/models is not a list of models"),
        (b" " * (PROBE_ANSWER_MAX + 1), f"its answer to /health is larger than {PROBE_ANSWER_MAX} bytes"),
        (b" " * (PROBE_ANSWER_MAX + 500_000), f"its answer to /health is larger than {PROBE_ANSWER_MAX} bytes"),
    ],
    ids=["no JSON", "no list", "no id", "as large as may be", "too large", "huge"],
)
async def test_an_answer_that_makes_no_sense(body: bytes, why: str) -> None:
    async with serving(partial(answer_all, body)) as address:
        with pytest.raises(ProbeUnhealthy) as caught:
            await probe_once(address)
    assert str(caught.value) == why


async def test_a_proxy_in_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with open_engine() as engine:
        models, _ = await probe_once(tcp(await engine.listen_tcp()))
        assert models == (MODEL,)


async def test_it_can_be_cancelled_in_the_middle() -> None:
    async with open_engine() as engine:
        engine.script.probes = Behaviour(fault=Fault(Kind.STALL, BEFORE_HEAD))
        address = tcp(await engine.listen_tcp())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(probe_once, address)
            with trio.fail_after(5):
                await engine.until(lambda: len(engine.seen) == 1)
            nursery.cancel_scope.cancel()
        await none_left(engine)
