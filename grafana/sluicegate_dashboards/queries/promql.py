"""The few PromQL forms that all expressions are made of."""

#: At least four scrape intervals, as Grafana computes it: a fixed window would be empty when zoomed out or too smooth
#: when zoomed in.
WINDOW = "$__rate_interval"


def select(metric: str, *matchers: str) -> str:
    """The series of `metric` on the chosen hosts."""
    chosen = ", ".join(('instance=~"$instance"', *matchers))
    return f"{metric}{{{chosen}}}"


def rate(metric: str, *matchers: str) -> str:
    """Increase per second of a counter."""
    return f"rate({select(metric, *matchers)}[{WINDOW}])"


def total(expression: str, *by: str) -> str:
    """Sum, kept apart by these labels."""
    return f"sum by ({', '.join(by)}) ({expression})" if by else f"sum({expression})"


def ratio(part: str, whole: str) -> str:
    """Share of `part` in `whole`: 0 where there is traffic and no such part, no data where there is no traffic."""
    return f"{part} / ({whole} > 0)"


def quantile(q: float, metric: str, *matchers: str, by: tuple[str, ...] = ()) -> str:
    """Quantile of a classic histogram; no data instead of NaN where nothing was observed, for NaN >= 0 is false."""
    return f"histogram_quantile({q}, {total(rate(f'{metric}_bucket', *matchers), *by, 'le')}) >= 0"


def mean(metric: str, *matchers: str, by: tuple[str, ...] = ()) -> str:
    """Mean of what a histogram observed; no data where it observed nothing."""
    return ratio(total(rate(f"{metric}_sum", *matchers), *by), total(rate(f"{metric}_count", *matchers), *by))


def buckets(metric: str, *matchers: str) -> str:
    """Observations per second by bucket, for a heatmap."""
    return total(rate(f"{metric}_bucket", *matchers), "le")
