"""What the role open_webui makes of its variables. Open WebUI itself is too large to be installed in a test."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ansible.plays import play
from tests.deploy.playbooks import ANSIBLE

GATEWAY = "http://127.0.0.1:8080/v1"

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

#: Variables → the sentence with which preflight stops.
MISTAKES: list[tuple[dict[str, Any], str]] = [
    (
        {"open_webui_embedding_model": "bge-m3", "open_webui_environment": {"RAG_EMBEDDING_MODEL": "other"}},
        "open_webui_environment sets RAG_EMBEDDING_MODEL, which decides the same: leave one of them out",
    ),
    ({"open_webui_embedding_api_url": "localhost"}, "must be a model's name in one word at an http or https URL"),
    ({"open_webui_torch_backend": "--index"}, "must be one of uv's --torch-backend, such as cpu, or empty"),
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
    sets = [variables for variables, _, _ in CASES] + [variables for variables, _ in MISTAKES]
    common = {"open_webui_manage": True, "directory": str(directory)}
    common |= {"uv_python": "3.12", "sluicegate_files": str(ANSIBLE.parent), "uv_environment": {}}
    hosts = {f"case{number}": {**common, **variables} for number, variables in enumerate(sets)}
    return directory, play(directory, PLAY, hosts).failures


@pytest.mark.parametrize("number", range(len(CASES)))
def test_documents_and_pytorch_are_as_the_inventory_says(ran: tuple[Path, dict[str, str]], number: int) -> None:
    directory, failures = ran
    _, documents, torch = CASES[number]
    path = directory / f"case{number}.json"
    assert path.exists(), failures
    assert json.loads(path.read_text()) == [
        {"OPENAI_API_BASE_URL": GATEWAY, "OPENAI_API_KEY": "none", **documents},
        torch,
    ]


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_a_mistake_stops_in_preflight(ran: tuple[Path, dict[str, str]], number: int) -> None:
    directory, failures = ran
    case = f"case{len(CASES) + number}"
    assert MISTAKES[number][1] in " ".join(failures[case].split())
    assert not (directory / f"{case}.json").exists()
