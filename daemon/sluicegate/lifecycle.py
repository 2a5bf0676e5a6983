"""The gateway as a process: start, ready, reload, drain, stop; and what systemd is told of each."""

import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence

import trio

from . import __version__
from .accept.certificate import Certificate, load_certificate
from .accept.sockets import adopt, bind_all, bound_address, is_local
from .config.address import describes
from .config.faults import ConfigError
from .config.reload import changes, told, why_not
from .config.schema import Address, Config, TcpAddress
from .dialects.routes import PATHS
from .gateway import LAST_WORDS_S, Gateway
from .observe.foreign import describe, foreign_loggers
from .observe.logs import Log, choose_format
from .observe.metrics import Metrics
from .relay.pump import Pump
from .service.systemd import Service, take
from .service.watchdog import feed
from .shortage import descriptors, raise_descriptors, warning

STDERR = 2

#: How much longer than its drain and its last words a stop may take, as systemd is told (seconds).
STOP_MARGIN_S = 5.0

#: Container objects that may be made before Python looks for cycles among them (its default is 700). A request makes
#: some hundred, most of which are gone with it.
GC_THRESHOLD = 10_000

#: Reads the configuration anew. Raises ConfigError.
Read = Callable[[], Config]


def serve(config: Config, read: Read) -> int:
    """Run the gateway until SIGTERM or SIGINT; the exit status. On SIGHUP it goes on with what `read` says.

    OSError if it cannot listen where it shall, systemd.HandoverError if systemd hands over what is no such socket,
    ConfigError if the certificate cannot be used.
    """
    certificate = load_certificate(config.tls, os.environ)
    service = take(os.environ, os.getpid())
    raise_descriptors()
    metrics = Metrics(PATHS, __version__)
    log = Log(choose_format(config.log.format, STDERR), config.log.level, STDERR, on_drop=metrics.log_line_dropped)
    if config.tracing.endpoint:
        from .observe import spans  # noqa: F401 -- what is large is imported before the next line
    _spare_the_collector()
    try:
        with foreign_loggers(log):
            trio.run(Daemon(config, read, service, metrics, log, certificate).run, strict_exception_groups=True)
    except OSError:
        raise  # the command line explains it
    except Exception as error:
        log.error("crashed", detail=describe(error))
        raise
    finally:
        service.notifier.close()
        log.close()
    return 0


