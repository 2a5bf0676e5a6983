"""Panels that stand on more than one dashboard, and colours that mean the same on all of them."""

from grafana_foundation_sdk.models.dashboard import Panel

from ..names import Uid
from ..panels import BAD, GOOD, NO_TRAFFIC, Query, Text, series
from ..queries import gateway, gpu

#: Good is green, the gate at work yellow to orange, the engine's faults red, deadlines purple, the client's doing blue.
OUTCOME_COLOURS = {
    "served": "green",
    "shed_busy": "light-yellow",
    "shed_queue_full": "yellow",
    "shed_queue_timeout": "orange",
    "shed_draining": "dark-yellow",
    "shed_exhausted": "dark-orange",
    "engine_unavailable": "dark-red",
    "engine_error": "red",
    "engine_truncated": "light-red",
    "timeout_first_token": "dark-purple",
    "timeout_idle": "purple",
    "timeout_total": "light-purple",
    "client_gone_queued": "light-blue",
    "client_gone_active": "blue",
    "client_stalled": "dark-blue",
    "invalid": "#8e8e8e",
    "too_large": "#b0b0b0",
    "internal_error": "#4d0000",
}

YES_NO = {"0": ("Down", BAD), "1": ("Up", GOOD)}


def outcomes() -> Panel:
    """What became of the requests."""
    return series(
        Text(
            "Outcomes",
            "Requests by outcome, stacked: the height is the offered load. Green is served, yellow to orange "
            "is refused by the gateway, red and purple are failures and deadlines at the engine, blue are "
            "clients that disconnected. Yellow with steady green is an overload under control; investigate "
            "red or purple.",
            "reqps",
            runbook=("SluicegateErrorBudgetBurningFast",),
            more=Uid.GATEWAY,
            empty=NO_TRAFFIC,
        ),
        Query(gateway.OUTCOMES, "{{outcome}}"),
        stacked=True,
        colours=OUTCOME_COLOURS,
    )


def slots() -> Panel:
    """Slots in use against the limit."""
    return series(
        Text(
            "Slots in use",
            "Requests at the engine, against MAX_ACTIVE (dashed). At the limit with a queue the machine is "
            "full; below the limit with a queue is a bug in the gateway.",
            "short",
            runbook=("SluicegateSaturated",),
            more=Uid.CAPACITY,
        ),
        Query(gateway.ACTIVE, "{{instance}} in use"),
        Query(gateway.SLOTS, "{{instance}} limit", limit=True),
    )


def queue() -> Panel:
    """Waiting requests against the limit."""
    return series(
        Text(
            "Requests waiting",
            "Queued requests, against QUEUE_MAX (dashed). Short peaks are the purpose of the queue; a queue "
            "that stays at its limit only makes requests wait before they are shed.",
            "short",
            runbook=("SluicegateSaturated",),
            more=Uid.CAPACITY,
        ),
        Query(gateway.WAITING, "{{instance}} waiting"),
        Query(gateway.QUEUE_LIMIT, "{{instance}} limit", limit=True),
    )


def goodput() -> Panel:
    """Offered, served, and served well."""
    return series(
        Text(
            "Goodput against offered load",
            "Requests per second that arrived, requests that were served, and streams that met the goals "
            "chosen above. If goodput falls while the offered load rises, there are too many slots: the "
            "engine serves many requests badly instead of some well.",
            "reqps",
            runbook=("SluicegateTtftBudgetBurningFast",),
            more=Uid.CAPACITY,
            empty=NO_TRAFFIC,
        ),
        Query(gateway.OFFERED, "offered"),
        Query(gateway.SERVED_RATE, "served"),
        Query(gateway.GOOD_FIRST_TOKEN, "first token within the goal"),
        Query(gateway.GOOD_PACE, "pace within the goal"),
        colours={"offered": "text", "served": "green", "first token within the goal": "blue"},
    )


def tokens_per_joule() -> Panel:
    """What the electricity buys."""
    return series(
        Text(
            "Tokens per joule",
            "Completion tokens per joule that the GPUs used, by host: from DCGM's energy counter, or from the "
            "gateway's power readings where DCGM is not scraped. It rises with the batch size: a full GPU is "
            "the most efficient. Use it to compare models and settings at the same load.",
            "suffix: tokens/J",
            empty="No GPU power reading",
        ),
        Query(gpu.TOKENS_PER_JOULE, "{{instance}}"),
        step="1m",
    )
