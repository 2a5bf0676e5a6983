"""The configuration: frozen dataclasses, one per TOML table. Each field's metadata says which values are allowed.

`load.py` builds these from TOML and the environment; outside of tests nothing else constructs them.
"""

# ruff: noqa: RUF009 -- setting() returns a dataclasses.field(), which is what the rule wants

import dataclasses
import enum
from dataclasses import dataclass
from typing import Any

from .address import COLLECTOR, ENGINE, LISTEN, SECRET_FILE, Address, Notation, TcpAddress, UnixAddress
from .headers import HEADERS
from .networks import NETWORKS, Network
from .origin import ORIGINS

__all__ = [
    "Address",
    "AdmissionConfig",
    "Config",
    "CorsConfig",
    "EngineConfig",
    "FinalFrame",
    "GpuConfig",
    "LimitConfig",
    "LogConfig",
    "ProxyConfig",
    "QueueMode",
    "StreamConfig",
    "TcpAddress",
    "TimeoutConfig",
    "TlsConfig",
    "TracingConfig",
    "UnixAddress",
]


class QueueMode(enum.StrEnum):
    """What happens to a request when no slot is free."""

    QUEUE = "queue"
    REJECT = "reject"


class FinalFrame(enum.StrEnum):
    """What the gateway adds at the end of a healthy stream."""

    COMMENT = "comment"
    OFF = "off"


def setting(
    default: Any,
    doc: str,
    *,
    env: str | None = None,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    notation: Notation[Any] | None = None,
    restart: bool = False,
) -> Any:
    """A field, its meaning, and the values that it accepts.

    `env`: the environment variable that overrides it. `low`, `high`: the inclusive range, which every number has.
    `choices`: the allowed words of a text. `notation`: how an address is written, or another text of a fixed form; a
    field that is a tuple takes a list of them. `restart`: a reload cannot change it. The suffix of the name gives the
    unit: `_s` seconds, `_bytes` bytes.
    """
    metadata = {"doc": doc, "env": env, "low": low, "high": high, "choices": choices, "notation": notation}
    metadata["restart"] = restart
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """[engine]: the vLLM behind the gateway."""

    base_url: Address = setting(
        TcpAddress("127.0.0.1", 8000),
        "where vLLM listens",
        env="VLLM_BASE_URL",
        notation=ENGINE,
        restart=True,
    )
    model_name: str = setting(
        "", "model for requests that name none; empty: the engine's first model", env="MODEL_NAME"
    )
    api_key: str = setting(
        "", "the file with the key that vLLM asks for (`--api-key`); empty: it asks for none", notation=SECRET_FILE
    )
    #: What stands in that file, once `secret.py` has read it. No setting: it is neither shown nor compared.
    key: str = dataclasses.field(default="", repr=False, compare=False)
    probe_interval_s: float = setting(1.0, "time between health probes of the engine", low=0.05, high=60)
    connect_timeout_s: float = setting(2.0, "longest wait for a connection to the engine", low=0.05, high=60)
    pass_headers: tuple[str, ...] = setting(
        ("x-data-parallel-rank", "x-session-id", "x-vllm-priority", "endpoint-load-metrics-format"),
        "headers of requests that the engine gets besides those that it always gets ([routes.md](routes.md#headers))",
        notation=HEADERS,
    )


@dataclass(frozen=True, slots=True)
class AdmissionConfig:
    """[admission]: which requests may use the engine now, which are queued, which are refused."""

    max_active: int = setting(2, "slots: requests at the engine at one time", env="MAX_ACTIVE", low=1, high=65536)
    queue_mode: QueueMode = setting(
        QueueMode.QUEUE, "when no slot is free: queue, or reject (429) at once", env="QUEUE_MODE"
    )
    queue_max: int = setting(100, "requests that may be queued at one time", env="QUEUE_MAX", low=0, high=65536)
    queue_timeout_s: float = setting(120.0, "longest time in the queue", env="QUEUE_TIMEOUT_S", low=0.01, high=86400)


@dataclass(frozen=True, slots=True)
class TimeoutConfig:
    """[timeouts]: every wait is bounded. All in seconds."""

    request_s: float = setting(
        300.0, "from the slot to the last byte of the answer", env="REQUEST_TIMEOUT_S", low=0.01, high=86400
    )
    first_token_s: float = setting(120.0, "from the slot to the first byte of a stream", low=0.01, high=86400)
    idle_s: float = setting(60.0, "between two bytes of a stream", low=0.01, high=86400)
    client_stall_s: float = setting(15.0, "longest time that a client may take no bytes", low=0.01, high=3600)
    head_read_s: float = setting(10.0, "from a request's first byte to the end of its headers", low=0.01, high=600)
    body_read_s: float = setting(60.0, "from the end of the headers to the end of the body", low=0.01, high=3600)
    keep_alive_s: float = setting(75.0, "how long an idle client connection is kept", low=0.01, high=3600)
    drain_s: float = setting(30.0, "on SIGTERM: how long running requests may continue", low=0, high=86400)


