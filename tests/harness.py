"""The gateway under test, in the test's own process: over real sockets, or without any on virtual time."""

import functools
import itertools
import json
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any

import trio

from sluicegate import __version__
from sluicegate.accept.certificate import load_certificate
from sluicegate.accept.sockets import bind_all, is_local
from sluicegate.config.address import parse_engine
from sluicegate.config.schema import Address, Config, TcpAddress
from sluicegate.config.settings import SETTINGS, build
from sluicegate.dialects.routes import ENDPOINTS, PATHS
from sluicegate.engines.engine import Engine, EngineState
from sluicegate.engines.probe import ProbeRefused, ProbeUnhealthy
from sluicegate.exchange import ClientGone, ClientStalled, Endpoint, Headers, Request, Room
from sluicegate.gateway import Gateway, MakeDial
from sluicegate.observe.logs import Log
from sluicegate.observe.metrics import Metrics
from sluicegate.relay.pump import Pump
from sluicegate.relay.wire import READ_SIZE, Dial, Wire, dialer
from tests.certificates import usual
from tests.fakes.engine import FakeEngine

CHAT = "/v1/chat/completions"

#: One question per dialect; without `stream` its answer comes in one piece.
QUESTIONS: dict[str, dict[str, Any]] = {
    CHAT: {"model": "fake-model", "messages": [{"role": "user", "content": "Where to?"}]},
    "/v1/completions": {"model": "fake-model", "prompt": "Where to?"},
    "/v1/responses": {"model": "fake-model", "input": "Where to?"},
    "/v1/messages": {
        "model": "fake-model",
        "messages": [{"role": "user", "content": "Where to?"}],
        "max_tokens": 100,
    },
}

#: A plain address, and one that speaks TLS, as each does that another host can reach.
LISTEN = (TcpAddress("127.0.0.1", 0), TcpAddress("0.0.0.0", 0))

#: No test needs as long (seconds): one that hangs fails instead.
PATIENCE_S = 60.0

#: The same on virtual time, on which the gateway's longest deadlines are minutes.
VIRTUAL_PATIENCE_S = 3600.0


def question(path: str = CHAT, **members: Any) -> dict[str, Any]:
    """The body that asks it, with `members` added or in the place of its own."""
    return QUESTIONS[path] | members


def configuration(engine: str = "http://127.0.0.1:1", **settings: Any) -> Config:
    """A Config whose engine is at `engine` (http://host:port or unix:/path).

    `settings` are fields of any table: their names are unique over the schema. Unless told otherwise, it listens on a
    plain address and on one that speaks TLS, and probes are frequent.
    """
    values: dict[str, Any] = {"listen": LISTEN, "probe_interval_s": 0.2, **usual().settings, **settings}
    values["base_url"] = parse_engine(engine)
    config = build({setting.key: values.pop(setting.name) for setting in SETTINGS.values() if setting.name in values})
    assert not values, f"no such settings: {values}"
    return config


class WatchedGateway(Gateway):
    """A Gateway whose changes of engine state can be waited for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.changes = trio.lowlevel.ParkingLot()
        super().__init__(*args, **kwargs)

    def _engine_changed(self, engine: Engine) -> None:
        super()._engine_changed(engine)
        self.changes.unpark_all()


class Running:
    """A running gateway with what a test wants to look at."""

    def __init__(self, gateway: WatchedGateway, log_file: Any, base_url: str, tls_url: str = "") -> None:
        self.gateway = gateway
        self.base_url = base_url
        self.tls_url = tls_url
        self._log_file = log_file

    def log_lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """The log so far, parsed; only lines of `event` if given."""
        self._log_file.seek(0)
        lines = [json.loads(line) for line in self._log_file.read().splitlines()]
        return [line for line in lines if event is None or line["event"] == event]

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample, 0.0 if there is none (a counter that never counted)."""
        return self.gateway.metrics.registry.get_sample_value(name, labels) or 0.0

    def outcomes(self) -> dict[str, int]:
        """Every outcome that was counted so far, with its count."""
        counted = {}
        for family in self.gateway.metrics.registry.collect():
            for sample in family.samples:
                if sample.name == "api_outcomes_total" and sample.value:
                    counted[sample.labels["outcome"]] = int(sample.value)
        return counted

    async def engine_state(self, state: EngineState) -> None:
        """Wait until the engine is in that state."""
        while self.gateway.engines.state is not state:
            await self.gateway.changes.park()

    async def settled(self) -> None:
        """Wait until no request is open."""
        await self.gateway.ledger.none_open()

    def assert_at_rest(self) -> None:
        """Nothing is held any more: no slot, place in the queue, busy engine connection, open record, or body."""
        gateway = self.gateway
        assert (gateway.admission.active, gateway.admission.queued) == (0, 0), repr(gateway.admission)
        assert all(engine.connections.busy == 0 for engine in gateway.engines.all), repr(gateway.engines.all)
        assert gateway.ledger.open_count == 0, repr(gateway.ledger)
        assert gateway.pipeline.bodies.held == 0, repr(gateway.pipeline.bodies)


