"""What a PromQL expression reads: enough of the language to tell a metric from a function, keyword or label."""

import re
from itertools import pairwise

#: A string, a word (a metric, function, keyword or label), or one other character.
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'|`[^`]*`|[A-Za-z_:][A-Za-z0-9_:]*|\d[\w.]*|\S')
WORD = re.compile(r"[A-Za-z_:]")

#: Words behind which a list of labels follows in parentheses.
GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
KEYWORDS = GROUPING | {"and", "or", "unless", "bool", "offset", "inf", "nan", "start", "end", "atan2"}

#: Aggregations may have their labels before their parentheses, so that no parenthesis follows them.
AGGREGATIONS = {
    "sum", "min", "max", "avg", "group", "stddev", "stdvar", "count", "count_values", "bottomk", "topk", "quantile",
}  # fmt: skip


def metrics_in(expression: str) -> set[str]:
    """The names of the metrics that it selects."""
    return _read(expression)[0]


def labels_in(expression: str) -> set[str]:
    """The labels that it matches or groups by."""
    return _read(expression)[1]


def windows_in(expression: str) -> set[str]:
    """The windows over which it looks, as they are written."""
    return _read(expression)[2]


def calls_in(expression: str) -> set[str]:
    """The functions that it calls, with aggregations that have their labels behind them."""
    tokens = TOKEN.findall(expression)
    return {token for token, following in pairwise(tokens) if WORD.match(token) and following == "("} - GROUPING


def _read(expression: str) -> tuple[set[str], set[str], set[str]]:
    tokens = TOKEN.findall(expression)
    metrics, labels, windows = set[str](), set[str](), set[str]()
    position = 0
    while position < len(tokens):
        token = tokens[position]
        following = tokens[position + 1] if position + 1 < len(tokens) else ""
        if token == "{":
            end = tokens.index("}", position)
            # A matcher's value is a string, and so no word.
            labels.update(filter(WORD.match, tokens[position:end]))
            position = end
        elif token == "[":
            end = tokens.index("]", position)
            windows.add("".join(tokens[position + 1 : end]))
            position = end
        elif token.lower() in GROUPING and following == "(":
            end = tokens.index(")", position)
            labels.update(filter(WORD.match, tokens[position + 1 : end]))
            position = end
        elif WORD.match(token) and following != "(" and token.lower() not in KEYWORDS | AGGREGATIONS:
            metrics.add(token)
        position += 1
    return metrics, labels, windows
