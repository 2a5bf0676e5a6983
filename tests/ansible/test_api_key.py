"""The engine's key: from an instance's entry to the gateway's unit, with no copy in its configuration."""

import json
from typing import Any

import pytest
import yaml

from tests.ansible.plays import ANSIBLE, play

MAIN = {"name": "main", "model": "a/b", "api_key": "sesame"}
OTHER = {"name": "other", "model": "a/b"}

#: Host → its variables, and the key that its gateway sends.
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"vllm_instances": [OTHER | {"name": "main"}]}, ""),
    "of-the-instance": ({"vllm_instances": [OTHER, MAIN]}, "sesame"),
    "of-another-instance": (
        {"vllm_instances": [MAIN, OTHER], "gateway_engine": "unix:/run/vllm/other/engine.sock"},
        "",
    ),
    "engine-elsewhere": ({"gateway_engine": "http://gpu:8000", "gateway_engine_api_key": "sesame"}, "sesame"),
}
BAD = "two words"

PLAY = f"""
- hosts: all
  gather_facts: false
  tasks:
    - name: Load the role's variables
      ansible.builtin.include_vars: {{file: "{ANSIBLE}/roles/gateway/vars/main.yml"}}
    - name: Show what becomes of the key
      ansible.builtin.debug:
        msg: "{{{{ {{'key': gateway_engine_api_key, 'engine': __gateway_all_settings.engine}} | to_json }}}}"
    - name: Check
      ansible.builtin.include_role: {{name: gateway, tasks_from: preflight}}
"""


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Any:
    base = yaml.safe_load((ANSIBLE / "roles/gateway/defaults/main.yml").read_text())
    base |= {"sluicegate_files": str(ANSIBLE.parent), "gateway_version": "1.2.3"}
    hosts = {name: base | variables for name, (variables, _) in CASES.items()}
    hosts["bad"] = base | {"gateway_engine_api_key": BAD}
    return play(tmp_path_factory.mktemp("key"), PLAY, hosts)


@pytest.mark.parametrize("name", CASES)
def test_the_gateway_sends_its_instances_key(played: Any, name: str) -> None:
    shown = [event["hosts"][name]["msg"] for event in played.events if "msg" in event.get("hosts", {}).get(name, {})]
    found = shown[0] if isinstance(shown[0], dict) else json.loads(shown[0])
    key = CASES[name][1]
    assert found["key"] == key
    assert found["engine"].get("api_key") == ("credential:engine-api-key" if key else None)


def test_a_bad_key_is_refused_and_not_shown(played: Any) -> None:
    assert list(played.failures) == ["bad"]
    assert "gateway_engine_api_key holds a space" in played.failures["bad"]
    assert BAD not in played.failures["bad"]
