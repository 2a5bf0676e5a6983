"""What clients are told of the models."""

from typing import Any

import msgspec
import pytest

from sluicegate.dialects.models import one, public


def listing(*cards: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"object": "list", "data": cards})


@pytest.mark.parametrize(
    ("root", "told"),
    [
        ("Qwen3", True),
        ("Qwen/Qwen3-8B", True),
        ("org/name.v1:Q4_K_M", True),
        (None, True),
        ("m", True),
        ("/srv/models/qwen", False),
        ("./qwen", False),
        ("../qwen", False),
        ("~/qwen", False),
        ("srv/models/qwen", False),
        ("C:\\models\\qwen", False),
        ("s3://bucket/qwen", False),
        ("file:///srv/qwen", False),
        ("/", False),
        ("", False),
        (7, False),
    ],
)
def test_a_root_that_is_no_name_becomes_the_id(root: object, told: bool) -> None:
    body = listing({"id": "m", "root": root, "max_model_len": 2048}, {"id": "lora", "root": "org/lora", "parent": "m"})
    first = {"id": "m", "root": root if told else "m", "max_model_len": 2048}
    found = public(body)
    assert msgspec.json.decode(found)["data"] == [first, {"id": "lora", "root": "org/lora", "parent": "m"}]
    assert (found is body) is told, "what need not change stays byte for byte"


def test_an_id_that_is_a_path_stays() -> None:
    body = listing({"id": "/srv/m", "root": "/srv/m"})
    assert public(body) == body
    assert one(body, "/srv/m") is not None


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"7", b'{"data":7}', b'{"data":[7]}', b"[" * 100_000, b"\xff"])
def test_an_answer_that_is_no_list_stays(body: bytes) -> None:
    assert public(body) == body
    assert one(body, "m") is None


def test_one_model_by_its_exact_id() -> None:
    body = listing({"id": "org/m", "root": "/srv/m"}, {"id": "m"})
    assert msgspec.json.decode(one(body, "org/m") or b"") == {"id": "org/m", "root": "org/m"}
    assert one(body, "m") == b'{"id":"m"}'
    assert one(body, "M") is None
