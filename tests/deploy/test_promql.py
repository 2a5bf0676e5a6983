"""The reader of expressions: it finds every metric in one and takes nothing else for a metric."""

import pytest

from tests.deploy.promql import metrics


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
    ],
)
def test_metrics_of_an_expression(expression: str, names: set[str]) -> None:
    assert metrics(expression) == names
