"""What the schema promises about itself."""

import math

import pytest

from sluicegate.config.schema import Config
from sluicegate.config.settings import SETTINGS, Setting, build, value_of

NAMES_KEPT = {
    "VLLM_BASE_URL",
    "MODEL_NAME",
    "MAX_ACTIVE",
    "QUEUE_MODE",
    "QUEUE_MAX",
    "QUEUE_TIMEOUT_S",
    "REQUEST_TIMEOUT_S",
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_each_setting_accepts_its_default_and_documents_itself(setting: Setting) -> None:
    written = setting.default if setting.notation is None else setting.notation.write(setting.default)
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


def test_no_two_settings_share_a_variable_and_the_old_names_are_there() -> None:
    names = [setting.env for setting in SETTINGS.values() if setting.env]
    assert len(names) == len(set(names))
    assert set(names) >= NAMES_KEPT


def test_build_changes_only_what_it_is_given() -> None:
    config = build({"admission.max_active": 9})
    changed = [key for key, setting in SETTINGS.items() if value_of(config, setting) != setting.default]
    assert changed == ["admission.max_active"]
