"""The gateway without its process: everything between its listeners and its engines, in one tree of nurseries."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import trio

from .accept.app import make_app
from .accept.asgi import Gate
from .accept.server import Listening
from .account.ledger import Ledger
from .admit.admission import Admission
from .config.live import Live
from .config.schema import Address, Config
from .engines.engine import Backend, Backends
from .engines.probe import HttpProbe, Probe, watch
from .engines.scrape import Scrape
from .observe.gpus import sample_forever
from .observe.logs import Log
from .observe.metrics import Metrics
from .observe.nvml import PyNvml
from .outcome import Outcome
from .pipeline import Pipeline
from .relay.pool import Pool
from .relay.pump import Pump
from .relay.wire import Dial, dialer

#: After the drain deadline, how long requests that were cut off may take to tell their clients (seconds).
LAST_WORDS_S = 2.0

#: Opens the probe of an engine. Simulations put their own in.
MakeProbe = Callable[[Address], AbstractAsyncContextManager[Probe]]

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
    ) -> None:
        """`pump`, if given, must run (as a context manager) as long as the gateway does.

        `changed` (an attribute) is called after each change of an engine's state.
        """
        self._live = Live(config)
        self.metrics = metrics
        self.log = log
        self.backends = Backends([Backend("engine", config.engine.base_url, self._engine_changed)])
        self.admission = Admission(config.admission)
        self.ledger = Ledger(metrics, log, trio.current_time)
        connect_s = config.engine.connect_timeout_s
        self.pools = {backend: Pool(make_dial(backend.address, connect_s)) for backend in self.backends.all}
        self.pipeline = Pipeline(self._live, self.admission, self.backends, self.pools, pump, self.ledger)
        self._scrape = Scrape(self.backends.all[0].address)
        quart = make_app(self, metrics.expose, self._scrape, self._unmatched)
        self.listening = Listening(
            Gate(self._live, self.pipeline, self._unmatched, quart), self.pipeline, self._live, self._unmatched
        )
        self.stopped = trio.Event()
        self.changed: Callable[[], None] = lambda: None
        self._pump = pump
        self._make_dial = make_dial
        self._make_probe = make_probe
        self._stop = trio.Event()
        self._draining = trio.CancelScope()
        self._bind_metrics()

    async def run(
        self, listeners: list[trio.SocketListener], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve on `listeners`, which it owns from now on, until `stop`; then drain and return."""
        try:
            async with trio.open_nursery() as services:
                services.start_soon(self.admission.run)
                for backend in self.backends.all:
                    services.start_soon(self._watch, backend)
                services.start_soon(self._sample_gpu)
                if self._pump:
                    services.start_soon(self._pump.watch)
                async with trio.open_nursery() as handlers:
                    async with trio.open_nursery() as accepting:
                        accepting.start_soon(self.listening.serve, listeners, handlers)
                        task_status.started()
                        await self._stop.wait()
                        accepting.cancel_scope.cancel()
                    await self._drain()
                    handlers.cancel_scope.cancel()
                services.cancel_scope.cancel()
        finally:
            for pool in self.pools.values():
                pool.close_idle()
            self.listening.close()
            await self._scrape.aclose()
            self.stopped.set()

    def stop(self) -> None:
        """Begin to stop: accept no more, turn away who waits, let who runs finish within drain_s."""
        self.admission.drain()
        self._stop.set()

    def cut(self) -> None:
        """End the drain now, as if drain_s were over; also for those whose request is still on its way to us."""
        self._draining.cancel()

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._live.current

    def reconfigure(self, config: Config) -> None:
        """Put `config` in force, all of it in this one step. It may differ in nothing that needs a restart.

        Nobody who is served or waits is cut off or loses a place. Requests keep the deadlines that they began with,
        but for those of the pump (idle_s and client_stall_s), which hold for the streams that are in it as well.
        """
        self._live.current = config
        self.log.set_level(config.log.level)
        self.admission.reconfigure(config.admission)
        self.listening.reconfigure()
        if self._pump:
            self._pump.set_deadlines(config.timeouts.idle_s, config.timeouts.client_stall_s)
        for backend, pool in self.pools.items():
            pool.dial = self._make_dial(backend.address, config.engine.connect_timeout_s)
            backend.wake_prober()  # it counts its pauses by the new interval from then on

    async def _drain(self) -> None:
        # Idle connections stay while others are served: who asks /ready on one, or sends a request just now, is told.
        self.listening.close_after_answers()
        with self._draining:
            self._draining.deadline = trio.current_time() + self.config.timeouts.drain_s
            await self.pipeline.idle()
        if self.ledger.open_count:
            self.log.warning("cut", detail=f"{self.ledger.open_count} requests outlasted the drain")
            self.pipeline.cut()
            with trio.move_on_after(LAST_WORDS_S):
                await self.pipeline.idle()
        await self.listening.close_idle()

    async def _watch(self, backend: Backend) -> None:
        async with self._make_probe(backend.address) as probe:
            await watch(backend, probe, lambda: self.config.engine.probe_interval_s)

    async def _sample_gpu(self) -> None:
        await sample_forever(PyNvml(), self.metrics, lambda: self.config.gpu.sample_interval_s, log=self.log)

    def _engine_changed(self, backend: Backend) -> None:
        self.metrics.engine_up(self.backends.state.value == "ok")
        if backend.up:
            self.metrics.serves(backend.models)
            self.log.info("engine_up", detail=f"{backend.address} serves {', '.join(backend.models)}")
        else:
            self.log.warning(f"engine_{backend.state.value}", detail=backend.why)
        self.changed()

    def _unmatched(self, request_id: str, status: int) -> None:
        record = self.ledger.open(request_id, "other")
        record.status = status
        self.ledger.settle(record, Outcome.INVALID)

    def _bind_metrics(self) -> None:
        admission, pools = self.admission, self.pools.values()
        self.metrics.bind_gate(
            active=lambda: admission.active,
            waiting=lambda: admission.waiting,
            max_active=lambda: admission.config.max_active,
            queue_limit=lambda: admission.config.queue_max,
            queue_timeout_s=lambda: admission.config.queue_timeout_s,
        )
        self.metrics.bind_client_connections(
            lambda: self.listening.connections, limit=lambda: self.config.limits.connections_max
        )
        self.metrics.bind_engine_connections(
            idle=lambda: sum(pool.idle for pool in pools), busy=lambda: sum(pool.busy for pool in pools)
        )

    # -- what the routes tell (accept/app.py: Status) ------------------------------------------------------------

    @property
    def draining(self) -> bool:
        return self.admission.draining

    @property
    def health(self) -> str:
        return self.backends.state.value

    @property
    def why(self) -> str:
        return self.backends.why

    @property
    def models(self) -> tuple[str, ...]:
        return self.backends.models

    @property
    def models_body(self) -> bytes:
        return self.backends.models_body
