"""What the role open_webui makes of its variables. Open WebUI itself is too large to be installed in a test."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ansible.plays import play
from tests.deploy.playbooks import ANSIBLE

GATEWAY = "http://127.0.0.1:8080/v1"

#: What Open WebUI's environment says if the inventory says nothing.
ALWAYS = {
    "OPENAI_API_BASE_URL": GATEWAY,
    "OPENAI_API_KEY": "none",
    "WEBUI_ADMIN_EMAIL": "admin@localhost",
    "CORS_ALLOW_ORIGIN": "http://localhost:3000;http://127.0.0.1:3000",
}
WITHOUT_TOOLS = {"DEFAULT_MODEL_PARAMS": '{"function_calling": "legacy"}'}

#: Variables of the inventory → what Open WebUI's environment says of documents, and what uv is told about PyTorch.
CASES: list[tuple[dict[str, Any], dict[str, str], list[str]]] = [
    ({}, {"BYPASS_EMBEDDING_AND_RETRIEVAL": "true", "RAG_EMBEDDING_MODEL": ""}, ["--torch-backend", "cpu"]),
    (
        {"open_webui_embedding_model": "BAAI/bge-m3"},
        {
            "RAG_EMBEDDING_ENGINE": "openai",
            "RAG_EMBEDDING_MODEL": "BAAI/bge-m3",
            "RAG_OPENAI_API_BASE_URL": GATEWAY,
            "RAG_OPENAI_API_KEY": "none",
        },
        ["--torch-backend", "cpu"],
    ),
    # Inventories from before the role decided anything keep what they had.
    (
        {"open_webui_environment": {"OFFLINE_MODE": "false"}, "open_webui_extra_index_args": ["--index", "https://m/"]},
        {"OFFLINE_MODE": "false"},
        [],
    ),
    (
        {
            "open_webui_environment": {"RAG_EMBEDDING_ENGINE": "ollama"},
            "uv_environment": {"UV_DEFAULT_INDEX": "https://m/"},
        },
        {"RAG_EMBEDDING_ENGINE": "ollama"},
        [],
    ),
    (
        {"uv_environment": {"HTTPS_PROXY": "http://p:3128"}, "open_webui_torch_backend": "cu130"},
        {"BYPASS_EMBEDDING_AND_RETRIEVAL": "true", "RAG_EMBEDDING_MODEL": ""},
        ["--torch-backend", "cu130"],
    ),
]


def engine(**keys: Any) -> dict[str, Any]:
    return {"vllm_manage": True, "vllm_instances": [{"name": "other"}, {"name": "main", **keys}]}


#: Variables of the inventory → whether the model is given tools.
TOOLS: list[tuple[dict[str, Any], bool]] = [
    (engine(tool_call_parser="hermes"), True),
    (engine(tool_call_parser="hermes", max_model_len=16384), True),
    (engine(extra_args=["--enable-auto-tool-choice", "--tool-call-parser=hermes"]), True),
    (engine() | {"open_webui_tools": True}, True),
    (engine(), False),
    (engine(tool_call_parser="hermes") | {"open_webui_tools": False}, False),
    (engine(tool_call_parser="hermes", enable_auto_tool_choice=False), False),
    # Less than the tools and a chat need.
    (engine(tool_call_parser="hermes", max_model_len=8192), False),
    (engine(tool_call_parser="hermes") | {"vllm_device": "cpu"}, False),
    # Another instance than the gateway's, one that does not run, and one on another host.
    (engine(tool_call_parser="hermes") | {"gateway_engine": "unix:/run/vllm/other/engine.sock"}, False),
    (engine(tool_call_parser="hermes") | {"vllm_manage": False}, False),
    (engine(tool_call_parser="hermes") | {"gateway_engine": "http://10.0.0.5:8000"}, False),
]

#: Variables of the inventory → what they change in the environment.
OTHERS: list[tuple[dict[str, Any], dict[str, str]]] = [
    (
        {"open_webui_admin_email": "a@example.org", "open_webui_origins": ["https://chat.example.org"]},
        {"WEBUI_ADMIN_EMAIL": "a@example.org", "CORS_ALLOW_ORIGIN": "https://chat.example.org"},
    ),
    # Inventories from before the role decided these.
    (
        {"open_webui_environment": {"CORS_ALLOW_ORIGIN": "*", "DEFAULT_MODEL_PARAMS": "{}", "ENABLE_SIGNUP": "true"}},
        {"CORS_ALLOW_ORIGIN": "*", "DEFAULT_MODEL_PARAMS": "{}", "ENABLE_SIGNUP": "true"},
    ),
]

#: Variables → the sentence with which preflight stops.
MISTAKES: list[tuple[dict[str, Any], str]] = [
    (
        {"open_webui_embedding_model": "bge-m3", "open_webui_environment": {"RAG_EMBEDDING_MODEL": "other"}},
        "open_webui_environment sets RAG_EMBEDDING_MODEL, which decides the same: leave one of them out",
    ),
    ({"open_webui_embedding_api_url": "localhost"}, "must be a model's name in one word at an http or https URL"),
    ({"open_webui_torch_backend": "--index"}, "must be one of uv's --torch-backend, such as cpu, or empty"),
    ({"open_webui_tools": "maybe"}, 'open_webui_tools is "maybe", and must be auto, true or false'),
    ({"open_webui_origins": ["https://chat.example.org/"]}, "must be a list of schemes with hosts and ports"),
    ({"open_webui_origins": []}, "open_webui_origins is [], and must be a list"),
    ({"open_webui_admin_email": "admin"}, 'open_webui_admin_email is "admin", and must be an address'),
    ({"open_webui_admin_password": "short"}, "must be 12 to 72 printable ASCII characters without single quotes"),
    ({"open_webui_admin_password": "it's quoted, alas"}, "(its value is not shown)"),
]

PLAY = [
    {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {"import_role": {"name": "open_webui", "tasks_from": "preflight"}},
            {
                "copy": {
                    "content": "{{ [__open_webui_environment, __open_webui_torch_args] | to_json }}",
                    "dest": "{{ directory }}/{{ inventory_hostname }}.json",
                    "mode": "0600",
                }
            },
        ],
    }
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The role's preflight with each set of variables, as a host each: where the results are, and what failed."""
    directory = tmp_path_factory.mktemp("open_webui")
    sets = [case[0] for table in (CASES, TOOLS, OTHERS, MISTAKES) for case in table]
    common = {"open_webui_manage": True, "directory": str(directory)}
    common |= {"uv_python": "3.12", "sluicegate_files": str(ANSIBLE.parent), "uv_environment": {}}
    hosts = {f"case{number}": {**common, **variables} for number, variables in enumerate(sets)}
    return directory, play(directory, PLAY, hosts).failures


