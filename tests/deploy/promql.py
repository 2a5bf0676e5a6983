"""Which metrics a PromQL expression uses: enough of the language to tell a metric from a function, keyword or label."""

import re

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


def metrics(expression: str) -> set[str]:
    """The names of the metrics in `expression`."""
    tokens = TOKEN.findall(expression)
    found = set()
    position = 0
    while position < len(tokens):
        token = tokens[position]
        following = tokens[position + 1] if position + 1 < len(tokens) else ""
        if token in ("{", "["):
            position = tokens.index({"{": "}", "[": "]"}[token], position)
        elif token.lower() in GROUPING and following == "(":
            position = tokens.index(")", position)
        elif WORD.match(token) and following != "(" and token.lower() not in KEYWORDS | AGGREGATIONS:
            found.add(token)
        position += 1
    return found
