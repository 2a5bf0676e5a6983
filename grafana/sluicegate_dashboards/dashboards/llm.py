"""LLM Performance: what the engine does with its time, when first tokens are late or tokens slow."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from ..layout import Row, dashboard
from ..names import Uid
from ..panels import FILLING, NO_TRAFFIC, Query, Text, heat, series, table, timeline
from ..queries import engine, gateway
from . import shared

NO_ENGINE = "No metrics from vLLM: is the engine up?"


def board() -> Dashboard:
    """The dashboard."""
    return dashboard(
        Uid.LLM,
        "What vLLM does with its time: prefill, decode, its queue and its cache.",
        [_tokens(), _first_tokens(), _decode(), _cache(), _parts(), _lengths()],
    )


def _tokens() -> Row:
    return Row(
        "Tokens",
        height=8,
        width=12,
        panels=[
            series(
                Text(
                    "Tokens in the engine",
                    "Prompt tokens that vLLM processed and tokens that it generated, at the time it does so. If "
                    "requests run and both are 0, the engine is wedged.",
                    "suffix: tokens/s",
                    runbook=("SluicegateEngineWedged",),
                    empty=NO_ENGINE,
                ),
                Query(engine.PROMPT_TOKENS, "prompt"),
                Query(engine.GENERATION_TOKENS, "generated"),
            ),
            timeline(
                Text(
                    "Engine up",
                    "Whether the engine could serve. Each gap ended all running requests.",
                    "none",
                    runbook=("SluicegateEngineRestarting", "SluicegateEngineDown"),
                ),
                shared.YES_NO,
                Query(gateway.ENGINE_UP, "{{instance}}"),
            ),
        ],
    )


def _first_tokens() -> Row:
    return Row(
        "Time to first token",
        height=9,
        width=12,
        panels=[
            series(
                Text(
                    "Time to first token: gateway and engine",
                    "The same streams as measured by the gateway (with the wait for a slot) and by vLLM (without). "
                    "The difference between the two lines of a quantile is waiting; the rest is prefill and vLLM's "
                    "own queue.",
                    "s",
                    runbook=("SluicegateTtftBudgetBurningFast", "SluicegateTtftBudgetBurningSlow"),
                    empty=NO_TRAFFIC,
                ),
                Query(gateway.first_token(0.5), "gateway p50"),
                Query(engine.first_token(0.5), "vLLM p50"),
                Query(gateway.first_token(0.95), "gateway p95"),
                Query(engine.first_token(0.95), "vLLM p95"),
            ),
            series(
                Text(
                    "Where a request's time goes",
                    "Mean time of a request in vLLM's own queue, in prefill and in decode, stacked. Time in vLLM's "
                    "queue means that MAX_ACTIVE is above what vLLM runs at once. Long prefill: long prompts that are "
                    "not in the cache. Long decode: long answers, or too many at once.",
                    "s",
                    empty=NO_TRAFFIC,
                ),
                Query(engine.QUEUE_TIME, "vLLM queue"),
                Query(engine.PREFILL_TIME, "prefill"),
                Query(engine.DECODE_TIME, "decode"),
                stacked=True,
                colours={"vLLM queue": "orange", "prefill": "blue", "decode": "green"},
            ),
        ],
    )


def _decode() -> Row:
    return Row(
        "Decode",
        height=9,
        width=8,
        panels=[
            heat(
                Text(
                    "Gap between tokens",
                    "Every gap between two tokens in vLLM. A second band far above the first shows stalls: prefills "
                    "of other requests between the tokens, or preemptions.",
                    "s",
                    empty=NO_TRAFFIC,
                ),
                engine.INTER_TOKEN_BUCKETS,
            ),
            series(
                Text(
                    "Gap between tokens, quantiles",
                    "vLLM's quantiles are over all gaps, the gateway's mean is over streams. The gateway's mean far "
                    "above vLLM's p50: tokens are delayed between engine and client.",
                    "s",
                    empty=NO_TRAFFIC,
                ),
                Query(engine.inter_token(0.5), "vLLM p50"),
                Query(engine.inter_token(0.95), "vLLM p95"),
                Query(engine.inter_token(0.99), "vLLM p99"),
                Query(gateway.INTER_TOKEN_MEAN, "gateway mean"),
            ),
            series(
                Text(
                    "Whole request in the engine",
                    "From the arrival of a request in vLLM to its last token. It depends on the length of the "
                    "answers: compare it with Tokens per answer.",
                    "s",
                    empty=NO_TRAFFIC,
                ),
                Query(engine.end_to_end(0.5), "p50"),
                Query(engine.end_to_end(0.95), "p95"),
                Query(engine.end_to_end(0.99), "p99"),
            ),
        ],
    )


def _cache() -> Row:
    return Row(
        "Cache and endings",
        height=8,
        width=6,
        panels=[
            series(
                Text(
                    "KV cache",
                    "Share of the KV cache in use, by engine. Near 100 % requests are preempted.",
                    "percentunit",
                    runbook=("SluicegateKvCacheFull",),
                    more=Uid.CAPACITY,
                    empty=NO_ENGINE,
                ),
                Query(engine.KV_USED, "{{instance}} {{model_name}} {{engine}}"),
                maximum=1,
                steps=FILLING,
            ),
            series(
                Text(
                    "Requests preempted",
                    "Requests that lost their place in the cache and are computed again. Any steady rate means that "
                    "MAX_ACTIVE is too high for prompts of this length.",
                    "suffix: /s",
                    runbook=("SluicegatePreemptions",),
                    more=Uid.CAPACITY,
                    empty=NO_ENGINE,
                ),
                Query(engine.PREEMPTIONS, "{{instance}}"),
                steps=((None, "green"), (0.01, "red")),
            ),
            series(
                Text(
                    "Prefix cache hits",
                    "Share of prompt tokens that vLLM found in its prefix cache. It is high for chats with a shared "
                    "system prompt; a fall makes first tokens late without more load.",
                    "percentunit",
                    empty="No prompts, or prefix caching is off",
                ),
                Query(engine.PREFIX_HIT_RATIO, "{{model_name}}"),
                maximum=1,
            ),
            series(
                Text(
                    "Finished by reason",
                    "stop: the model ended the answer. length: cut at max_tokens or the context's length. abort: the "
                    "client disconnected, or the gateway cut the request. error: vLLM failed.",
                    "reqps",
                    empty=NO_TRAFFIC,
                ),
                Query(engine.FINISHED, "{{finished_reason}}"),
                stacked=True,
                colours={"stop": "green", "length": "yellow", "abort": "blue", "error": "red"},
            ),
        ],
    )


def _parts() -> Row:
    return Row(
        "By model and engine",
        height=8,
        width=(24, 12, 12),
        panels=[
            table(
                Text(
                    "Models and engines",
                    "Every engine process and the model that it serves, now. If one engine is slower or fuller than "
                    "others with the same model, check its GPU.",
                    "short",
                    more=Uid.INFRASTRUCTURE,
                    empty=NO_ENGINE,
                ),
                Query(engine.RUNNING_PARTS),
                Query(engine.WAITING_PARTS),
                Query(engine.FINISHED_PARTS),
                Query(engine.GENERATION_PARTS),
                Query(engine.FIRST_TOKEN_PARTS),
                Query(engine.KV_PARTS),
                names={
                    "instance": "Host",
                    "model_name": "Model",
                    "engine": "Engine",
                    "Value #A": "Running",
                    "Value #B": "Waiting",
                    "Value #C": "Finished",
                    "Value #D": "Generated",
                    "Value #E": "First token p95",
                    "Value #F": "KV cache",
                },
                units={
                    "Finished": "reqps",
                    "Generated": "suffix: tokens/s",
                    "First token p95": "s",
                    "KV cache": "percentunit",
                },
                sort="Generated",
            ),
            series(
                Text(
                    "Tokens by model",
                    "Tokens by model, counted when a request ends. `other`: a name that the engine does not serve.",
                    "suffix: tokens/s",
                    empty=NO_TRAFFIC,
                ),
                Query(gateway.MODEL_TOKENS, "{{model}} {{kind}}"),
            ),
            series(
                Text(
                    "Generated tokens by engine",
                    "Tokens per second of each engine process. Engines that share the work should have similar rates.",
                    "suffix: tokens/s",
                    empty=NO_ENGINE,
                ),
                Query(engine.GENERATION_PARTS, "{{instance}} {{model_name}} {{engine}}"),
            ),
        ],
    )


def _lengths() -> Row:
    return Row(
        "Lengths",
        height=8,
        width=12,
        panels=[
            heat(
                Text(
                    "Tokens per prompt",
                    "How long prompts are. They decide the prefill and the room in the KV cache: a rising band "
                    "explains late first tokens and preemptions.",
                    "short",
                    empty=NO_TRAFFIC,
                ),
                engine.PROMPT_LENGTHS,
            ),
            heat(
                Text(
                    "Tokens per answer",
                    "How long answers are. They decide how long a request holds its slot, and with it how many "
                    "requests a second the slots can serve.",
                    "short",
                    empty=NO_TRAFFIC,
                ),
                engine.ANSWER_LENGTHS,
            ),
        ],
    )
