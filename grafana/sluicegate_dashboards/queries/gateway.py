"""The gateway's metrics about requests, admission and itself: docs/observability.md explains each metric."""

from prometheus.sluicegate_rules.definitions import definitions, matcher

from .promql import WINDOW, buckets, mean, quantile, rate, ratio, select, total

# The groups of outcomes that the rules use, so that panels and alerts agree: prometheus/definitions.yml.
_DEFINED = definitions()
FAULTS = _DEFINED.matcher("fault")
#: What the service took on; errors are a share of these.
TAKEN_ON = _DEFINED.matcher("served", "fault")
SHED = _DEFINED.matcher("shed")
SERVED = _DEFINED.matcher("served")
GONE = _DEFINED.matcher("client")
#: A daemon, among the many processes that export process_*.
DAEMON = 'job="sluicegate"'
MODEL = 'model=~"$model"'

# Requests

BY_ENDPOINT_AND_STATUS = total(rate("api_requests_total"), "endpoint", "status")
REFUSED_BY_STATUS = total(rate("api_requests_total", 'status=~"[45]..|none"'), "status")
OUTCOMES = total(rate("api_outcomes_total"), "outcome")
OFFERED = total(rate("api_outcomes_total"))
SERVED_RATE = total(rate("api_outcomes_total", SERVED))
SHED_BY_REASON = total(rate("api_outcomes_total", 'outcome=~"shed_.*"'), "outcome")
ERROR_RATIO = ratio(total(rate("api_outcomes_total", FAULTS)), total(rate("api_outcomes_total", TAKEN_ON)))
SHED_RATIO = ratio(total(rate("api_outcomes_total", SHED)), OFFERED)
GONE_RATIO = ratio(total(rate("api_outcomes_total", GONE)), OFFERED)
#: Over the whole range that is shown, hence no rate interval: the numbers of a report.
OUTCOMES_IN_RANGE = total(f"increase({select('api_outcomes_total')}[$__range])", "outcome")
MODEL_REQUESTS = total(rate("api_model_requests_total", MODEL), "model")

# What users feel


def latency(q: float) -> str:
    """Quantile of the whole request, in seconds."""
    return quantile(q, "api_request_latency_seconds")


def first_token(q: float) -> str:
    """Quantile of the time to the first token, in seconds, waiting included."""
    return quantile(q, "api_time_to_first_token_seconds")


def queue_wait(q: float) -> str:
    """Quantile of the wait for a slot, in seconds."""
    return quantile(q, "api_queue_wait_seconds")


LATENCY_BY_ENDPOINT = quantile(0.95, "api_request_latency_seconds", by=("endpoint",))
FIRST_TOKEN_BUCKETS = buckets("api_time_to_first_token_seconds")
INTER_TOKEN_MEAN = mean("api_inter_token_seconds")
QUEUE_WAIT_BUCKETS = buckets("api_queue_wait_seconds")
QUEUE_WAIT_MEAN = mean("api_queue_wait_seconds")
REQUEST_SPEED = mean("api_tokens_per_second")
#: Streams per second that kept a goal: the goals are bounds of the buckets, so nothing is interpolated.
GOOD_FIRST_TOKEN = total(rate("api_time_to_first_token_seconds_bucket", 'le="$ttft_goal"'))
GOOD_PACE = total(rate("api_inter_token_seconds_bucket", 'le="$itl_goal"'))
STREAMS = total(rate("api_time_to_first_token_seconds_count"))
GOOD_SHARE = ratio(GOOD_FIRST_TOKEN, STREAMS)

TOKENS = total(rate("api_tokens_total"), "kind")
COMPLETION_TOKENS = total(rate("api_tokens_total", 'kind="completion"'))
COMPLETION_TOKENS_BY_HOST = total(rate("api_tokens_total", 'kind="completion"'), "instance")
MODEL_TOKENS = total(rate("api_model_tokens_total", MODEL), "model", "kind")

# Slots and queue, by host: a full host and an idle one are not half a load

ACTIVE = select("api_active_requests")
SLOTS = select("api_max_active")
WAITING = select("api_queue_depth")
QUEUE_LIMIT = select("api_queue_limit")
QUEUE_TIMEOUT = select("api_queue_timeout_seconds")
SLOTS_USED = ratio(ACTIVE, SLOTS)
#: A queue of 0 places (mode reject) has no share: no data.
QUEUE_USED = ratio(WAITING, QUEUE_LIMIT)
ALL_SLOTS_USED = ratio(total(ACTIVE), total(SLOTS))
ALL_QUEUE_USED = ratio(total(WAITING), total(QUEUE_LIMIT))
SLOTS_FREE = f"1 - {SLOTS_USED}"
OFFERED_BY_HOST = total(rate("api_outcomes_total"), "instance")
SERVED_BY_HOST = total(rate("api_outcomes_total", SERVED), "instance")
SHED_BY_HOST = total(rate("api_outcomes_total", SHED), "instance")
#: Little's law: slots over the time that a request holds one, which is the mean of the slots in use over the rate of
#: requests that ended. Only requests that had a slot may count, and served ones are nearly all of them.
CARRYING_CAPACITY = f"{SERVED_BY_HOST} * on (instance) {SLOTS} / on (instance) (avg_over_time({ACTIVE}[{WINDOW}]) > 0)"
#: As a share of the requests that ended their wait, with a slot or without one.
WAITED_IN_VAIN = ratio(
    total(rate("api_outcomes_total", matcher(_DEFINED.waited_in_vain))),
    total(rate("api_queue_wait_seconds_count")),
)

# Connections, process, build

GATEWAY_UP = select("up", DAEMON)
ENGINE_UP = select("api_engine_up")
CLIENT_CONNECTIONS = select("api_client_connections")
CONNECTION_LIMIT = select("api_client_connections_limit")
CONNECTIONS_REFUSED = total(rate("api_client_connections_refused_total"), "instance")
ENGINE_CONNECTIONS = total(select("api_engine_connections"), "instance", "state")
CPU = rate("process_cpu_seconds_total", DAEMON)
MEMORY = select("process_resident_memory_bytes", DAEMON)
DESCRIPTORS = select("process_open_fds", DAEMON)
DESCRIPTOR_LIMIT = select("process_max_fds", DAEMON)
COLLECTIONS = total(rate("python_gc_collections_total", DAEMON), "instance", "generation")
LINES_DROPPED = total(rate("api_log_lines_dropped_total"), "instance")
BUILD = select("api_build_info")
AGE = f"(time() - {select('process_start_time_seconds', DAEMON)}) * on (instance) group_left (version, python) {BUILD}"
RELOADS = total(f"increase({select('api_config_reloads_total')}[{WINDOW}])", "instance", "result")
RELOADED = select("api_config_last_reload_successful")
CERTIFICATE_LEFT = f"{select('api_tls_certificate_expiry_timestamp_seconds')} - time()"
HANDSHAKES_FAILED = total(rate("api_tls_handshakes_failed_total"), "instance", "reason")

# Moments, for annotations. A start time is an instant in itself (useValueForTime), so it is marked exactly.

DAEMON_STARTS = f"{select('process_start_time_seconds', DAEMON)} * 1000"
#: The start of a daemon whose version was not there one window ago.
DEPLOYS = (
    f"{select('process_start_time_seconds', DAEMON)} * 1000 * on (instance) group_left (version) "
    f"({BUILD} unless on (instance, version) last_over_time({BUILD}[{WINDOW}] offset {WINDOW}))"
)
RELOADS_SEEN = f"{RELOADS} > 0"
