"""Prometheus on the deployed host, asked over its HTTP API as Grafana asks it."""

import json
import urllib.parse
from dataclasses import dataclass
from typing import Any

from tests.deploy.host import Host


@dataclass(frozen=True)
class Prometheus:
    """The live Prometheus of a host."""

    host: Host

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of its API; an error of Prometheus is an AssertionError that holds it."""
        url = f"http://127.0.0.1:9090/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        answer = json.loads(self.host.curl(url))
        assert answer["status"] == "success", answer
        return answer["data"]

    def value(self, expression: str) -> float:
        """The one value of an expression; none or several are an AssertionError."""
        result = self.get("query", query=expression)["result"]
        assert len(result) == 1, f"{expression} has {len(result)} values"
        return float(result[0]["value"][1])

    def samples(self, expression: str, since: float, until: float, step: float) -> int:
        """How many points a panel with this expression would draw between two times (Unix, seconds)."""
        data = self.get("query_range", query=expression, start=str(since), end=str(until), step=str(step))
        return sum(len(series["values"]) for series in data["result"])

    def targets(self) -> dict[str, str]:
        """Job → health of its target, with the error of one that is not up."""
        active = self.get("targets", state="active")["activeTargets"]
        return {target["labels"]["job"]: f"{target['health']} {target['lastError']}".strip() for target in active}

    def rules(self) -> list[dict[str, Any]]:
        """All loaded rules, each with its group's name under `group`."""
        groups = self.get("rules")["groups"]
        return [{**rule, "group": group["name"]} for group in groups for rule in group["rules"]]

    def metric_names(self) -> set[str]:
        """Every metric that anybody has exported, if only by its name, and every recorded one."""
        return set(self.get("label/__name__/values")) | set(self.get("metadata"))
