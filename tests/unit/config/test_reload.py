"""What a new configuration changes, and which changes need a restart."""

import dataclasses
from typing import Any

import pytest

from sluicegate.config.reload import changes, told, why_not
from sluicegate.config.schema import Config, TcpAddress
from sluicegate.config.settings import SETTINGS, Setting, build, value_of

#: What can only be set at the start. Everything else follows a reload.
NEED_A_RESTART = {"listen", "engine.base_url", "log.format", "tracing.endpoint"}


def other(setting: Setting) -> Any:
    """A valid value that is not the default."""
    if setting.many:
        return ("another",)
    if setting.notation:
        return TcpAddress("192.0.2.1", 1)
    if setting.choices:
        return setting.type(next(choice for choice in setting.choices if choice != setting.default))
    if setting.type is str:
        return "another"
    return setting.type(setting.default + 1)


@pytest.mark.parametrize("key", SETTINGS)
def test_each_setting_is_noticed(key: str) -> None:
    """A change of each setting is found, and it is known whether it needs a restart."""
    setting = SETTINGS[key]
    new = build({key: other(setting)})
    (change,) = changes(Config(), new)
    assert change.setting is setting
    assert str(change) == f"{key} {setting.write(setting.default)} → {setting.write(value_of(new, setting))}"
    assert bool(why_not([change])) == (key in NEED_A_RESTART)


def test_nothing_changes() -> None:
    assert changes(Config(), Config()) == ()
    assert why_not(()) == ""
    assert told(()) == "nothing changes"


def test_the_changes_are_told_in_the_schemas_order() -> None:
    new = build({"log.level": "debug", "admission.max_active": 8})
    assert told(changes(Config(), new)) == 'admission.max_active 2 → 8, log.level "info" → "debug"'


def test_one_restart_setting_refuses_all() -> None:
    """One setting that needs a restart refuses the whole reload and is named."""
    new = build({"admission.max_active": 8, "log.format": "text"})
    assert why_not(changes(Config(), new)) == (
        'log.format "auto" → "text": this cannot change while the gateway runs; nothing of it is applied; '
        "systemctl restart sluicegate applies all of it"
    )


def test_every_field_of_the_configuration_is_compared() -> None:
    compared = {setting.key for setting in SETTINGS.values()}
    for field in dataclasses.fields(Config):
        inner = getattr(Config(), field.name)
        names = (
            [f"{field.name}.{f.name}" for f in dataclasses.fields(inner) if f.compare]
            if not field.metadata
            else [field.name]
        )
        assert compared >= set(names)
