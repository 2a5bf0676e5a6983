"""What docs/proxies.md promises, with the proxies that Debian ships and the configurations that stand there."""

import re
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio

from sluicegate.accept.proxied import SIGNATURE
from sluicegate.config.schema import AdmissionConfig, TimeoutConfig
from tests.engine_contract.raw import RawClient, post
from tests.fakes.script import Behaviour
from tests.harness import CHAT, question
from tests.wire.proxies import CONFIGURATIONS, in_front
from tests.wire.visitors import SECURE, WAYS, at_rest, come, gate, log_line, over_tls, raw, visit

#: The proxy's time-out, a ping's interval, and how long the engine is silent (seconds).
SILENCE_S, PING_S, PREFILL_S = 3, 1.0, 4.5

STREAM = post(CHAT, question(stream=True))

every_proxy = pytest.mark.parametrize("proxy", CONFIGURATIONS)


def test_all_are_there() -> None:
    assert set(CONFIGURATIONS) == {"nginx", "haproxy", "caddyfile", "bare nginx"}


@pytest.mark.parametrize("proxy", ["nginx", "haproxy", "caddyfile"])
def test_time_outs_are_longer_than_the_gateways(proxy: str) -> None:
    timeouts, admission = TimeoutConfig(), AdmissionConfig()
    longest = admission.queue_timeout_s + max(timeouts.request_s, timeouts.first_token_s)
    found = [int(seconds) for seconds in re.findall(r"timeout(?: client| server)? (\d+)s", CONFIGURATIONS[proxy])]
    assert found
    assert longest < min(found) < longest + 30
    assert all(int(s) < timeouts.keep_alive_s for s in re.findall(r"keepalive (\d+)s", CONFIGURATIONS[proxy]))


@every_proxy
async def test_events_come_one_by_one(proxy: str, tmp_path: Path) -> None:
    """Each as soon as it is there, and nothing is changed on the way."""
    hold = trio.Event()
    async with gate() as (engine, running), in_front(proxy, running, tmp_path) as front:
        engine.script.next(Behaviour(), Behaviour(hold=hold, hold_at=3))
        usual = await visit("fast", running, CHAT, question(stream=True))
        async with await front.dial() as client:
            await client.stream.send_all(STREAM)
            assert not (await client.until_events(3)).complete
            hold.set()
            answer = await client.answer()
        assert (answer.status, answer.complete) == (200, True)
        assert len(answer.events()) == len(usual.events())
        await at_rest(running)


@every_proxy
@pytest.mark.parametrize("events", [0, 3], ids=["in prefill", "in mid-stream"])
async def test_a_disconnect_frees_the_slot(proxy: str, events: int, tmp_path: Path) -> None:
    """At once, and not with the next event: there is none."""
    async with gate() as (engine, running), in_front(proxy, running, tmp_path) as front:
        engine.script.next(Behaviour(hold=trio.Event(), hold_at=events))
        async with await front.dial() as client:
            await client.stream.send_all(STREAM)
            await engine.until(lambda: engine.running == 1)
            if events:
                await client.until_events(events)
        await engine.until(lambda: engine.aborted == 1)
        await at_rest(running)
        assert running.outcomes() == {"client_gone_active": 1}


@every_proxy
async def test_a_refusal_passes(proxy: str, tmp_path: Path) -> None:
    async with gate(max_active=1, queue_max=0) as (engine, running), in_front(proxy, running, tmp_path) as front:
        engine.script.next(Behaviour(hold=trio.Event()))
        async with await front.dial() as first, await front.dial() as second:
            await first.stream.send_all(STREAM)
            await engine.until(lambda: engine.running == 1)
            answer = await second.ask(STREAM)
        assert (answer.status, answer.header("x-sluicegate-outcome")) == (429, "shed_queue_full")
        assert int(answer.header("retry-after") or "") >= 1
        assert b'"code":"shed_queue_full"' in answer.body
        await at_rest(running)


@pytest.mark.parametrize("proxy", ["nginx", "haproxy", "caddyfile"])
async def test_pings_outlive_a_short_time_out(proxy: str, tmp_path: Path) -> None:
    """What is cut without them is whole with them."""
    short = [("430s", f"{SILENCE_S}s")]
    async with gate() as (engine, running), in_front(proxy, running, tmp_path, changes=short) as front:
        engine.script.default = Behaviour(prefill_s=PREFILL_S)
        async with await front.dial() as silent, await front.dial() as pinged:
            await silent.stream.send_all(STREAM)
            await pinged.stream.send_all(post(CHAT, question(stream=True), f"x-sluicegate-ping-s: {PING_S}"))
            cut, answer = await silent.stream.receive_some(), await pinged.answer()
        assert re.match(rb"HTTP/1\.[01] 50[24] ", cut)  # HAProxy says 1.0
        assert (answer.status, answer.complete) == (200, True)
        assert answer.events().count(b": ping") >= 2
        assert answer.events()[-2] == b"data: [DONE]"
        await at_rest(running)
        assert running.outcomes() == {"client_gone_active": 1, "served": 1}


