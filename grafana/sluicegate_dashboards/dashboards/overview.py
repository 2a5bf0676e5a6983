"""API Overview: is it serving, and is it serving well? The first one to open."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from ..layout import Row, dashboard
from ..names import Uid
from ..panels import FILLING, NEVER, NO_TRAFFIC, Query, Text, series, stat, table, timeline
from ..queries import alerts, gateway, objectives
from . import shared


def board() -> Dashboard:
    """The dashboard."""
    return dashboard(
        Uid.OVERVIEW,
        "Is the gateway serving, and serving well? Open this dashboard first.",
        [_now(), _requests(), _users(), _gate(), _objectives(), _alerts()],
    )


def _now() -> Row:
    return Row(
        "Now",
        height=4,
        width=3,
        panels=[
            stat(
                Text(
                    "Engine",
                    "Whether vLLM answers and has its model loaded. Down: every new request gets a 503.",
                    "none",
                    runbook=("SluicegateEngineDown",),
                ),
                Query(f"min({gateway.ENGINE_UP})"),
                words=shared.YES_NO,
            ),
            stat(
                Text(
                    "Slots used",
                    "Share of all slots in use. 100 % for long, with a queue: the machine is full.",
                    "percentunit",
                    runbook=("SluicegateSaturated",),
                    more=Uid.CAPACITY,
                ),
                Query(gateway.ALL_SLOTS_USED),
                FILLING,
                decimals=0,
            ),
            stat(
                Text(
                    "Queue used",
                    "Share of the queue's places in use. Near 100 % the next requests are shed.",
                    "percentunit",
                    runbook=("SluicegateShedding",),
                    more=Uid.CAPACITY,
                    empty="No queue (mode reject)",
                ),
                Query(gateway.ALL_QUEUE_USED),
                FILLING,
                decimals=0,
            ),
            stat(
                Text(
                    "Requests",
                    "Requests that ended each second, whatever their outcome.",
                    "reqps",
                    more=Uid.GATEWAY,
                ),
                Query(gateway.OFFERED),
            ),
            stat(
                Text(
                    "Errors",
                    "Share of the accepted requests that failed or missed a deadline at the engine; shed requests are "
                    "not errors. Orange: more than the objective allows. Red: enough to page if it lasts.",
                    "percentunit",
                    runbook=("SluicegateErrorBudgetBurningFast",),
                    more=Uid.GATEWAY,
                    empty=NO_TRAFFIC,
                ),
                Query(gateway.ERROR_RATIO),
                ((None, "green"), (objectives.ERRORS_ALLOWED, "orange"), (objectives.ERRORS_PAGE, "red")),
                decimals=2,
            ),
            stat(
                Text(
                    "First token, p95",
                    "19 of 20 streams get their first token within this time, waiting included. Compare it with the "
                    "goal chosen above.",
                    "s",
                    runbook=("SluicegateTtftBudgetBurningFast",),
                    more=Uid.LLM,
                    empty=NO_TRAFFIC,
                ),
                Query(gateway.first_token(0.95)),
            ),
            stat(
                Text(
                    "Completion tokens",
                    "Tokens per second of all requests together, as the engine reports them when requests end.",
                    "suffix: tokens/s",
                    more=Uid.LLM,
                ),
                Query(gateway.COMPLETION_TOKENS),
                decimals=0,
            ),
            stat(
                Text(
                    "Alerts firing",
                    "Alerts of this Prometheus that fire now; the list is at the bottom.",
                    "short",
                ),
                Query(alerts.FIRING_COUNT),
                NEVER,
                decimals=0,
            ),
        ],
    )


def _requests() -> Row:
    return Row(
        "Requests",
        height=9,
        width=12,
        panels=[
            shared.outcomes(),
            series(
                Text(
                    "Requests by endpoint and status",
                    "By route and HTTP status; none: the client disconnected before a status was sent. 429 and 503 "
                    "are normal under load until they outweigh 200.",
                    "reqps",
                    runbook=("SluicegateShedding",),
                    more=Uid.GATEWAY,
                    empty=NO_TRAFFIC,
                ),
                Query(gateway.BY_ENDPOINT_AND_STATUS, "{{status}} {{endpoint}}"),
                stacked=True,
            ),
            series(
                Text(
                    "Errors, shed and abandoned",
                    "Shares of all requests. Errors: failures and missed deadlines at the engine. Shed: refused by "
                    "the gateway, because the load is more than the slots can serve. Abandoned: the client "
                    "disconnected first, often because it waited too long.",
                    "percentunit",
                    runbook=(
                        "SluicegateErrorBudgetBurningFast",
                        "SluicegateErrorBudgetBurningSlow",
                        "SluicegateShedding",
                    ),
                    more=Uid.GATEWAY,
                    empty=NO_TRAFFIC,
                ),
                Query(gateway.ERROR_RATIO, "errors"),
                Query(gateway.SHED_RATIO, "shed"),
                Query(gateway.GONE_RATIO, "abandoned"),
                colours={"errors": "red", "shed": "orange", "abandoned": "blue"},
            ),
            series(
                Text(
                    "Requests by model",
                    "The models that clients request. `other`: a name that the engine does not serve, most often from "
                    "a client with an old configuration.",
                    "reqps",
                    more=Uid.LLM,
                    empty=NO_TRAFFIC,
                ),
                Query(gateway.MODEL_REQUESTS, "{{model}}"),
            ),
        ],
    )


def _users() -> Row:
    return Row(
        "What users feel",
        height=9,
        width=(8, 8, 8, 12, 12),
        panels=[
            series(
                Text(
                    "Time to first token",
                    "From a stream's request to its first byte, waiting included. Compare it with the wait on API "
                    "Gateway: the rest is the engine's prefill.",
                    "s",
                    runbook=("SluicegateTtftBudgetBurningFast",),
                    more=Uid.LLM,
                    empty=NO_TRAFFIC,
                ),
                *(Query(gateway.first_token(q / 100), f"p{q}") for q in (50, 95, 99)),
            ),
            series(
                Text(
                    "Request latency",
                    "From a request's head to the end of its answer, for those that reached the engine. It grows with "
                    "the length of the answers: compare it with the tokens.",
                    "s",
                    more=Uid.GATEWAY,
                    empty=NO_TRAFFIC,
                ),
                *(Query(gateway.latency(q / 100), f"p{q}") for q in (50, 95, 99)),
            ),
            shared.goodput(),
            series(
                Text(
                    "Tokens",
                    "Prompt and completion tokens of all requests, counted when a request ends. If completion tokens "
                    "fall while all slots are in use, the engine has become slower.",
                    "suffix: tokens/s",
                    runbook=("SluicegateEngineWedged",),
                    more=Uid.LLM,
                ),
                Query(gateway.TOKENS, "{{kind}}"),
            ),
            series(
                Text(
                    "Pace of one request",
                    "Completion tokens per second that one request gets on average, its prefill included, its wait "
                    f"not. Below {1 / objectives.INTER_TOKEN_S:.0f} ({objectives.INTER_TOKEN_S * 1000:.0f} ms a token) "
                    "people read faster than the tokens come: lower MAX_ACTIVE.",
                    "suffix: tokens/s",
                    more=Uid.CAPACITY,
                    empty=NO_TRAFFIC,
                ),
                Query(gateway.REQUEST_SPEED, "mean"),
            ),
        ],
    )


def _gate() -> Row:
    return Row("The gate", height=8, width=12, panels=[shared.slots(), shared.queue()])


def _objectives() -> Row:
    return Row(
        "Objectives",
        height=8,
        width=12,
        panels=[
            series(
                Text(
                    "Error budget",
                    "Share of failed requests over an hour, six hours and three days. The objective allows "
                    f"{objectives.ERRORS.allowed_percent} % (dashed). Three days above it: the month's budget will "
                    "not last. One hour far above it pages.",
                    "percentunit",
                    runbook=("SluicegateErrorBudgetBurningFast", "SluicegateErrorBudgetBurningSlow"),
                    more=Uid.GATEWAY,
                ),
                *(Query(objectives.errors(window), f"{{{{instance}}}} {window}") for window in objectives.WINDOWS),
                steps=((None, "green"), (objectives.ERRORS_ALLOWED, "red")),
            ),
            series(
                Text(
                    "First-token budget",
                    f"Share of streams whose first token took more than {objectives.FIRST_TOKEN.seconds} s, over an "
                    f"hour, six hours and three days. The objective allows {objectives.FIRST_TOKEN.allowed_percent} % "
                    "(dashed), whatever goal is chosen above.",
                    "percentunit",
                    runbook=("SluicegateTtftBudgetBurningFast", "SluicegateTtftBudgetBurningSlow"),
                    more=Uid.LLM,
                ),
                *(Query(objectives.late(window), f"{{{{instance}}}} {window}") for window in objectives.WINDOWS),
                steps=((None, "green"), (objectives.LATE_ALLOWED, "red")),
            ),
        ],
    )


def _alerts() -> Row:
    return Row(
        "Alerts",
        height=8,
        width=12,
        panels=[
            table(
                Text(
                    "Alerts",
                    "Alerts that fire or will soon fire (pending), by severity: act on a page now, on a ticket this "
                    "week. The runbook explains each alert under its name.",
                    "none",
                    empty="No alert fires or is pending",
                ),
                Query(alerts.LIST),
                names={
                    "alertname": "Alert",
                    "severity": "Severity",
                    "alertstate": "State",
                    "instance": "Host",
                    "Value": "Series",
                },
                sort="Severity",
            ),
            timeline(
                Text(
                    "Gateway and engine up",
                    "When Prometheus reached the gateway, and when the gateway's engine could serve. An engine that "
                    "loads its model is down for minutes; a gateway is down for seconds at most.",
                    "none",
                    runbook=("SluicegateGatewayDown", "SluicegateEngineDown"),
                    more=Uid.LLM,
                ),
                shared.YES_NO,
                Query(gateway.GATEWAY_UP, "{{instance}} gateway"),
                Query(gateway.ENGINE_UP, "{{instance}} engine"),
            ),
        ],
    )
