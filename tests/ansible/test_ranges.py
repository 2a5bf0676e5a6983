"""A range that a role's specification describes is the one that its tasks check, and both are within the programs'."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ansible.plays import ANSIBLE
from tests.systemd.programs import load

ROLES = sorted(path.parents[1].name for path in ANSIBLE.glob("roles/*/meta/argument_specs.yml"))

#: How a description says it, and how a task that checks one number alone does.
DESCRIBED = re.compile(r"from ([\d.]+) to (\d[\d.]*\d|\d)")
CHECKED = re.compile(r"(\d+) <= (\w+) \| int <= (\d+)")

Ranges = dict[str, tuple[float, float]]


def described(role: Path) -> Ranges:
    """The ranges of the numbers in meta/argument_specs.yml, those of nested keys too."""
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
    return dict(_described(specs["main"].get("options", {}))) if "main" in specs else {}


def _described(options: Mapping[str, Any]) -> Iterator[tuple[str, tuple[float, float]]]:
    for name, option in options.items():
        found = DESCRIBED.search(option["description"])
        if found and option["type"] in ("int", "float"):
            yield name, (float(found[1]), float(found[2]))
        yield from _described(option.get("options", {}))


def checked(role: Path) -> Ranges:
    """The ranges in its tasks and variables: of mappings with `min` and `max`, and of comparisons."""
    found: Ranges = {}
    for path in [*sorted(role.glob("tasks/*.yml")), *role.glob("vars/main.yml")]:
        text = path.read_text()
        for name, low, high in _mappings(yaml.safe_load(text), ""):
            found[name] = (low, high)
        for low, name, high in CHECKED.findall(text):
            found[name] = (float(low), float(high))
    return found


def _mappings(node: Any, key: str) -> Iterator[tuple[str, float, float]]:
    if isinstance(node, dict):
        if {"min", "max"} <= set(node):
            yield node.get("name", key), float(node["min"]), float(node["max"])
        for inner, value in node.items():
            yield from _mappings(value, inner)
    elif isinstance(node, list):
        for value in node:
            yield from _mappings(value, "")


@pytest.mark.parametrize("role", ROLES)
def test_a_range_is_checked_as_it_is_described(role: str) -> None:
    assert checked(ANSIBLE / "roles" / role) == described(ANSIBLE / "roles" / role)


def test_the_ranges_are_found() -> None:
    """A description or a check in other words would be overlooked on both sides."""
    assert {role: len(found) for role in ROLES if (found := described(ANSIBLE / "roles" / role))} == {
        "firewall": 3,
        "gateway": 6,
        "nvidia_driver": 1,
        "vllm": 6,
    }


@pytest.mark.parametrize(
    ("role", "variable"), [("firewall", "firewall_rollback_s"), ("nvidia_driver", "nvidia_driver_reboot_timeout_s")]
)
def test_the_refusal_names_the_range(role: str, variable: str) -> None:
    low, high = described(ANSIBLE / "roles" / role)[variable]
    tasks = (ANSIBLE / "roles" / role / "tasks/preflight.yml").read_text()
    assert f"must lie between {low:g} and {high:g} seconds" in tasks


def test_the_engines_programs_accept_what_the_role_does() -> None:
    """The role is the stricter one: it knows vLLM's version."""
    ranges = described(ANSIBLE / "roles/vllm")
    start, ready = load("vllm-start"), load("vllm-wait-ready")
    assert ranges["vllm_shutdown_timeout_s"] == (0.0, float(start.LARGEST_SHUTDOWN_S))
    assert ranges["vllm_ready_timeout_s"] == (1.0, float(ready.LARGEST_TIMEOUT_S))
    for name in ("max_model_len", "max_num_seqs", "gpu_memory_utilization"):
        check, _ = start.FLAGS[f"ENGINE_{name.upper()}"]
        for value in ranges[name]:
            check(name, f"{value:.10g}")