def environment(ran: tuple[Path, dict[str, str]], number: int) -> tuple[dict[str, str], list[str]]:
    """What a host has: the variables of its environment, and the arguments of uv."""
    directory, failures = ran
    path = directory / f"case{number}.json"
    assert path.exists(), failures
    found, torch = json.loads(path.read_text())
    return found, torch


@pytest.mark.parametrize("number", range(len(CASES)))
def test_documents_and_pytorch_are_as_the_inventory_says(ran: tuple[Path, dict[str, str]], number: int) -> None:
    _, documents, torch = CASES[number]
    assert environment(ran, number) == ({**ALWAYS, **WITHOUT_TOOLS, **documents}, torch)


@pytest.mark.parametrize("number", range(len(TOOLS)))
def test_the_model_gets_tools_that_it_can_call(ran: tuple[Path, dict[str, str]], number: int) -> None:
    found, _ = environment(ran, len(CASES) + number)
    assert found == {**ALWAYS, **CASES[0][1], **({} if TOOLS[number][1] else WITHOUT_TOOLS)}


@pytest.mark.parametrize("number", range(len(OTHERS)))
def test_the_inventory_decides_the_rest(ran: tuple[Path, dict[str, str]], number: int) -> None:
    found, _ = environment(ran, len(CASES) + len(TOOLS) + number)
    assert found == {**ALWAYS, **WITHOUT_TOOLS, **CASES[0][1], **OTHERS[number][1]}


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_a_mistake_stops_in_preflight(ran: tuple[Path, dict[str, str]], number: int) -> None:
    directory, failures = ran
    case = f"case{len(CASES) + len(TOOLS) + len(OTHERS) + number}"
    assert MISTAKES[number][1] in " ".join(failures[case].split())
    assert not (directory / f"{case}.json").exists()
