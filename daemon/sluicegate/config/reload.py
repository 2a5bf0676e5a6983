"""What a new configuration would change in the running one, and whether it can do so without a restart. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from .schema import Config
from .settings import SETTINGS, Setting, value_of


@dataclass(frozen=True, slots=True)
class Change:
    """One setting that differs; its values as TOML writes them."""

    setting: Setting
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.setting.key} {self.old} → {self.new}"


def changes(old: Config, new: Config) -> tuple[Change, ...]:
    """Every setting in which the two differ, in the schema's order."""
    found = []
    for setting in SETTINGS.values():
        before, after = value_of(old, setting), value_of(new, setting)
        if before != after:
            found.append(Change(setting, setting.write(before), setting.write(after)))
    return tuple(found)


def why_not(changed: Sequence[Change]) -> str:
    """Why a reload cannot make these changes, as one sentence with what to do; empty if it can.

    It makes all of them or none: half a configuration is one that nobody wrote.
    """
    fixed = [change for change in changed if change.setting.restart]
    if not fixed:
        return ""
    return (
        f"{', '.join(map(str, fixed))}: this cannot change while the gateway runs; nothing of it is applied; "
        "systemctl restart sluicegate applies all of it"
    )


def told(changed: Sequence[Change]) -> str:
    """The changes for people; says so if there are none."""
    return ", ".join(map(str, changed)) or "nothing changes"
