"""What the daemon accepts has one source, its schema: the role gateway says the same, and refuses the same."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sluicegate.config.settings import SETTINGS, Setting
from tests.ansible.plays import ANSIBLE, play

ROLE = ANSIBLE / "roles/gateway"
VARIABLES: dict[str, Any] = yaml.safe_load((ROLE / "vars/main.yml").read_text())
OPTIONS: dict[str, Any] = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"][
    "options"
]
DEPLOY = (ANSIBLE.parent / "docs/deploy.md").read_text()

#: Variable → the setting that it writes.
SETTING_OF: dict[str, Setting] = {
    variable: SETTINGS[key] for key, variable in VARIABLES["__gateway_variable_of"].items()
}
NUMBERS = {variable: setting for variable, setting in SETTING_OF.items() if setting.low is not None}
WORDS = {variable: setting for variable, setting in SETTING_OF.items() if setting.choices}

#: A deployed gateway has another default than one that is started by hand: variable → (the role's, the daemon's).
DEPLOYED = {
    "gateway_listen": ("0.0.0.0:8080", '"127.0.0.1:8080"'),
    "gateway_engine": ("unix:/run/vllm/main/engine.sock", '"http://127.0.0.1:8000"'),
    "gateway_max_active": (16, "2"),
}

PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Check
      ansible.builtin.include_role:
        name: gateway
        tasks_from: preflight
"""


def bounds(variable: str) -> tuple[float, float]:
    setting = NUMBERS[variable]
    assert setting.low is not None
    assert setting.high is not None
    return setting.low, setting.high


def test_these_variables_write_settings() -> None:
    """The other tests here walk these, and would pass over none."""
    assert set(NUMBERS) == {
        "gateway_max_active",
        "gateway_queue_max",
        "gateway_queue_timeout_s",
        "gateway_request_timeout_s",
    }
    assert set(WORDS) == {"gateway_queue_mode"}
    assert set(DEPLOYED) < set(SETTING_OF) == set(SETTING_OF) & set(OPTIONS)


@pytest.mark.parametrize("variable", NUMBERS)
def test_the_description_names_the_range(variable: str) -> None:
    low, high = bounds(variable)
    assert re.findall(r"from ([\d.]+) to (\d+)", OPTIONS[variable]["description"]) == [(str(low), str(high))]


@pytest.mark.parametrize("variable", NUMBERS)
def test_the_type_is_the_settings(variable: str) -> None:
    assert OPTIONS[variable]["type"] == NUMBERS[variable].type.__name__


@pytest.mark.parametrize("variable", WORDS)
def test_the_words_are_the_settings(variable: str) -> None:
    assert tuple(OPTIONS[variable]["choices"]) == WORDS[variable].choices
    assert f"that: {variable} in {list(WORDS[variable].choices)}" in (ROLE / "tasks/preflight.yml").read_text()


@pytest.mark.parametrize("variable", SETTING_OF)
def test_role_default_is_the_settings_default(variable: str) -> None:
    """The default of each variable equals the setting's, or is a known deviation."""
    setting = SETTING_OF[variable]
    default, written = OPTIONS[variable]["default"], setting.write(setting.default)
    if variable in DEPLOYED:
        assert (default, written) == DEPLOYED[variable]
    else:
        assert default == setting.default


@pytest.mark.parametrize("variable", SETTING_OF)
def test_the_variable_writes_its_setting(variable: str) -> None:
    """A setting that has a variable and is not written from it would keep the daemon's default without a word."""
    setting = SETTING_OF[variable]
    own = VARIABLES["__gateway_own_settings"]
    written = own[setting.table][setting.name] if setting.table else own[setting.name]
    assert re.fullmatch(rf"{{{{ {variable}( \| \w+)? }}}}", written)


