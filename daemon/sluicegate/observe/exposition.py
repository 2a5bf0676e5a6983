"""The body of GET /metrics: Prometheus text, or OpenMetrics for a scraper that prefers it."""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.exposition import generate_latest as text_format
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE_OPENMETRICS
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_format

#: An Accept header has a handful of ranges; a longer one is not a scraper's.
_RANGES_MAX = 32


def expose(registry: CollectorRegistry, accept: str | None) -> tuple[bytes, str]:
    """The exposition of `registry` and its content type, in the format that an Accept header asks for.

    The content type is one of two constants: prometheus_client's own negotiation echoes the client's version back.
    """
    collected = _WithoutCreated(registry)
    if wants_openmetrics(accept):
        return openmetrics_format(collected), CONTENT_TYPE_OPENMETRICS  # type: ignore[no-untyped-call]
    return text_format(collected), CONTENT_TYPE_PLAIN_0_0_4


def wants_openmetrics(accept: str | None) -> bool:
    """True if OpenMetrics 1.0 is accepted at least as gladly (RFC 9110, 12.4.2) as Prometheus text."""
    openmetrics = text = 0.0
    for accepted in (accept or "").split(",")[:_RANGES_MAX]:
        name, *parameters = (part.strip().lower() for part in accepted.split(";"))
        named = dict(part.split("=", 1) for part in parameters if "=" in part)
        quality = _quality(named.get("q", "1"))
        if name == "application/openmetrics-text" and named.get("version", "1.0.0") == "1.0.0":
            openmetrics = max(openmetrics, quality)
        elif name == "text/plain":
            text = max(text, quality)
    return openmetrics > 0 and openmetrics >= text


def _quality(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return 0.0


class _WithoutCreated:
    """A registry's families without their `_created` samples.

    Those double the series of every labelled counter, and process_start_time_seconds already tells when they began.
    prometheus_client can switch them off as well, but for the whole process.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        return self._families()

    def _families(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
