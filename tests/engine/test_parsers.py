"""The parsers whose names the role vllm checks are those that the real vLLM has."""

import ast
from pathlib import Path

import pytest
import yaml

from sluicegate_run.prepare import EnginePaths

ROLE = Path(__file__).parents[2] / "ansible/roles/vllm"

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(("key", "package"), [("tool_call_parser", "tool_parsers"), ("reasoning_parser", "reasoning")])
def test_the_role_knows_the_engines_parsers(engine_paths: EnginePaths, key: str, package: str) -> None:
    known = yaml.safe_load((ROLE / "vars/main.yml").read_text())
    (source,) = (engine_paths.python.parents[1] / "lib").glob(f"python*/site-packages/vllm/{package}/__init__.py")
    (names,) = [
        list(ast.literal_eval(node.value))
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).endswith("_PARSERS_TO_REGISTER")
    ]
    assert sorted(known["__vllm_parsers"][key] + known["__vllm_more_parsers"][engine_paths.version]) == sorted(names)
