"""How much of the error budgets is used up, as prometheus/rules/recording.yml records it and the alerts judge it."""

from .promql import select, total

#: Shares that the objectives allow: 99.9 % without a fault, 99.5 % of first tokens within 2 s. The alerts' own numbers.
ERRORS_ALLOWED = 0.001
LATE_ALLOWED = 0.005
#: At 14.4 times the allowed share for an hour, SluicegateErrorBudgetBurningFast pages.
ERRORS_PAGE = 0.0144

WINDOWS = ("1h", "6h", "3d")


def errors(window: str) -> str:
    """Share of failed requests over this window, by host."""
    return total(select(f"sluicegate:slo_error:ratio_rate{window}"), "instance")


def late(window: str) -> str:
    """Share of streams whose first token came too late over this window, by host."""
    return total(select(f"sluicegate:slo_ttft:ratio_rate{window}"), "instance")
