"""Capacity & Saturation: is the machine full, of what, and what would help?"""

from grafana_foundation_sdk.models.dashboard import Dashboard

from ..layout import Row, dashboard
from ..names import Uid
from ..panels import FILLING, NO_TRAFFIC, Query, Text, series
from ..queries import engine, gateway, gpu
from . import shared


def board() -> Dashboard:
    """The dashboard."""
    return dashboard(
        Uid.CAPACITY,
        "Is the machine full, which resource is full, and would more slots, fewer slots or another GPU help?",
        [_gate(), _load(), _engine(), _gpu()],
    )


def _gate() -> Row:
    return Row(
        "The gate",
        height=8,
        width=8,
        panels=[
            series(
                Text(
                    "Share of slots in use",
                    "At 100 % for long the machine is full. Check the KV cache and the GPU below before you add "
                    "slots: if the engine is full too, it only gets slower.",
                    "percentunit",
                    runbook=("SluicegateSaturated",),
                ),
                Query(gateway.SLOTS_USED, "{{instance}}"),
                maximum=1,
                steps=FILLING,
            ),
            series(
                Text(
                    "Share of the queue in use",
                    "At 100 % the next request gets a 429. A queue that never empties does not help: it only makes "
                    "every wait longer.",
                    "percentunit",
                    runbook=("SluicegateShedding", "SluicegateSheddingHeavily"),
                    empty="No queue (mode reject)",
                ),
                Query(gateway.QUEUE_USED, "{{instance}}"),
                maximum=1,
                steps=FILLING,
            ),
            series(
                Text(
                    "Headroom",
                    "The share of slots that are free, and the free share of the fullest KV cache. The one that "
                    "reaches 0 first limits this machine.",
                    "percentunit",
                ),
                Query(gateway.SLOTS_FREE, "{{instance}} slots"),
                Query(engine.KV_FREE, "{{instance}} KV cache"),
                maximum=1,
            ),
            shared.slots(),
            shared.queue(),
            series(
                Text(
                    "Waited without getting a slot",
                    "Share of queued requests that got no slot: they timed out after QUEUE_TIMEOUT_S, or the client "
                    "disconnected. Above a few percent the queue is too long for this load: lower QUEUE_MAX.",
                    "percentunit",
                    runbook=("SluicegateQueueWaitNearTimeout",),
                    empty=NO_TRAFFIC,
                ),
                Query(gateway.WAITED_IN_VAIN, "timed out or disconnected"),
            ),
        ],
    )


def _load() -> Row:
    return Row(
        "Load",
        height=9,
        width=12,
        panels=[
            series(
                Text(
                    "Queue wait against its timeout",
                    "Wait for a slot, against QUEUE_TIMEOUT_S (dashed). A p99 at the timeout means that requests wait "
                    "and then get no slot.",
                    "s",
                    runbook=("SluicegateQueueWaitNearTimeout",),
                    empty=NO_TRAFFIC,
                ),
                Query(gateway.queue_wait(0.5), "p50"),
                Query(gateway.queue_wait(0.99), "p99"),
                Query(gateway.QUEUE_WAIT_MEAN, "mean"),
                Query(gateway.QUEUE_TIMEOUT, "{{instance}} timeout", limit=True),
            ),
            series(
                Text(
                    "Offered, served, shed",
                    "By host. Dashed: the rate that the slots can serve at the present mix of requests (slots divided "
                    "by the time that a request holds one). It is an estimate, and too high while the machine is "
                    "idle, because a request that is alone on the GPU is faster. Offered load above it is shed.",
                    "reqps",
                    runbook=("SluicegateShedding",),
                    empty=NO_TRAFFIC,
                ),
                Query(gateway.OFFERED_BY_HOST, "{{instance}} offered"),
                Query(gateway.SERVED_BY_HOST, "{{instance}} served"),
                Query(gateway.SHED_BY_HOST, "{{instance}} shed"),
                Query(gateway.CARRYING_CAPACITY, "{{instance}} can carry", limit=True),
            ),
            shared.goodput(),
            series(
                Text(
                    "Share of streams within the goal",
                    "Share of the streams with a first token that got it within the goal chosen above. Keep it steady "
                    "while you raise MAX_ACTIVE.",
                    "percentunit",
                    runbook=("SluicegateTtftBudgetBurningFast",),
                    empty=NO_TRAFFIC,
                ),
                Query(gateway.GOOD_SHARE, "first token within the goal"),
                maximum=1,
            ),
        ],
    )


def _engine() -> Row:
    return Row(
        "The engine",
        height=8,
        width=8,
        panels=[
            series(
                Text(
                    "Engine's requests against slots",
                    "Requests that vLLM runs and queues itself, against MAX_ACTIVE (dashed). Requests that wait "
                    "inside vLLM hold a slot and make no progress: its max-num-seqs or its KV cache is smaller than "
                    "MAX_ACTIVE.",
                    "short",
                    more=Uid.LLM,
                ),
                Query(engine.RUNNING, "{{instance}} running"),
                Query(engine.WAITING, "{{instance}} waiting in vLLM"),
                Query(gateway.SLOTS, "{{instance}} slots", limit=True),
            ),
            series(
                Text(
                    "KV cache used",
                    "Near 100 % vLLM preempts requests and computes their prompts again. Lower MAX_ACTIVE, shorten "
                    "the context, or give the engine more memory.",
                    "percentunit",
                    runbook=("SluicegateKvCacheFull",),
                    more=Uid.LLM,
                ),
                Query(engine.KV_USED, "{{instance}} {{model_name}} {{engine}}"),
                maximum=1,
                steps=FILLING,
            ),
            series(
                Text(
                    "Preemptions",
                    "Requests that vLLM removed from its cache to make room; each is computed again from its prompt. "
                    "Any steady rate wastes capacity: lower MAX_ACTIVE.",
                    "suffix: /s",
                    runbook=("SluicegatePreemptions",),
                    more=Uid.LLM,
                ),
                Query(engine.PREEMPTIONS, "{{instance}}"),
                steps=((None, "green"), (0.01, "red")),
            ),
        ],
    )


def _gpu() -> Row:
    return Row(
        "GPU",
        height=8,
        width=12,
        panels=[
            series(
                Text(
                    "GPU utilisation against slots",
                    "Share of time with a kernel running, and the share of slots in use. Slots full and GPU idle: "
                    "more slots would help, or the CPU limits the engine. GPU full with few slots: more slots only "
                    "make each request slower.",
                    "percentunit",
                    more=Uid.INFRASTRUCTURE,
                ),
                Query(gpu.UTILIZATION_BY_HOST, "{{instance}} GPU"),
                Query(gateway.SLOTS_USED, "{{instance}} slots"),
                maximum=1,
            ),
            shared.tokens_per_joule(),
        ],
    )
