"""API Gateway: the daemon itself, when Overview says that something is wrong with requests."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from ..layout import Row, dashboard
from ..names import Uid
from ..panels import NO_TRAFFIC, Query, Text, heat, series, table, timeline
from ..queries import gateway
from . import shared


def board() -> Dashboard:
    """The dashboard."""
    return dashboard(
        Uid.GATEWAY,
        "What the gateway did with each request, and the state of the daemon itself.",
        [_waiting(), _endings(), _connections(), _process(), _build()],
    )


def _waiting() -> Row:
    return Row(
        "Waiting and first tokens",
        height=9,
        width=12,
        panels=[
            heat(
                Text(
                    "Queue wait",
                    "How long requests waited for a slot. One band at the bottom: slots are free. A rising band: the "
                    "queue grows. Two bands: short and long requests compete, or hosts differ.",
                    "s",
                    runbook=("SluicegateQueueWaitNearTimeout",),
                    more=Uid.CAPACITY,
                    empty=NO_TRAFFIC,
                ),
                gateway.QUEUE_WAIT_BUCKETS,
            ),
            heat(
                Text(
                    "Time to first token, distribution",
                    "Time from a stream's request to its first byte, waiting included. A second band far above the "
                    "first shows what an average hides: long prompts, or a preempting engine.",
                    "s",
                    runbook=("SluicegateTtftBudgetBurningFast",),
                    more=Uid.LLM,
                    empty=NO_TRAFFIC,
                ),
                gateway.FIRST_TOKEN_BUCKETS,
            ),
        ],
    )


def _endings() -> Row:
    return Row(
        "How requests ended",
        height=9,
        width=(8, 16, 8, 8, 8),
        panels=[
            table(
                Text(
                    "Outcomes in this time range",
                    "Requests by outcome in the time range shown. Every request has exactly one outcome; `journalctl "
                    "SLUICEGATE_OUTCOME=<outcome>` lists the requests themselves.",
                    "short",
                    runbook=("SluicegateErrorBudgetBurningFast",),
                    empty=NO_TRAFFIC,
                ),
                Query(gateway.OUTCOMES_IN_RANGE),
                names={"outcome": "Outcome", "Value": "Requests"},
                sort="Requests",
            ),
            shared.outcomes(),
            series(
                Text(
                    "Shed by reason",
                    "busy: no free slot in mode reject. queue_full: QUEUE_MAX requests were queued already. "
                    "queue_timeout: no slot within QUEUE_TIMEOUT_S; lower QUEUE_MAX then, because such requests are "
                    "better refused at once. draining: the daemon was stopping.",
                    "reqps",
                    runbook=("SluicegateShedding",),
                    more=Uid.CAPACITY,
                    empty=NO_TRAFFIC,
                ),
                Query(gateway.SHED_BY_REASON, "{{outcome}}"),
                stacked=True,
                colours=shared.OUTCOME_COLOURS,
            ),
            series(
                Text(
                    "Refusals and failures by status",
                    "HTTP statuses other than success; none: the client disconnected before one. 4xx except 429 are "
                    "clients' errors, 429 and 503 carry Retry-After, 502 and 504 come from the engine. If clients "
                    "ignore Retry-After, 429 rises faster than the served requests.",
                    "reqps",
                    runbook=("SluicegateShedding", "SluicegateErrorBudgetBurningFast"),
                    empty=NO_TRAFFIC,
                ),
                Query(gateway.REFUSED_BY_STATUS, "{{status}}"),
                stacked=True,
            ),
            series(
                Text(
                    "Latency by endpoint, p95",
                    "Embeddings take milliseconds, answers seconds to minutes: compare an endpoint only with itself.",
                    "s",
                    empty=NO_TRAFFIC,
                ),
                Query(gateway.LATENCY_BY_ENDPOINT, "{{endpoint}}"),
            ),
        ],
    )


def _connections() -> Row:
    return Row(
        "Connections",
        height=8,
        width=8,
        panels=[
            series(
                Text(
                    "Client connections",
                    "Open connections of clients, idle ones included, against limits.connections_max (dashed): above "
                    "it a new client gets a 503. Far more of them than requests is a client that opens one for each.",
                    "short",
                    runbook=("SluicegateConnectionsNearLimit",),
                ),
                Query(gateway.CLIENT_CONNECTIONS, "{{instance}} open"),
                Query(gateway.CONNECTION_LIMIT, "{{instance}} limit", limit=True),
            ),
            series(
                Text(
                    "Refused connections",
                    "Connections above limits.connections_max, answered 503. Their requests are not read, and so are "
                    "in no other panel.",
                    "suffix: /s",
                    runbook=("SluicegateConnectionsNearLimit",),
                ),
                Query(gateway.CONNECTIONS_REFUSED, "{{instance}}"),
            ),
            series(
                Text(
                    "Engine connections",
                    "Connections to vLLM, idle (kept for the next request) or busy. Busy ones should equal the slots "
                    "in use: more of them mean that the engine still works on requests that have ended.",
                    "short",
                    more=Uid.LLM,
                ),
                Query(gateway.ENGINE_CONNECTIONS, "{{instance}} {{state}}"),
                Query(gateway.ACTIVE, "{{instance}} slots in use"),
            ),
        ],
    )


def _process() -> Row:
    return Row(
        "The daemon's process",
        height=8,
        width=(8, 8, 8, 12, 12),
        panels=[
            series(
                Text(
                    "CPU",
                    "CPU cores that the daemon uses. Its Python can use one core: near 1.0 it is the bottleneck, and "
                    "tokens are late in every stream.",
                    "suffix: cores",
                ),
                Query(gateway.CPU, "{{instance}}"),
            ),
            series(
                Text(
                    "Memory",
                    "Resident memory of the daemon. It grows and shrinks with the open requests; growth from day to "
                    "day at the same load is a leak.",
                    "bytes",
                ),
                Query(gateway.MEMORY, "{{instance}}"),
            ),
            series(
                Text(
                    "File descriptors",
                    "Open descriptors against the process' limit (dashed, LimitNOFILE=). A request takes up to four: "
                    "two sockets, and the pump's own duplicates of them. Near the limit new connections get a 503.",
                    "short",
                    runbook=("SluicegateFileDescriptorsNearLimit", "SluicegateExhausted"),
                ),
                Query(gateway.DESCRIPTORS, "{{instance}} open"),
                Query(gateway.DESCRIPTOR_LIMIT, "{{instance}} limit", limit=True),
            ),
            series(
                Text(
                    "Garbage collections",
                    "Runs of Python's garbage collector by generation. Generation 2 scans all objects and pauses the "
                    "daemon longest: it should be by far the rarest.",
                    "ops",
                ),
                Query(gateway.COLLECTIONS, "{{instance}} generation {{generation}}"),
            ),
            series(
                Text(
                    "Log lines dropped",
                    "Lines that journald did not take at once. Any value above 0 means that journald or the disk is "
                    "too slow. Requests are not delayed.",
                    "suffix: lines/s",
                    runbook=("SluicegateLogLinesDropped",),
                ),
                Query(gateway.LINES_DROPPED, "{{instance}}"),
                steps=((None, "green"), (0.01, "red")),
            ),
        ],
    )


def _build() -> Row:
    return Row(
        "Version and configuration",
        height=7,
        width=(8, 8, 8, 12, 12),
        panels=[
            table(
                Text(
                    "Versions",
                    "The version and the uptime of each host. Different versions on hosts that should be the same: an "
                    "upgrade stopped half way. A low age without a deploy: the daemon is restarting.",
                    "none",
                    runbook=("SluicegateGatewayRestarting",),
                ),
                Query(gateway.AGE),
                names={"instance": "Host", "version": "Sluicegate", "python": "Python", "Value": "Runs for"},
                units={"Runs for": "dtdurations"},
                sort="Sluicegate",
            ),
            series(
                Text(
                    "Configuration reloads",
                    "Reloads that were applied, and reloads that were refused. After a refused one the old "
                    "configuration is still in effect, and the log names the reasons.",
                    "short",
                    runbook=("SluicegateReloadRefused",),
                ),
                Query(gateway.RELOADS, "{{instance}} {{result}}"),
            ),
            timeline(
                Text(
                    "Last reload",
                    "Whether the configuration in effect is the one on disk. Refused: correct the file (`sluicegate "
                    "check` names the errors) and reload again.",
                    "none",
                    runbook=("SluicegateReloadRefused",),
                ),
                {"0": ("Refused", "red"), "1": ("Applied", "green")},
                Query(gateway.RELOADED, "{{instance}}"),
            ),
            series(
                Text(
                    "Certificate: time left",
                    "Until the certificate expires that clients get, as the daemon has it in memory. A renewal shows "
                    "after the reload that follows it. Empty without TLS.",
                    "s",
                    runbook=("SluicegateCertificateExpiresSoon", "SluicegateCertificateExpired"),
                ),
                Query(gateway.CERTIFICATE_LEFT, "{{instance}} {{certificate}}"),
            ),
            series(
                Text(
                    "TLS handshakes that failed",
                    "By reason. error after a change: clients do not accept the certificate, or theirs is not "
                    "accepted. timeout and crowded: half-open handshakes, as of a scan or an attack.",
                    "suffix: handshakes/s",
                ),
                Query(gateway.HANDSHAKES_FAILED, "{{instance}} {{reason}}"),
            ),
        ],
    )
