"""What the schema promises about itself."""

import dataclasses
import enum
import math
import tomllib

import pytest

from sluicegate.config.address import LISTEN, TcpAddress
from sluicegate.config.schema import Config, setting
from sluicegate.config.settings import SETTINGS, Setting, build, settings_of, value_of

NAMES_KEPT = {
    "VLLM_BASE_URL",
    "MODEL_NAME",
    "MAX_ACTIVE",
    "QUEUE_MODE",
    "QUEUE_MAX",
    "QUEUE_TIMEOUT_S",
    "REQUEST_TIMEOUT_S",
}


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


def test_a_class_of_settings_is_read_field_by_field() -> None:

    @dataclasses.dataclass
    class Example:
        count: int = setting(4, "how many", env="COUNT", low=1, high=9)
        colour: Colour = setting(Colour.RED, "which", restart=True)  # noqa: RUF009
        at: TcpAddress = setting(TcpAddress("a", 1), "where", notation=LISTEN)  # noqa: RUF009
        word: str = setting("on", "whether", choices=("on", "off"))
        other: int = 3

    rest = {"env": None, "low": None, "high": None, "choices": (), "notation": None, "restart": False}
    number, *others = [dataclasses.asdict(setting) for setting in settings_of(Example, "example")]
    named = {"table": "example", "name": "count", "type": int, "default": 4, "doc": "how many"}
    assert number == rest | named | {"env": "COUNT", "low": 1, "high": 9}
    assert [(one["name"], one["choices"], one["restart"]) for one in others] == [
        ("colour", ("red", "blue"), True),
        ("at", (), False),
        ("word", ("on", "off"), False),
    ]
    assert [one["type"] for one in others] == [Colour, TcpAddress, str]
    assert settings_of(Example, "example")[2].notation is LISTEN
    assert Example() == Example(4, Colour.RED, TcpAddress("a", 1), "on", 3)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_each_setting_accepts_its_default(setting: Setting) -> None:
    """Each setting converts its own default and has a text for the documentation."""
    written = tomllib.loads(f"it = {setting.write(setting.default)}")["it"]
    assert setting.convert(written) == setting.default
    assert value_of(Config(), setting) == setting.default
    assert setting.doc
    assert "|" not in setting.doc + setting.allowed  # they stand in a Markdown table


@pytest.mark.parametrize("setting", [s for s in SETTINGS.values() if s.type in (int, float)], ids=lambda s: s.key)
def test_each_number_has_a_range_with_inclusive_ends(setting: Setting) -> None:
    assert setting.low is not None
    assert setting.high is not None
    assert math.isfinite(setting.low)
    assert math.isfinite(setting.high)
    assert setting.convert(setting.low) == setting.low
    assert setting.convert_text(str(setting.high)) == setting.high
    for outside in (setting.low - 1, setting.high + 1, math.inf, -math.inf, math.nan):
        with pytest.raises(ValueError, match=f"from {setting.low} to {setting.high}"):
            setting.convert(outside)


def test_settings_have_distinct_variables() -> None:
    """No two settings share an environment variable, and the published names exist."""
    names = [setting.env for setting in SETTINGS.values() if setting.env]
    assert len(names) == len(set(names))
    assert set(names) >= NAMES_KEPT


def test_build_changes_only_what_it_is_given() -> None:
    config = build({"admission.max_active": 9})
    changed = [key for key, setting in SETTINGS.items() if value_of(config, setting) != setting.default]
    assert changed == ["admission.max_active"]
