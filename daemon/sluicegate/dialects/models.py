"""The list of models, as clients get it: the engine's own, without what it tells of its host."""

import functools
import re
from typing import Any

import msgspec

#: A model's name as on Hugging Face, maybe with a quantization behind it: `Qwen3`, `Qwen/Qwen3-8B`, `org/name:Q4_K_M`.
#: Anything else that vLLM has for `root` is a path or a URL.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?(:[A-Za-z0-9._-]+)?")


@functools.lru_cache(maxsize=8)
def public(body: bytes) -> bytes:
    """The engine's answer to GET /v1/models. Where `root` is no name of a model, it becomes the model's id.

    An id that is a path stays: clients must send it. A body that is no such list stays, too.
    """
    listed = _decode(body)
    changed = False
    for card in _cards(listed):
        root = card.get("root")
        if root is not None and root != card.get("id") and not (isinstance(root, str) and _NAME.fullmatch(root)):
            card["root"] = card.get("id")
            changed = True
    return msgspec.json.encode(listed) if changed else body


def one(body: bytes, model: str) -> bytes | None:
    """The card of `model` in such an answer; None if it has none."""
    for card in _cards(_decode(public(body))):
        if card.get("id") == model:
            return msgspec.json.encode(card)
    return None


def _decode(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None


def _cards(listed: Any) -> list[dict[str, Any]]:
    data = listed.get("data") if isinstance(listed, dict) else None
    return [card for card in data if isinstance(card, dict)] if isinstance(data, list) else []