def test_the_guide_to_deployment_says_the_same() -> None:
    low, high = bounds("gateway_queue_max")
    assert f"gateway_queue_max is -1, and must be a number from {low} to {high}: set it to one of these." in DEPLOY
    listed = [OPTIONS[f"gateway_{name}"]["default"] for name in ("queue_max", "queue_timeout_s", "queue_mode")]
    names = "`gateway_queue_max`, `gateway_queue_timeout_s`, `gateway_queue_mode`"
    assert f"| {names} | {listed[0]}, {listed[1]}, `{listed[2]}` |" in DEPLOY
    assert f"| `gateway_max_active` | {OPTIONS['gateway_max_active']['default']} |" in DEPLOY
    assert f"({SETTINGS['timeouts.drain_s'].default:g} s, `timeouts.drain_s`)" in DEPLOY


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What preflight stopped with: a host for each end of each range, one just inside of it and one just outside."""
    base: dict[str, object] = {"sluicegate_files": str(ANSIBLE.parent), "gateway_version": "1.2.3"}
    hosts = {"defaults": base}
    for variable in NUMBERS:
        low, high = bounds(variable)
        # Ansible makes an int of 0.5 for a whole number, and refuses none.
        below = low - 1 if NUMBERS[variable].type is int else low / 2
        for name, value in {"least": low, "most": high, "below": below, "above": high + 1}.items():
            hosts[f"{variable}-{name}"] = {**base, variable: value}
    return play(tmp_path_factory.mktemp("preflight"), PLAY, hosts).failures


def test_preflight_refuses_exactly_what_the_daemon_does(failures: dict[str, str]) -> None:
    assert set(failures) == {f"{variable}-{end}" for variable in NUMBERS for end in ("below", "above")}


@pytest.mark.parametrize("variable", NUMBERS)
def test_preflight_names_the_range(failures: dict[str, str], variable: str) -> None:
    low, high = bounds(variable)
    unit = "of seconds " if variable.endswith("_s") else ""
    for end in ("below", "above"):
        assert (
            f"and must be a number {unit}from {low} to {high}: set it to one of these." in failures[f"{variable}-{end}"]
        )


def test_unit_deadline_follows_the_drain() -> None:
    """The role's drop-in says the same as the unit for the default: default + 15 s."""
    unit = (ANSIBLE.parent / "systemd/sluicegate.service").read_text()
    template = (ROLE / "templates/drain.conf.j2").read_text()
    drain_s = SETTINGS["timeouts.drain_s"].default
    assert "default(__gateway_default_drain_s) | float + 15)" in template
    assert f"\nTimeoutStopSec={drain_s + 15:g}\n" in unit
    assert f"timeouts.drain_s ({drain_s:g})" in unit


INSTALLED = f"""
- hosts: all
  gather_facts: false
  vars_files: [{ROLE}/vars/main.yml]
  tasks:
    - name: Say what would be installed where
      ansible.builtin.fail:
        msg: "{{{{ __gateway_requirement }}}} in {{{{ __gateway_id }}}}"
"""


def test_tracing_installs_its_extra(tmp_path: Path) -> None:
    """In a version of its own: the environment of the running one is never changed."""
    wheel = {"gateway_wheel": "dist/sluicegate-1.2.3-py3-none-any.whl", "gateway_settings": {}}
    wheel |= {"__gateway_wheel_file": {"stat": {"checksum": "0123456789abcdef"}}}
    traced = {"gateway_settings": {"tracing": {"endpoint": "http://127.0.0.1:4318"}}}
    off = {"gateway_settings": {"tracing": {"sample_ratio": 0.5}}}
    index = {"gateway_version": "1.2.3", "gateway_wheel": "", "gateway_settings": {}}
    hosts = {"index": index, "off": index | off, "traced": index | traced, "wheel": wheel, "both": wheel | traced}
    on_host = "/opt/sluicegate/wheels/1.2.3-0123456789ab{}/sluicegate-1.2.3-py3-none-any.whl"
    assert play(tmp_path, INSTALLED, hosts).failures == {
        "index": "sluicegate==1.2.3 in 1.2.3",
        "off": "sluicegate==1.2.3 in 1.2.3",
        "traced": "sluicegate[tracing]==1.2.3 in 1.2.3-tracing",
        "wheel": f"{on_host.format('')} in 1.2.3-0123456789ab",
        "both": f"{on_host.format('-tracing')}[tracing] in 1.2.3-0123456789ab-tracing",
    }