@every_proxy
async def test_a_large_body_passes(proxy: str, tmp_path: Path) -> None:
    """As large as the gateway takes; a bare nginx takes 1 MiB."""
    size = 900_000 if proxy == "bare nginx" else 30_000_000
    async with gate() as (_, running), in_front(proxy, running, tmp_path) as front, await front.dial() as client:
        answer = await client.ask(post(CHAT, question(user="x" * size)))
        assert answer.status == 200
        await at_rest(running)


@every_proxy
async def test_the_log_has_the_clients_address(proxy: str, tmp_path: Path) -> None:
    """Of the client that connects to the proxy; what that client says of others does not count."""
    async with gate(trusted=(ip_network("127.0.0.1"),)) as (_, running):
        async with in_front(proxy, running, tmp_path) as front, await front.dial(source="127.0.0.9") as client:
            request = post(CHAT, question(), "x-request-id: seen", "x-forwarded-for: 6.6.6.6")
            assert (await client.ask(request)).status == 200
        # A bare nginx passes on what the client said.
        told = "6.6.6.6" if proxy == "bare nginx" else "127.0.0.9"
        assert (await log_line(running, "seen"))["client"] == told


async def test_haproxys_proxy_protocol(tmp_path: Path) -> None:
    """Several requests on one connection, whose address holds for all of them."""
    more = (("server gateway 127.0.0.1:8080", "server gateway 127.0.0.1:8080 send-proxy-v2"), ("option forwardfor", ""))
    async with (
        gate(trusted=(ip_network("127.0.0.1"),)) as (_, running),
        in_front("haproxy", running, tmp_path, changes=more) as front,
        await front.dial(source="127.0.0.9") as client,
    ):
        for name, body in (("one", question()), ("two", question(stream=True))):
            assert (await client.ask(post(CHAT, body, f"x-request-id: {name}"))).status == 200
            assert (await log_line(running, name))["client"] == "127.0.0.9"


ANNOUNCED = SIGNATURE + bytes([0x21, 0x11, 0, 12, 1, 2, 3, 4, 10, 0, 0, 1, 0, 80, 31, 144])


@pytest.mark.parametrize("way", sorted(set(WAYS) - set(SECURE)))
@pytest.mark.parametrize("trusted", ["127.0.0.1", "10.0.0.1"])
async def test_a_proxy_header_on_every_way(way: str, trusted: str) -> None:
    """Who is not trusted has sent something that is not HTTP."""
    async with gate(trusted=(ip_network(trusted),)) as (_, running):
        async with await come(way, running) as visitor:
            await visitor.stream.send_all(ANNOUNCED)
            if trusted == "127.0.0.1":
                for name in ("one", "two"):
                    assert (await visitor.ask(CHAT, question(), f"x-request-id: {name}")).status == 200
                    assert (await log_line(running, name))["client"] == "1.2.3.4"
            else:
                assert b" 400 " in (await visitor.stream.receive_some())[:20]
        await at_rest(running)


@pytest.mark.parametrize(("sent", "client"), [(ANNOUNCED, "1.2.3.4"), (b"", "127.0.0.1")], ids=["header", "none"])
async def test_a_proxy_header_before_tls(sent: bytes, client: str) -> None:
    """A proxy that passes TLS through says who the client is in front of the handshake."""
    async with gate(trusted=(ip_network("127.0.0.1"),)) as (_, running):
        url = urlsplit(running.tls_url)
        stream = await trio.open_tcp_stream(url.hostname or "", url.port or 0)
        await stream.send_all(sent)
        async with RawClient(await over_tls(stream)) as visitor:
            assert (await visitor.ask(post(CHAT, question(), "x-request-id: seen"))).status == 200
        assert (await log_line(running, "seen"))["client"] == client
        await at_rest(running)


async def test_no_proxy_no_trust() -> None:
    async with gate() as (_, running):
        await visit("fast", running, CHAT, question(), "x-request-id: seen", "x-forwarded-for: 6.6.6.6")
        assert (await log_line(running, "seen"))["client"] == "127.0.0.1"


async def test_a_broken_proxy_header_ends_its_connection() -> None:
    async with gate(trusted=(ip_network("127.0.0.1"),)) as (_, running):
        async with await raw(running) as client:
            await client.stream.send_all(ANNOUNCED[:12] + b"\x99" * 20)
            with pytest.raises((EOFError, ConnectionResetError)):
                await client.answer()
        assert (await visit("fast", running)).status == 200
        await at_rest(running)
