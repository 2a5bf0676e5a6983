"""The fake model: a tokenizer that can be undone, and text that depends on the prompt alone."""

import re
import zlib
from collections.abc import Mapping, Sequence

_PIECE = re.compile(r"\s*\S+|\s+$")

#: Not only ASCII, so that a cut within a character is noticed.
_VOCABULARY = (
    " water", " sluice", " gate", " river", " Zürich", " naïve", " 東京", " 🚰", " level", " flow", " lock", " weir",
)  # fmt: skip


class Tokenizer:
    """Whitespace-led words as tokens; an id is the rank in which a word was first seen."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._words: list[str] = []

    def encode(self, text: str) -> list[int]:
        """Ids of the tokens of `text`."""
        ids = []
        for piece in _PIECE.findall(text):
            if piece not in self._ids:
                self._ids[piece] = len(self._words)
                self._words.append(piece)
            ids.append(self._ids[piece])
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text that `encode` made these ids of; unknown ids are left out."""
        return "".join(self._words[token] for token in ids if 0 <= token < len(self._words))


def generate(prompt: str, count: int) -> list[str]:
    """The texts of `count` tokens that follow `prompt`."""
    seed = zlib.crc32(prompt.encode())
    return [_VOCABULARY[zlib.crc32(b"%d %d" % (seed, rank)) % len(_VOCABULARY)] for rank in range(count)]


def text_of(content: object) -> str:
    """The text in a message's content or in a prompt: a string, or (lists of) parts with a `text`."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        return text_of(content.get("text") or content.get("content") or "")
    if isinstance(content, Sequence):
        return " ".join(text_of(part) for part in content)
    return "" if content is None else str(content)


def render(messages: Sequence[Mapping[str, object]]) -> str:
    """Messages through the fake's chat template."""
    turns = [f"<|{message.get('role')}|> {text_of(message.get('content'))}" for message in messages]
    return " ".join([*turns, "<|assistant|>"])
