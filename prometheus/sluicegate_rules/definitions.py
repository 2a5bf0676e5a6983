"""prometheus/definitions.yml and prometheus/xids.yml, read and checked: the only place that knows their layout."""

import datetime
import functools
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

HERE = Path(__file__).parents[1]

#: Prometheus' units of time, in seconds, as far as windows use them.
_SECONDS = {"m": 60, "h": 3600, "d": 86400}

Name = Literal["error", "ttft"]


class Objective(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A target in percent; `bound_s`: the bucket's bound that what is good stays below, as `le` has it."""

    target: Decimal
    bound_s: str = ""

    @property
    def allowed(self) -> Decimal:
        """The share that may be bad, 0 to 1."""
        return (100 - self.target) / 100

    @property
    def allowed_percent(self) -> Decimal:
        """The same in percent."""
        return 100 - self.target

    @property
    def seconds(self) -> str:
        """The bound for people: 2, not 2.0."""
        return f"{Decimal(self.bound_s).normalize():f}"


class Objectives(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    days: int
    error: Objective
    ttft: Objective

    def named(self, name: Name) -> Objective:
        """The objective that recorded values call by this name."""
        return self.error if name == "error" else self.ttft


class Burn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One condition of an alert: the budget burns `rate` times too fast over the long window and the short one."""

    long: str
    short: str
    rate: Decimal
    counted: str

    def spent_percent(self, days: int) -> Decimal:
        """The percentage of the budget of `days` days that one long window at this rate uses up."""
        return self.rate * length_s(self.long) * 100 / (days * _SECONDS["d"])


class Pace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    severity: Literal["page", "ticket"]
    windows: tuple[Burn, ...]


class Burns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    least: int
    fast: Pace
    slow: Pace

    def all(self) -> Iterator[Burn]:
        """Every condition, the fast ones first."""
        yield from (*self.fast.windows, *self.slow.windows)


class Definitions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """prometheus/definitions.yml. `outcomes`: group → patterns, of which an outcome matches one as a whole."""

    outcomes: dict[str, tuple[str, ...]]
    waited_in_vain: tuple[str, ...]
    inter_token_bound_s: str
    objectives: Objectives
    burns: Burns

    def matcher(self, *groups: str) -> str:
        """What selects the outcomes of these groups in PromQL."""
        return matcher([pattern for group in groups for pattern in self.outcomes[group]])

    def group_of(self, outcome: str) -> list[str]:
        """The groups that an outcome belongs to; one, if the definitions are right."""
        return [
            group
            for group, patterns in self.outcomes.items()
            if any(re.fullmatch(pattern, outcome) for pattern in patterns)
        ]

    @property
    def recorded_windows(self) -> list[str]:
        """Windows over which shares of bad requests are recorded, besides the 5 minutes that they are made of."""
        windows = {window for burn in self.burns.all() for window in (burn.long, burn.short)}
        return sorted(windows - {"5m"}, key=length_s)

    @property
    def counted_windows(self) -> list[str]:
        """Windows over which bad requests are counted."""
        return sorted({burn.counted for burn in self.burns.all()}, key=length_s)

    @property
    def shown_windows(self) -> list[str]:
        """The alerts' long windows, which dashboards show."""
        return sorted({burn.long for burn in self.burns.all()}, key=length_s)


class Xid(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fault number of NVIDIA's driver: its bucket in NVIDIA's catalogue, our action, its meaning in our words."""

    number: int
    bucket: str
    action: Literal["reset", "reboot", "nvlink", "note"]
    meaning: str

    @property
    def pages(self) -> bool:
        """Whether it pages: act now."""
        return self.action != "note"


class Xids(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    source: str
    read: datetime.date
    xids: tuple[Xid, ...]

    def __post_init__(self) -> None:
        numbers = [xid.number for xid in self.xids]
        if numbers != sorted(set(numbers)):
            raise ValueError("prometheus/xids.yml: list each XID once, in ascending order")

    @property
    def fatal(self) -> list[Xid]:
        """Those that page."""
        return [xid for xid in self.xids if xid.pages]

    @property
    def fatal_pattern(self) -> str:
        """What matches the label `xid` of those that page."""
        return "|".join(str(xid.number) for xid in self.fatal)


def length_s(window: str) -> int:
    """Length of a window such as 30m, 6h or 3d."""
    return int(window[:-1]) * _SECONDS[window[-1]]


def matcher(patterns: Sequence[str]) -> str:
    """The label matcher for outcomes: a comparison where one word is all there is."""
    if len(patterns) == 1 and patterns[0].isidentifier():
        return f'outcome="{patterns[0]}"'
    return f'outcome=~"{"|".join(patterns)}"'


def definitions() -> Definitions:
    """prometheus/definitions.yml; msgspec.ValidationError names what is wrong in it."""
    return _definitions(HERE / "definitions.yml")


def xids() -> Xids:
    """prometheus/xids.yml; msgspec.ValidationError names what is wrong in it."""
    return _xids(HERE / "xids.yml")


@functools.cache
def _definitions(path: Path) -> Definitions:
    return msgspec.convert(_read(path), Definitions)


@functools.cache
def _xids(path: Path) -> Xids:
    return msgspec.convert(_read(path), Xids)


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))