@dataclass(frozen=True, slots=True)
class LimitConfig:
    """[limits]: sizes in bytes, and counts."""

    body_max_bytes: int = setting(32 * 1024 * 1024, "largest request body", low=1024, high=1 << 30)
    bodies_max_bytes: int = setting(
        512 * 1024 * 1024,
        "all request bodies in memory; one alone may always be as large as body_max_bytes",
        low=1024,
        high=1 << 40,
    )
    header_max_bytes: int = setting(32 * 1024, "largest request head", low=1024, high=1 << 20)
    connections_max: int = setting(4096, "open client connections", low=1, high=65536)
    answer_max_bytes: int = setting(64 * 1024 * 1024, "largest answer that is not a stream", low=1024, high=1 << 30)


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """[streams]: what the gateway itself sends within a stream. A request's own header fields go before these."""

    final_frame: FinalFrame = setting(
        FinalFrame.COMMENT, "at the end of a healthy stream: an SSE comment with token counts and times, or nothing"
    )
    ping_s: float = setting(
        0.0,
        "while a stream waits in the queue or for its first token: a ping in this interval, so that no proxy cuts it; "
        "after the first one errors come as an event, under status 200. 0: none",
        low=0,
        high=3600,
    )


@dataclass(frozen=True, slots=True)
class CorsConfig:
    """[cors]: web pages that may use the gateway; see [browsers.md](browsers.md)."""

    origins: tuple[str, ...] = setting(
        (), 'origins of pages that may send requests and read the answers; `"*"`: every page', notation=ORIGINS
    )


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """[proxies]: proxies in front of the gateway; see [proxies.md](proxies.md)."""

    trusted: tuple[Network, ...] = setting(
        (),
        "peers whose X-Forwarded-For, Forwarded or PROXY protocol (version 2) says who the client is; unix: all that "
        "connect through a Unix socket",
        notation=NETWORKS,
    )


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """[tls]: with a certificate, TCP addresses speak TLS; loopback addresses and Unix sockets stay plain."""

    certificate: str = setting(
        "", "PEM file with the certificate and its chain, or credential:NAME; empty: no TLS. Read anew at each reload"
    )
    key: str = setting("", "PEM file with the certificate's key, without a password, or credential:NAME")
    client_ca: str = setting(
        "",
        "PEM file with authorities, or credential:NAME: clients need a certificate of one of them. Empty: none needed",
    )


@dataclass(frozen=True, slots=True)
class LogConfig:
    """[log]: how the gateway logs."""

    format: str = setting(
        "auto",
        "auto: text on a terminal, journal where standard error is journald's, JSON otherwise",
        env="LOG_FORMAT",
        choices=("auto", "text", "json", "journal"),
        restart=True,
    )
    level: str = setting(
        "info", "the lowest level that is written", env="LOG_LEVEL", choices=("debug", "info", "warning", "error")
    )


@dataclass(frozen=True, slots=True)
class GpuConfig:
    """[gpu]: how the GPU is monitored."""

    sample_interval_s: float = setting(5.0, "time between two readings of the GPU", low=0.1, high=600)


@dataclass(frozen=True, slots=True)
class TracingConfig:
    """[tracing]: an OpenTelemetry span for each request, sent to a collector. Needs the extra `sluicegate[tracing]`."""

    endpoint: str = setting(
        "",
        "where a collector takes OTLP over HTTP, as `http://127.0.0.1:4318` (`/v1/traces` is added); empty: no spans",
        notation=COLLECTOR,
        restart=True,
    )
    sample_ratio: float = setting(
        1.0, "share of the requests that come without a trace for which one begins", low=0, high=1
    )


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration, validated."""

    listen: tuple[Address, ...] = setting(
        (TcpAddress("127.0.0.1", 8080),), "where clients connect", env="LISTEN", notation=LISTEN, restart=True
    )
    engine: EngineConfig = EngineConfig()
    admission: AdmissionConfig = AdmissionConfig()
    timeouts: TimeoutConfig = TimeoutConfig()
    limits: LimitConfig = LimitConfig()
    streams: StreamConfig = StreamConfig()
    cors: CorsConfig = CorsConfig()
    proxies: ProxyConfig = ProxyConfig()
    tls: TlsConfig = TlsConfig()
    log: LogConfig = LogConfig()
    gpu: GpuConfig = GpuConfig()
    tracing: TracingConfig = TracingConfig()
