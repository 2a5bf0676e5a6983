"""What other parts of the repository rely on: uids, titles, and where links lead."""

import enum


class Uid(enum.StrEnum):
    """Identity of each dashboard: alerts, links and bookmarks name it, so it never changes."""

    OVERVIEW = "sluicegate-overview"
    GATEWAY = "sluicegate-gateway"
    CAPACITY = "sluicegate-capacity"
    LLM = "sluicegate-llm"
    INFRASTRUCTURE = "sluicegate-infra"


TITLES = {
    Uid.OVERVIEW: "API Overview",
    Uid.GATEWAY: "API Gateway",
    Uid.CAPACITY: "Capacity & Saturation",
    Uid.LLM: "LLM Performance",
    Uid.INFRASTRUCTURE: "Infrastructure Health",
}

#: The provisioned data source. A fixed uid: provisioned JSON has no inputs, so ${DS_PROMETHEUS} would stay as it is.
DATA_SOURCE = "sluicegate-prometheus"

#: Grafana 11.0's schema. Later versions migrate it when they load it; an earlier Grafana is not supported.
SCHEMA_VERSION = 39

#: One section for each alert, named after it.
RUNBOOK = "https://github.com/sluicegate/sluicegate/blob/main/docs/runbook.md"


def dashboard_url(uid: Uid) -> str:
    """Where Grafana shows this dashboard; relative, so that it holds behind any host name or tunnel."""
    return f"/d/{uid}"


def runbook_url(alert: str) -> str:
    """The runbook's section for this alert."""
    return f"{RUNBOOK}#{alert.lower()}"
