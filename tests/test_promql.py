"""The reader of expressions: it finds every metric, label and window in one and takes nothing else for one."""

import pytest

from tests.promql import labels_in, metrics_in, windows_in


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("up", {"up"}),
        ("up == 0", {"up"}),
        ('sum by (job) (rate(a_total{job="b", code!~"c|d"}[5m]))', {"a_total"}),
        ("sum(rate(a[1m])) by (le) / on (x) group_left(y) sluicegate:b:rate5m", {"a", "sluicegate:b:rate5m"}),
        ("a and b or c unless on() vector(0)", {"a", "b", "c"}),
        ("histogram_quantile(0.99, sum(rate(a_bucket[5m])) by (le)) >= bool 1e3", {"a_bucket"}),
        ('label_replace(a, "to", "$1", "from", "(b)")', {"a"}),
        ("max_over_time(a[1h:5m] offset 1d) > -Inf", {"a"}),
        ('{__name__="a"}', set()),
        ("predict_linear(a[6h], 4 * 3600) < 0", {"a"}),
        (
            'sum by (le) (rate(vllm:a_bucket{b="c"}[5m] offset 1h)) > bool on (d) group_left 2e9 * e:f',
            {"vllm:a_bucket", "e:f"},
        ),
    ],
)
def test_metrics_of_an_expression(expression: str, names: set[str]) -> None:
    assert metrics_in(expression) == names


def test_metrics_labels_and_windows_of_an_expression() -> None:
    text = (
        'histogram_quantile(0.9, sum by (le, job) (rate(a_bucket{b=~"c, d{e}"}[5m]))) >= 0 '
        "or x:y offset 1m * on (instance) group_left (version) z unless vector(1e6)"
    )
    assert metrics_in(text) == {"a_bucket", "x:y", "z"}
    assert labels_in(text) == {"le", "job", "b", "instance", "version"}
    assert windows_in(text) == {"5m"}


@pytest.mark.parametrize(
    ("expression", "windows"),
    [
        ('a{b="[1m]"}', set()),
        ("rate(a[$__rate_interval]) / rate(b[$__range])", {"$__rate_interval", "$__range"}),
        ("max_over_time(a[1h:5m]) - min_over_time(a[1h:5m])", {"1h:5m"}),
    ],
)
def test_windows_of_an_expression(expression: str, windows: set[str]) -> None:
    assert windows_in(expression) == windows
