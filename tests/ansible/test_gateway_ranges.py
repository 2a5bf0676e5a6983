"""The role gateway takes what the daemon takes: its ranges and choices are those of the daemon's schema."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sluicegate.config.settings import SETTINGS, Setting

ROLE = Path(__file__).parents[2] / "ansible" / "roles" / "gateway"


def read(path: str) -> Any:
    return yaml.safe_load((ROLE / path).read_text())


VARIABLE_OF: dict[str, str] = read("vars/main.yml")["__gateway_variable_of"]
OPTIONS: dict[str, Any] = read("meta/argument_specs.yml")["argument_specs"]["main"]["options"]
TASKS: dict[str, Any] = {task["name"]: task for task in read("tasks/preflight.yml")}
RANGES = {item["name"]: (item["min"], item["max"]) for item in TASKS["Check the numbers"]["loop"]}

NUMBERS = [setting for setting in SETTINGS.values() if setting.key in VARIABLE_OF and setting.low is not None]
MODE = SETTINGS["admission.queue_mode"]


def test_every_variable_of_a_setting_is_one_of_the_role_and_of_the_daemon() -> None:
    assert VARIABLE_OF.keys() <= SETTINGS.keys()
    assert set(VARIABLE_OF.values()) <= OPTIONS.keys()
    assert len(NUMBERS) >= 4


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda setting: setting.key)
def test_a_numbers_range_is_the_daemons(setting: Setting) -> None:
    variable = VARIABLE_OF[setting.key]
    assert RANGES[variable] == (setting.low, setting.high)
    told = re.search(r"from ([\d.]+) to ([\d.]*\d)", OPTIONS[variable]["description"])
    assert told is not None, f"{variable}: its description gives the range"
    assert (float(told[1]), float(told[2])) == (setting.low, setting.high)
    assert setting.low is not None
    assert setting.high is not None
    assert setting.low <= OPTIONS[variable]["default"] <= setting.high


def test_the_modes_are_the_daemons() -> None:
    modes = sorted(mode.value for mode in MODE.type)
    assert sorted(OPTIONS[VARIABLE_OF[MODE.key]]["choices"]) == modes
    assert str(modes) in TASKS["Check gateway_queue_mode"]["ansible.builtin.assert"]["that"]


def test_no_environment_variable_of_the_daemon_is_forgotten() -> None:
    assert read("vars/main.yml")["__gateway_no_environment"].keys() == {s.env for s in SETTINGS.values() if s.env}
