"""How much of the error budgets is used up, as prometheus/rules/recording.yml records it and the alerts judge it."""

from prometheus.sluicegate_rules.definitions import definitions

from .promql import select, total

_DEFINED = definitions()
#: The alerts' own numbers.
ERRORS = _DEFINED.objectives.error
FIRST_TOKEN = _DEFINED.objectives.ttft
#: Shares of bad requests that the objectives allow, 0 to 1.
ERRORS_ALLOWED = float(ERRORS.allowed)
LATE_ALLOWED = float(FIRST_TOKEN.allowed)
#: The share of errors above which SluicegateErrorBudgetBurningFast pages, in the shortest of its windows.
ERRORS_PAGE = float(_DEFINED.burns.fast.windows[0].rate * ERRORS.allowed)
#: The pace that a stream has to keep.
INTER_TOKEN_S = float(_DEFINED.inter_token_bound_s)

WINDOWS = tuple(_DEFINED.shown_windows)


def errors(window: str) -> str:
    """Share of failed requests over this window, by host."""
    return total(select(f"sluicegate:slo_error:ratio_rate{window}"), "instance")


def late(window: str) -> str:
    """Share of streams whose first token came too late over this window, by host."""
    return total(select(f"sluicegate:slo_ttft:ratio_rate{window}"), "instance")
