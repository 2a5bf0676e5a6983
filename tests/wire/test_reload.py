"""A new configuration in a running gateway: what follows it, from when on, and which requests must not notice."""

from functools import partial
from typing import Any

import pytest
import trio

from sluicegate.config.schema import Address, Config, QueueMode
from sluicegate.config.settings import SETTINGS, build, value_of
from sluicegate.outcome import Outcome
from sluicegate.relay.wire import Dial, dialer
from tests.engine_contract.raw import get, post
from tests.fakes.engine import open_engine
from tests.fakes.script import Behaviour
from tests.harness import CHAT, Running, configuration, open_gateway, question
from tests.wire.visitors import WAYS, ask, come, gate, raw

LONG = question(messages=[{"role": "user", "content": "x" * 4000}])


def reconfigure(running: Running, **settings: Any) -> None:
    """Put these in force beside those that are; named as in `configuration`."""
    config: Config = running.gateway.config
    values = {
        setting.key: settings.pop(setting.name) if setting.name in settings else value_of(config, setting)
        for setting in SETTINGS.values()
    }
    assert not settings
    running.gateway.reconfigure(build(values), running.gateway.listening.certificate)


@pytest.mark.parametrize("way", WAYS)
async def test_new_limit_on_an_open_connection(way: str) -> None:
    """A new limit holds for the next request on an open connection."""
    async with gate() as (_, running), await come(way, running) as visitor:
        assert (await visitor.ask(CHAT, LONG)).status == 200
        reconfigure(running, body_max_bytes=2000)
        refused = await visitor.ask(CHAT, LONG)
        assert (refused.status, refused.header("x-sluicegate-outcome")) == (413, Outcome.TOO_LARGE)


async def test_a_new_bound_on_heads_holds_on_both_ways() -> None:
    field = f"x-long: {'x' * 3000}"
    health = get("/health").replace(b"\r\n\r\n", f"\r\n{field}\r\n\r\n".encode())
    async with gate() as (_, running):
        assert (await ask(running, post(CHAT, question(), field))).status == 200
        assert (await ask(running, health)).status == 200
        reconfigure(running, header_max_bytes=2000)
        assert (await ask(running, post(CHAT, question(), field))).status == 431
        assert (await ask(running, health)).status == 431


async def test_new_bound_on_connections() -> None:
    """A new bound on connections refuses new ones only."""
    async with gate() as (_, running), await raw(running) as early:
        assert (await early.ask(post(CHAT, question()))).status == 200
        reconfigure(running, connections_max=1)
        assert (await ask(running, post(CHAT, question()))).status == 503
        assert (await early.ask(post(CHAT, question()))).status == 200
        reconfigure(running, connections_max=2)
        assert (await ask(running, post(CHAT, question()))).status == 200


@pytest.mark.parametrize("way", WAYS)
async def test_which_headers_pass(way: str) -> None:
    """What vLLM reads, unless told; for the next request what a reload says."""
    fields = ["X-Data-Parallel-Rank: 3", "X-Session-ID: s", "X-Vllm-Priority: -1", "X-Other: o"]
    fields.append("Endpoint-Load-Metrics-Format: json")
    names = [field.partition(":")[0].lower() for field in fields]
    async with gate() as (engine, running), await come(way, running) as visitor:
        for pass_headers in (running.gateway.config.engine.pass_headers, (), ("x-other",)):
            reconfigure(running, pass_headers=pass_headers)
            await visitor.send(CHAT, question(), *(field.lower() if way == "http2" else field for field in fields))
            assert (await visitor.answer()).status == 200
            arrived = [name.lower() for name, _ in engine.posts()[-1].headers if name.lower() in names]
            assert sorted(arrived) == sorted(pass_headers)


async def test_active_request_keeps_its_deadline() -> None:
    """An active request keeps its deadline, and a new request gets the new one."""
    async with gate(max_active=2) as (engine, running), await raw(running) as early:
        hold = trio.Event()
        engine.script.next(Behaviour(hold=hold, hold_at=0))
        await early.stream.send_all(post(CHAT, question()))
        await engine.until(lambda: engine.running == 1)
        reconfigure(running, request_s=0.05)
        engine.script.next(Behaviour(hold=trio.Event(), hold_at=0))
        refused = await ask(running, post(CHAT, question()))
        assert (refused.status, refused.header("x-sluicegate-outcome")) == (504, Outcome.TIMEOUT_TOTAL)
        hold.set()
        assert (await early.answer()).status == 200


async def test_pump_takes_a_new_idle_deadline() -> None:
    """The new idle deadline holds for the streams that are already in the pump."""
    async with gate() as (engine, running), await raw(running) as client:
        engine.script.next(Behaviour(hold=trio.Event(), hold_at=3))
        await client.stream.send_all(post(CHAT, question(stream=True)))
        await client.until_events(3)
        reconfigure(running, idle_s=0.05)
        answer = await client.answer()
        assert b'"code":"timeout_idle"' in answer.events()[-1]


async def test_a_stream_goes_on_while_everything_changes() -> None:
    async with gate(max_active=2, queue_mode=QueueMode.REJECT) as (engine, running), await raw(running) as client:
        hold = trio.Event()
        engine.script.next(Behaviour(hold=hold, hold_at=3))
        await client.stream.send_all(post(CHAT, question(stream=True)))
        await client.until_events(3)
        for number in range(1, 20):
            reconfigure(running, max_active=number % 3 + 1, queue_max=number % 4, level="debug", keep_alive_s=number)
            assert (await ask(running, post(CHAT, question()))).status == (429 if number % 3 == 0 else 200)
        hold.set()
        answer = await client.answer()
        assert answer.complete
        assert answer.body.count(b"[DONE]") == 1


async def test_the_model_for_requests_that_name_none() -> None:
    async with gate() as (engine, running):
        nameless = question()
        del nameless["model"]
        assert (await ask(running, post(CHAT, nameless))).status == 200
        reconfigure(running, model_name="another")
        assert (await ask(running, post(CHAT, nameless))).status == 404
        assert b'"another"' in engine.posts()[-1].body


async def test_the_log_takes_its_new_level_at_once() -> None:
    async with gate() as (_, running):
        reconfigure(running, level="warning")
        assert (await ask(running, post(CHAT, question()))).status == 200
        assert running.log_lines("request") == []
        reconfigure(running, level="info")
        assert (await ask(running, post(CHAT, question()))).status == 200
        await running.settled()
        assert len(running.log_lines("request")) == 1


async def test_a_new_pace_of_probes_is_taken_up_at_once() -> None:
    async with gate(probe_interval_s=60.0) as (engine, running):
        probes = partial(probes_of, engine)
        before = probes()
        reconfigure(running, probe_interval_s=0.05)
        await engine.until(lambda: probes() >= before + 3)


def probes_of(engine: Any) -> int:
    return sum(request.path == "/health" for request in engine.seen)


async def test_new_bound_on_connecting() -> None:
    """The next connection to the engine gets the new connect timeout."""
    made: list[float] = []

    def remember(address: Address, timeout_s: float) -> Dial:
        made.append(timeout_s)
        return dialer(address, timeout_s)

    async with open_engine() as engine:
        config = configuration(await engine.listen_tcp())
        async with open_gateway(config, make_dial=remember) as running:
            reconfigure(running, connect_timeout_s=0.5)
            assert made == [config.engine.connect_timeout_s, 0.5]
            assert (await ask(running, post(CHAT, question()))).status == 200
