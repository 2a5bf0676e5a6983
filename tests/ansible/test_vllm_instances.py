"""What the role vllm makes of the tools, the reasoning and the chat template of an instance. Each case is a host of one
play."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ansible.plays import ANSIBLE, play

ROLE = ANSIBLE / "roles/vllm"
TEMPLATE = Path(__file__)

#: Keys of the instance `main` → the arguments of `vllm serve` that they become.
ARGUMENTS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"tool_call_parser": "hermes"}, ["--tool-call-parser=hermes", "--enable-auto-tool-choice"]),
    ({"tool_call_parser": "hermes", "enable_auto_tool_choice": False}, ["--tool-call-parser=hermes"]),
    (
        {"tool_call_parser": "openai", "reasoning_parser": "openai_gptoss", "extra_args": ["--seed=1"]},
        ["--tool-call-parser=openai", "--enable-auto-tool-choice", "--reasoning-parser=openai_gptoss", "--seed=1"],
    ),
    ({"chat_template": str(TEMPLATE)}, ["--chat-template=/etc/vllm/main.jinja"]),
    # Inventories from before the keys existed keep what they had.
    (
        {"extra_args": ["--enable-auto-tool-choice", "--tool-call-parser=hermes", "--chat-template=/srv/a.jinja"]},
        ["--enable-auto-tool-choice", "--tool-call-parser=hermes", "--chat-template=/srv/a.jinja"],
    ),
    # Only the newer of the two versions has it.
    ({"reasoning_parser": "step5"}, ["--reasoning-parser=step5"]),
    (
        {"tool_call_parser": "ours", "extra_args": ["--tool-parser-plugin=/srv/ours.py"]},
        ["--tool-call-parser=ours", "--enable-auto-tool-choice", "--tool-parser-plugin=/srv/ours.py"],
    ),
    # A version whose names the role does not know.
    ({"vllm_version": "0.40.0", "reasoning_parser": "newer"}, ["--reasoning-parser=newer"]),
]

#: Keys of the instance → a part of the sentence with which preflight stops.
MISTAKES: list[tuple[dict[str, Any], str]] = [
    (
        {"tool_call_parser": "Hermes"},
        'tool_call_parser of the instance main in vllm_instances is "Hermes", which vLLM 0.33.0 does not have: set it '
        "to one of apertus,",
    ),
    ({"tool_call_parser": ""}, 'is "", which vLLM 0.33.0 does not have'),
    ({"reasoning_parser": "hermes"}, "reasoning_parser of the instance main in vllm_instances is"),
    ({"vllm_version": "0.32.0", "reasoning_parser": "step5"}, "which vLLM 0.32.0 does not have"),
    ({"vllm_version": "0.40.0", "tool_call_parser": "a b"}, "set it to one of its names"),
    ({"enable_auto_tool_choice": True}, "sets enable_auto_tool_choice without tool_call_parser"),
    ({"chat_template": "none.jinja"}, 'is "none.jinja", which is not a file on the machine that runs Ansible'),
    (
        {"tool_call_parser": "hermes", "extra_args": ["--tool-call-parser", "mistral"]},
        "has --tool-call-parser, which this role sets itself",
    ),
    (
        {"chat_template": str(TEMPLATE), "extra_args": ["--chat-template=/srv/a.jinja"]},
        "has --chat-template, which this role sets itself",
    ),
]

PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Check the instance
      ansible.builtin.include_role:
        name: vllm
        tasks_from: instance
        public: true
      vars:
        __vllm_instance: "{{ vllm_instances[0] }}"

    - name: Write its file
      ansible.builtin.template:
        src: "{{ role }}/templates/instance.env.j2"
        dest: "{{ out }}/{{ inventory_hostname }}.env"
        mode: "0600"
      vars:
        __vllm_it: "{{ __vllm_all[0] }}"
        __vllm_host: {toolkit: false}
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """All cases in one play: where the instances' files are, and what failed."""
    path = tmp_path_factory.mktemp("instances")
    hosts = {}
    for number, (keys, _) in enumerate([*ARGUMENTS, *MISTAKES]):
        instance = {"name": "main", "model": "Qwen/Qwen3-8B", **keys}
        version = {"vllm_version": instance.pop("vllm_version")} if "vllm_version" in instance else {}
        hosts[f"case{number}"] = {"role": str(ROLE), "out": str(path), "vllm_instances": [instance], **version}
    return path, play(path, PLAY, hosts).failures


@pytest.mark.parametrize("number", range(len(ARGUMENTS)))
def test_keys_become_arguments(ran: tuple[Path, dict[str, str]], number: int) -> None:
    path, failures = ran
    file = path / f"case{number}.env"
    assert file.exists(), failures
    (line,) = [line for line in file.read_text().splitlines() if line.startswith("ENGINE_EXTRA_ARGS=")]
    assert json.loads(line.partition("=")[2].strip("'")) == ARGUMENTS[number][1]


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_a_mistake_stops_in_preflight(ran: tuple[Path, dict[str, str]], number: int) -> None:
    path, failures = ran
    case = f"case{len(ARGUMENTS) + number}"
    assert MISTAKES[number][1] in " ".join(failures[case].split())
    assert not (path / f"{case}.env").exists()


def test_deploy_md_names_known_parsers() -> None:
    """The table of families names no parser and no key that the role would refuse."""
    known = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__vllm_parsers"]
    section = (
        (ANSIBLE.parent / "docs/deploy.md").read_text().partition("## Tools and reasoning")[2].partition("\n## ")[0]
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    assert rows[0] == ["models", "`tool_call_parser`", "`reasoning_parser`", "`chat_template`"]
    families = rows[2:]
    assert len(families) > 10
    for _, tools, reasoning, _ in families:
        assert set(filter(None, [tools.strip("`")])) <= set(known["tool_call_parser"]), tools
        assert set(filter(None, [reasoning.strip("`")])) <= set(known["reasoning_parser"]), reasoning