@asynccontextmanager
async def open_gateway(
    config: Config, *, wait_ready: bool = True, make_dial: MakeDial = dialer
) -> AsyncIterator[Running]:
    """A gateway on real sockets (config.listen; port 0: any), until the block ends, or fails for taking too long.

    Its `base_url` is the first of them, its `tls_url` the one that speaks TLS.
    """
    pump = Pump(config.timeouts.idle_s, config.timeouts.client_stall_s)
    with trio.fail_after(PATIENCE_S), pump, _open_log() as (metrics, log, log_file):
        certificate = load_certificate(config.tls, {})
        gateway = WatchedGateway(config, metrics, log, make_dial, pump=pump, certificate=certificate)
        listeners = bind_all(config.listen)
        if isinstance(config.listen[0], TcpAddress):
            host, port = listeners[0].socket.getsockname()[:2]
            base_url = f"http://{host}:{port}"
        else:
            base_url = str(config.listen[0])
        public = [each.socket.getsockname()[1] for each in listeners if not is_local(each)]
        tls_url = f"https://127.0.0.1:{public[0]}" if public else ""
        async with trio.open_nursery() as nursery:
            await nursery.start(gateway.run, listeners)
            running = Running(gateway, log_file, base_url, tls_url)
            if wait_ready:
                await running.engine_state(EngineState.UP)
            yield running
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def simulate(engine: FakeEngine, **settings: Any) -> AsyncIterator[Running]:
    """A gateway without sockets: requests go to `gateway.pipeline` through `SimClient`, the engine is in memory.

    Everything waits on trio's clock, so that with `autojump_clock` time is virtual.
    """
    with trio.fail_after(VIRTUAL_PATIENCE_S), _open_log() as (metrics, log, log_file):
        make_dial = functools.partial(memory_dial, engine)
        gateway = WatchedGateway(configuration(**settings), metrics, log, make_dial, MemoryProbe.of(engine))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gateway.admission.run)
            for each in gateway.engines.all:
                nursery.start_soon(gateway._watch, each)
            running = Running(gateway, log_file, "")
            if engine.model and engine.healthy and not engine.refusing:
                await running.engine_state(EngineState.UP)
            yield running
            nursery.cancel_scope.cancel()
        for each in gateway.engines.all:
            each.connections.close_idle()


@contextmanager
def _open_log() -> Iterator[tuple[Metrics, Log, Any]]:
    metrics = Metrics(PATHS, __version__)
    with tempfile.TemporaryFile("w+") as log_file:
        log = Log("json", "debug", log_file.fileno(), on_drop=metrics.log_line_dropped)
        with closing(log):
            yield metrics, log, log_file


class MemoryWire:
    """A Wire over a memory stream."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def receive_some(self) -> bytes:
        return bytes(await self._stream.receive_some(READ_SIZE))

    def looks_alive(self) -> bool:
        return True

    def close(self) -> None:
        async def close() -> None:
            await trio.aclose_forcefully(self._stream)

        trio.lowlevel.spawn_system_task(close)


def memory_dial(engine: FakeEngine, _address: Address, _timeout_s: float) -> Dial:
    async def dial() -> Wire:
        await trio.lowlevel.checkpoint()
        return MemoryWire(engine.dial())

    return dial


class MemoryProbe:
    """Reads the fake engine's health without a connection."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    @classmethod
    def of(cls, engine: FakeEngine) -> Any:
        return lambda _address, _authorization: cls(engine)

    async def __aenter__(self) -> "MemoryProbe":
        return self

    async def __aexit__(self, *exc: object) -> None: ...

    async def __call__(self) -> tuple[tuple[str, ...], bytes]:
        await trio.lowlevel.checkpoint()
        if self._engine.refusing:
            raise ProbeRefused("the fake engine refuses connections")
        if not self._engine.healthy:
            raise ProbeUnhealthy("/health answers 503")
        models = (self._engine.model,) if self._engine.model else ()
        return models, b"{}"


class SimBody:
    """A body that is all there."""

    held = 0

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def whole(self, room: Room) -> bytes:
        return self._data

    async def parts(self, room: Room) -> AsyncGenerator[bytes, None]:
        yield self._data

    def release(self) -> None: ...


class SimClient:
    """A client without a socket. Keeps what it gets; takes nothing while `stalled`, and is `gone` once that is set.

    As a real one, it waits `stall_s` for a stalled peer and then raises ClientStalled.
    """

    def __init__(self, stall_s: float = 15.0) -> None:
        self.started = False
        self.timing: Callable[[], bytes] | None = None
        self.server_timing = ""
        self.splice = None
        self.finished = False
        self.status = 0
        self.headers: Headers = []
        self.body = b""
        self.stalled = False
        self.gone = False
        self._stall_s = stall_s

    def header(self, name: bytes) -> bytes | None:
        return dict(self.headers).get(name)

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        await self.start(status, headers)
        await self.send(body)
        await self.finish()

    async def start(self, status: int, headers: Headers) -> None:
        self.started, self.status, self.headers = True, status, headers
        if self.timing is not None:
            self.server_timing = self.timing().decode()
        await self._take()

    async def send(self, data: bytes) -> None:
        await self._take()
        self.body += data

    async def finish(self) -> None:
        await self._take()
        self.finished = True

    async def _take(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.gone:
            raise ClientGone
        if self.stalled:
            await trio.sleep(self._stall_s)
            raise ClientStalled


_SIM_IDS = itertools.count()


def sim_request(body: dict[str, Any] | bytes, path: str = CHAT, headers: Headers | None = None) -> Request:
    """A request for `gateway.pipeline.handle`."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    endpoint: Endpoint = ENDPOINTS[path]
    fields = [(b"content-type", b"application/json"), *(headers or [])]
    return Request(f"sim-{next(_SIM_IDS)}", endpoint, fields, SimBody(raw), trio.current_time())


def chat(stream: bool = False, **members: Any) -> dict[str, Any]:
    """A chat request's body."""
    return {"model": "fake-model", "messages": [{"role": "user", "content": "hi"}], "stream": stream} | members