def _spare_the_collector() -> None:
    """Take what was imported, which stays for good, out of the garbage collector's sight.

    A full collection looks at every object it knows: it took 60 to 100 ms while 512 streams started, and held all.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)


class Daemon:
    """One run of `sluicegate serve`."""

    def __init__(
        self,
        config: Config,
        read: Read,
        service: Service,
        metrics: Metrics,
        log: Log,
        certificate: Certificate | None = None,
    ) -> None:
        self._read = read
        self._service = service
        self._notifier = service.notifier
        self._metrics = metrics
        self._log = log
        self._pump = Pump(config.timeouts.idle_s, config.timeouts.client_stall_s)
        self._gateway = Gateway(config, metrics, log, pump=self._pump, certificate=certificate)
        self._public = False  # it listens where other hosts reach it
        self._where = ""
        self._refused = False

    async def run(self) -> None:
        """Serve until told to stop, and drain."""
        gateway, log = self._gateway, self._log
        signals_heeded = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        with self._pump, trio.open_signal_receiver(*signals_heeded) as signals:
            listeners = self._listen()
            self._public = not all(map(is_local, listeners))
            async with trio.open_nursery() as nursery:
                await nursery.start(gateway.run, listeners)
                log.info("listening", detail=f"{self._where}, engine at {gateway.config.engine.base_url}")
                self._warn_of_shortage()
                self._tell_certificate()
                gateway.changed = lambda: self._notifier.status(self._status())
                self._notifier.ready(self._status())
                if self._service.watchdog_s is not None:
                    parts = {"the pump": self._pump.prove, "the admission controller": gateway.admission.prove}
                    nursery.start_soon(feed, self._notifier.alive, self._service.watchdog_s, parts, log)
                await self._until_told_to_stop(signals)
                self._begin_to_stop()
                nursery.start_soon(self._heed_while_stopping, signals)
                await gateway.stopped.wait()
                nursery.cancel_scope.cancel()
        log.info("stopped", detail=f"{gateway.ledger.settled} requests served or refused")

    def _listen(self) -> list[trio.SocketListener]:
        """On what systemd handed over, or else where the configuration says."""
        listen = self._gateway.config.listen
        if not self._service.sockets:
            listeners = bind_all(listen)
            self._where = " and ".join(map(_with_port, listen, listeners))
            return listeners
        return self._take_over(self._service.sockets, listen)

    def _take_over(self, sockets: Sequence[socket.socket], listen: Sequence[Address]) -> list[trio.SocketListener]:
        listeners = [adopt(sock) for sock in sockets]
        addresses = [bound_address(listener) for listener in listeners]
        bound = " and ".join(map(str, addresses))
        self._where = f"{bound}, a socket of systemd's"
        ignored = [one for one in listen if not any(describes(one, address) for address in addresses)]
        if ignored:
            without = " and ".join(map(str, ignored))
            self._log.warning(
                "listen_ignored",
                detail=f"systemd's socket listens on {bound}, so listen = {without} has no effect: set it to the same "
                "address, or change ListenStream= in sluicegate.socket",
            )
        return listeners

    async def _until_told_to_stop(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number != signal.SIGHUP:
                return
            await self._reload()

    async def _reload(self) -> None:
        """Go on with the configuration as it is written now, or with the old one, and say so."""
        self._notifier.reloading()
        try:
            # A file may lie on a disk that takes its time.
            config, certificate = await trio.to_thread.run_sync(self._read_all)
        except ConfigError as error:
            self._refuse_reload(list(map(str, error.faults)))
        else:
            changed = changes(self._gateway.config, config)
            if refusal := why_not(changed):
                self._refuse_reload([refusal])
            else:
                self._gateway.reconfigure(config, certificate)
                self._refused = False
                self._metrics.config_reloaded(applied=True)
                self._log.info("reloaded", detail=told(changed))
                self._warn_of_shortage()
                self._tell_certificate()
        self._notifier.ready(self._status())

    def _read_all(self) -> tuple[Config, Certificate | None]:
        config = self._read()
        return config, load_certificate(config.tls, os.environ)

    def _tell_certificate(self) -> None:
        certificate = self._gateway.listening.certificate
        if certificate is None:
            return
        if self._public:
            self._log.info("certificate", detail=str(certificate))
        else:
            self._log.warning(
                "tls_unused",
                detail=f"[tls] has no effect on {self._where}: loopback and Unix sockets stay plain; add the address "
                "that other hosts use to listen",
            )

    def _warn_of_shortage(self) -> None:
        if detail := warning(self._gateway.config, descriptors()):
            self._log.warning("few_descriptors", detail=detail)

    def _refuse_reload(self, faults: list[str]) -> None:
        self._refused = True
        self._metrics.config_reloaded(applied=False)
        for fault in faults:  # a line each: a line is bounded, and none of them may be missing
            self._log.error("reload_refused", detail=fault)

    def _begin_to_stop(self) -> None:
        drain_s = self._gateway.config.timeouts.drain_s
        what = f"{self._gateway.ledger.open_count} requests open, at most {drain_s:g} s"
        self._log.info("draining", detail=what)
        self._gateway.changed = lambda: None  # the drain is the news now
        self._notifier.stopping(f"Draining: {what}", drain_s + LAST_WORDS_S + STOP_MARGIN_S)
        self._gateway.stop()

    async def _heed_while_stopping(self, signals: AsyncIterator[int]) -> None:
        # To the end: a signal that nobody has taken strikes the process when the receiver is closed.
        async for number in signals:
            if number == signal.SIGHUP:
                self._refuse_reload(["the gateway is stopping; the next one reads the file"])
            else:
                self._gateway.cut()

    def _status(self) -> str:
        gateway = self._gateway
        how = ", ".join(gateway.models) if gateway.health == "ok" else gateway.engines.detail
        status = (
            f"Serving on {self._where}; {gateway.config.admission.max_active} slots; engine {gateway.health}: {how}"
        )
        return f"{status}; the last reload was refused, the log says why" if self._refused else status


def _with_port(address: Address, listener: trio.SocketListener) -> str:
    """Where `listener` listens, which was to be `address`: the kernel chooses the port for port 0."""
    if isinstance(address, TcpAddress):
        address = TcpAddress(address.host, listener.socket.getsockname()[1])
    return str(address)
