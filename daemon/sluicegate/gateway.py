"""The gateway without its process: everything between its listeners and its engines, in one tree of nurseries."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import trio

from .accept.app import make_app
from .accept.asgi import Gate
from .accept.certificate import Certificate
from .accept.registry import Listening
from .account.ledger import Ledger
from .admit.admission import Admission
from .config.live import Live
from .config.schema import Address, Config
from .delivery import Delivery
from .engines.engine import Engine, Engines, EngineState
from .engines.probe import HttpProbe, Probe, watch
from .engines.scrape import Scrape
from .observe.gpus import sample_forever
from .observe.logs import Log
from .observe.metrics import Metrics
from .observe.nvml import PyNvml
from .observe.tracing import Tracing
from .outcome import Refusal
from .pipeline import Pipeline
from .relay.message import to_engine
from .relay.pool import Pool
from .relay.pump import Pump
from .relay.wire import Dial, dialer

#: After the drain deadline, how long requests that were cut off may take to tell their clients (seconds).
LAST_WORDS_S = 2.0

#: Longest path of a request without a route that is logged (characters).
PATH_MAX = 200

#: Opens the probe of an engine, from its address and what it gets as Authorization. Simulations put their own in.
MakeProbe = Callable[[Address, Callable[[], bytes]], AbstractAsyncContextManager[Probe]]

#: Makes the dialer of an engine: its address, and the longest wait in seconds.
MakeDial = Callable[[Address, float], Dial]


class Gateway:
    """Nothing here is global: tests run several at once."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        log: Log,
        make_dial: MakeDial = dialer,
        make_probe: MakeProbe = HttpProbe,
        pump: Pump | None = None,
        certificate: Certificate | None = None,
    ) -> None:
        """`pump`, if given, must run (as a context manager) as long as the gateway does. `certificate`: of config.tls.

        `changed` (an attribute) is called after each change of an engine's state.
        """
        self._live = Live(config)
        self.metrics = metrics
        self.log = log
        address = config.engine.base_url
        connections = Pool(make_dial(address, config.engine.connect_timeout_s))
        slots = trio.CapacityLimiter(config.admission.max_active)
        self.engines = Engines([Engine("engine", address, connections, slots, self._engine_changed)])
        self._say_what_engines_get()
        self.admission = Admission(config.admission, self.engines)
        sinks = [metrics.settled, log.settled]
        self.tracing = None
        if config.tracing.endpoint:
            self.tracing = Tracing(self._live, trio.current_time, metrics.spans_dropped, log)
            sinks.append(self.tracing.settled)
        self.ledger = Ledger(sinks, trio.current_time)
        self.delivery = Delivery(self._live, self.engines, pump)
        self.pipeline = Pipeline(self._live, self.admission, self.engines, self.delivery, self.ledger, self.tracing)
        self._scrape = Scrape(self.engines.default.address, lambda: self.engines.default.authorization)
        quart = make_app(self, metrics.expose, self._scrape_engine, self._unmatched)
        gate = Gate(self._live, self.pipeline, self._unmatched, quart)
        self.listening = Listening(
            gate, self.pipeline, self._live, self._unmatched, metrics.connection_refused, metrics.handshake_failed
        )
        self._serve_with(certificate)
        self.stopped = trio.Event()
        self.changed: Callable[[], None] = lambda: None
        self.pump = pump
        self._make_dial = make_dial
        self._make_probe = make_probe
        self._stop = trio.Event()
        self._draining = trio.CancelScope()
        self._bind_metrics()

    async def run(
        self, listeners: list[trio.SocketListener], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve on `listeners`, which it owns from now on, until `stop`; then drain and return."""
        if self.tracing:
            self.tracing.start()
        try:
            async with trio.open_nursery() as services:
                services.start_soon(self.admission.run)
                for engine in self.engines.all:
                    await services.start(self._watch, engine)  # its first probe begins before the first accept
                services.start_soon(self._sample_gpu)
                if self.pump:
                    services.start_soon(self.pump.watch)
                async with trio.open_nursery() as handlers:
                    async with trio.open_nursery() as accepting:
                        accepting.start_soon(self.listening.serve, listeners, handlers)
                        task_status.started()
                        await self._stop.wait()
                        accepting.cancel_scope.cancel()
                    await self.drain()
                    handlers.cancel_scope.cancel()
                services.cancel_scope.cancel()
        finally:
            for engine in self.engines.all:
                engine.connections.close_idle()
            self.listening.close()
            if self.tracing:
                self.tracing.close()
            await self._scrape.aclose()
            self.stopped.set()

    def stop(self) -> None:
        """Begin to stop: accept no more, refuse queued requests, let active ones finish within drain_s."""
        self.admission.drain()
        self._stop.set()

    def cut(self) -> None:
        """End the drain now, as if drain_s were over; also for requests that are still being received."""
        self._draining.cancel()

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._live.current

    def reconfigure(self, config: Config, certificate: Certificate | None = None) -> None:
        """Put `config` in force, all of it in this one step. It may differ in nothing that needs a restart.

        `certificate` is that of config.tls. Connections that are open keep the one that they were made with.
        No active request is cut off, and no queued one loses its place. Requests keep the deadlines that they began
        with, but for those of the pump (idle_s and client_stall_s), which hold for the streams that are in it as well.
        """
        self._live.current = config
        self._say_what_engines_get()
        self._serve_with(certificate)
        self.log.set_level(config.log.level)
        for engine in self.engines.all:
            engine.slots.total_tokens = config.admission.max_active
        self.admission.reconfigure(config.admission)
        self.listening.reconfigure()
        if self.pump:
            self.pump.set_deadlines(config.timeouts.idle_s, config.timeouts.client_stall_s)
        for engine in self.engines.all:
            engine.connections.dial = self._make_dial(engine.address, config.engine.connect_timeout_s)
            engine.wake_prober()  # it counts its pauses by the new interval from then on

    def _serve_with(self, certificate: Certificate | None) -> None:
        self.listening.certificate = certificate
        self.metrics.certificate(certificate.name if certificate else "", certificate.expires_at if certificate else 0)

    async def drain(self) -> None:
        """After `stop`: return when no request is open. After drain_s it cuts the rest, which then has LAST_WORDS_S."""
        # Idle connections stay while others are served: a request that arrives on one gets an answer.
        self.listening.close_after_answers()
        with self._draining:
            self._draining.deadline = trio.current_time() + self.config.timeouts.drain_s
            await self.ledger.none_open()
        if self.ledger.open_count:
            self.log.warning("cut", detail=f"{self.ledger.open_count} requests outlasted the drain")
            self.delivery.cut()
            with trio.move_on_after(LAST_WORDS_S):
                await self.ledger.none_open()
        await self.listening.close_idle()

    async def _watch(self, engine: Engine, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with self._make_probe(engine.address, lambda: engine.authorization) as probe:
            task_status.started()
            await watch(engine, probe, lambda: self.config.engine.probe_interval_s)

    async def _sample_gpu(self) -> None:
        await sample_forever(PyNvml(), self.metrics, lambda: self.config.gpu.sample_interval_s, log=self.log)

    def _say_what_engines_get(self) -> None:
        config = self.config.engine
        for engine in self.engines.all:
            engine.authorization = b"Bearer " + config.key.encode("ascii") if config.key else b""
            engine.connections.passed = to_engine(config.pass_headers, with_key=bool(config.key))

    def _engine_changed(self, engine: Engine) -> None:
        self.metrics.engine_up(self.engines.state is EngineState.UP)
        if engine.up:
            self.metrics.serves(engine.models)
            self.log.info("engine_up", detail=f"{engine.address} serves {', '.join(engine.models)}")
        else:
            self.log.warning(f"engine_{engine.state.value}", detail=engine.detail)
        self.changed()

    async def _scrape_engine(self, accept: str | None) -> tuple[bytes, str]:
        try:
            return await self._scrape(accept)
        except Refusal as refusal:
            self.log.info("scrape", detail=refusal.detail)
            raise

    def _unmatched(self, request_id: str, refusal: Refusal, method: str = "", target: str = "") -> None:
        record = self.ledger.open(request_id, "other")
        record.status, record.detail, record.method = refusal.status, refusal.detail, method or None
        if target.startswith("/"):
            record.path = target.partition("?")[0][:PATH_MAX]  # a query may hold a key
        self.ledger.settle(record, refusal.outcome)

    def _bind_metrics(self) -> None:
        admission, engines = self.admission, self.engines.all
        self.metrics.bind_gate(
            active=lambda: admission.active,
            queued=lambda: admission.queued,
            max_active=lambda: admission.slots,
            queue_limit=lambda: admission.config.queue_max,
            queue_timeout_s=lambda: admission.config.queue_timeout_s,
        )
        self.metrics.bind_client_connections(
            lambda: self.listening.connections, limit=lambda: self.config.limits.connections_max
        )
        self.metrics.bind_engine_connections(
            idle=lambda: sum(engine.connections.idle for engine in engines),
            busy=lambda: sum(engine.connections.busy for engine in engines),
        )

    # -- what the routes tell (accept/app.py: Status) ------------------------------------------------------------

    @property
    def draining(self) -> bool:
        return self.admission.draining

    @property
    def health(self) -> str:
        return self.engines.state.value

    @property
    def why(self) -> str:
        return self.engines.why

    async def probed(self) -> None:
        await self.engines.probed()

    @property
    def models(self) -> tuple[str, ...]:
        return self.engines.models

    @property
    def models_body(self) -> bytes:
        return self.engines.models_body
