"""JSON that Python's parser takes, which vLLM uses, and a strict one does not: other encodings, NaN, half surrogates.

Being stricter than the engine would protect nobody: a body that the engine does not like either, it explains itself.
"""

import json
import re
from dataclasses import dataclass

#: Larger bodies (bytes) are not searched for NaN and half surrogates, and of those no more than so many are replaced:
#: together at most 0.3 s, on a cloud EPYC.
SEARCHED_MAX = 4 << 20
REPLACED_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Odd:
    """An odd body, twice.

    `body`: in UTF-8, for the engine, and otherwise as it came. `strict`: the same for a strict decoder, with a number
    in the place of each NaN and Infinity and U+FFFD in that of each half of a surrogate pair.
    """

    body: bytes
    strict: bytes


def read_as_python(body: bytes) -> Odd | None:
    """`body` as `json.loads` would read it; None if there is nothing odd in it. UnicodeDecodeError from its encoding.

    What it costs is bounded, whatever the body: it would stand in the way of every other request.
    """
    encoding = json.detect_encoding(body)
    recoded = body
    if encoding != "utf-8":
        recoded = body.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")
    strict = recoded
    if len(recoded) <= SEARCHED_MAX:
        if b"NaN" in strict or b"Infinity" in strict:
            strict = _NOT_A_NUMBER.sub(_number, strict, count=REPLACED_MAX)
        if b"\\ud" in strict or b"\\uD" in strict:
            strict = _HALF.sub(_replaced, strict, count=REPLACED_MAX)
    return None if strict == body else Odd(recoded, strict)


def _number(found: re.Match[bytes]) -> bytes:
    return found[1] + _NUMBERS[found[2]]


def _replaced(found: re.Match[bytes]) -> bytes:
    return found[1] + b"\\ufffd" if found[2] else found[1]


# Neither 0 nor 1, which could pass for a boolean.
_NUMBERS = {b"NaN": b"2.0", b"Infinity": b"2.000000", None: b""}

# Both match from wherever they are set, without a failure that would have the same bytes read again from the next one:
# all that is of no interest, in one go (strings and escapes as units), and then perhaps what is looked for.
_NOT_A_NUMBER = re.compile(
    rb"""((?: [^"NI]++ | "(?: [^"\\]++ | \\. )*+ \\?"? | N(?!aN) | I(?!nfinity) )*+) (NaN | Infinity)?""",
    re.DOTALL | re.VERBOSE,
)
_HALF = re.compile(
    rb"""((?: [^\\]++ | \\[^u] | \\u(?!d[89a-f][0-9a-f]{2}) | \\ud[89ab]..\\ud[c-f][0-9a-f]{2} )*+)
    (\\ud[89a-f][0-9a-f]{2})?""",
    re.DOTALL | re.VERBOSE | re.IGNORECASE,
)
