"""Prometheus' own alerts. Not by host: some are about all of them, and an alert must not hide behind a choice."""

from .promql import total

LIST = total('ALERTS{alertstate=~"firing|pending"}', "alertname", "severity", "alertstate", "instance")
#: 0 when none fires: ALERTS has no series then, and "no data" would read like a fault.
FIRING_COUNT = 'count(ALERTS{alertstate="firing"}) or vector(0)'
