"""vLLM's own metrics, which the gateway serves at /engine/metrics."""

from .promql import buckets, mean, quantile, rate, ratio, select, total

MODEL = 'model_name=~"$model"'
PARTS = ("instance", "model_name", "engine")

RUNNING = total(select("vllm:num_requests_running", MODEL), "instance")
WAITING = total(select("vllm:num_requests_waiting", MODEL), "instance")
KV_USED = select("vllm:kv_cache_usage_perc", MODEL)
#: The fullest engine of a host is the one that preempts first.
KV_FREE = f"1 - max by (instance) ({KV_USED})"
PREEMPTIONS = total(rate("vllm:num_preemptions_total", MODEL), "instance")
PROMPT_TOKENS = total(rate("vllm:prompt_tokens_total", MODEL))
GENERATION_TOKENS = total(rate("vllm:generation_tokens_total", MODEL))
PREFIX_HIT_RATIO = ratio(
    total(rate("vllm:prefix_cache_hits_total", MODEL), "model_name"),
    total(rate("vllm:prefix_cache_queries_total", MODEL), "model_name"),
)
FINISHED = total(rate("vllm:request_success_total", MODEL), "finished_reason")


def first_token(q: float) -> str:
    """Quantile of the time to the first token inside the engine, in seconds."""
    return quantile(q, "vllm:time_to_first_token_seconds", MODEL)


def end_to_end(q: float) -> str:
    """Quantile of a whole request inside the engine, in seconds."""
    return quantile(q, "vllm:e2e_request_latency_seconds", MODEL)


def inter_token(q: float) -> str:
    """Quantile of the gap between two tokens, in seconds: of every gap, not of each stream's mean."""
    return quantile(q, "vllm:inter_token_latency_seconds", MODEL)


INTER_TOKEN_BUCKETS = buckets("vllm:inter_token_latency_seconds", MODEL)
PROMPT_LENGTHS = buckets("vllm:request_prompt_tokens", MODEL)
ANSWER_LENGTHS = buckets("vllm:request_generation_tokens", MODEL)
QUEUE_TIME = mean("vllm:request_queue_time_seconds", MODEL)
PREFILL_TIME = mean("vllm:request_prefill_time_seconds", MODEL)
DECODE_TIME = mean("vllm:request_decode_time_seconds", MODEL)

# By model and engine

RUNNING_PARTS = total(select("vllm:num_requests_running", MODEL), *PARTS)
WAITING_PARTS = total(select("vllm:num_requests_waiting", MODEL), *PARTS)
KV_PARTS = f"max by ({', '.join(PARTS)}) ({KV_USED})"
FINISHED_PARTS = total(rate("vllm:request_success_total", MODEL), *PARTS)
GENERATION_PARTS = total(rate("vllm:generation_tokens_total", MODEL), *PARTS)
FIRST_TOKEN_PARTS = quantile(0.95, "vllm:time_to_first_token_seconds", MODEL, by=PARTS)

#: Of vLLM's API server; absent where that runs as several processes.
_PROCESS_START = select("process_start_time_seconds", 'job="vllm"')
STARTS = f"{_PROCESS_START} * 1000"
