"""Tokens as engines report them, in the members of every dialect."""

from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Raw


@dataclass(slots=True)
class Usage:
    """Tokens as the engine counted them, each >= 0. `prompt` includes what came from its prefix cache."""

    prompt: int
    completion: int


_Count = Annotated[int, msgspec.Meta(ge=0)] | None


class Counts(msgspec.Struct):
    """A usage object of any dialect; None where a member is absent."""

    prompt_tokens: _Count = None
    completion_tokens: _Count = None
    input_tokens: _Count = None
    output_tokens: _Count = None
    cache_read_input_tokens: _Count = None
    cache_creation_input_tokens: _Count = None


class _Holder(msgspec.Struct):
    usage: Raw = Raw()


_COUNTS = msgspec.json.Decoder(Counts)
_HOLDER = msgspec.json.Decoder(_Holder)


def counts(raw: Raw) -> Counts:
    """A usage object's members; none where it is absent or not understood."""
    try:
        return _COUNTS.decode(raw)
    except (ValueError, RecursionError):
        return Counts()


def usage_inside(data: bytes | Raw) -> Raw:
    """The member `usage` of an object; empty where there is none, or `data` is no object."""
    try:
        return _HOLDER.decode(data).usage
    except (ValueError, RecursionError):
        return Raw()


def usage_of(prompt: int | None, completion: int | None) -> Usage | None:
    """Both, or nothing."""
    return None if prompt is None or completion is None else Usage(prompt, completion)
