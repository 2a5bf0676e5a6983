"""What an engine says of its own failure, in the body of an answer or in an event of a stream. Pure."""

import ipaddress
import re
from typing import Any

import msgspec

#: Longest reason that is passed on (characters). An engine may repeat what it was sent.
REASON_MAX = 300

#: Bodies above this are not read for a reason (bytes).
BODY_MAX = 65536

#: Members that hold an error, or what it says: OpenAI's, Anthropic's, Responses', FastAPI's and those of plain servers.
_MEMBERS = ("message", "detail", "error", "errors", "msg", "response", "reason", "title")

#: What engines call a mistake of the client's, whatever the status that it came with: vLLM's types, OpenAI's, Python's.
_CLIENTS_MISTAKES = frozenset(
    {
        "badrequesterror",
        "invalid_request_error",
        "not_found_error",
        "notfounderror",
        "notimplementederror",
        "typeerror",
        "unprocessableentityerror",
        "unprocessable_entity_error",
        "validationerror",
        "validation_error",
        "valueerror",
    }
)

#: Codes of errors that the same request meets again; of the 4xx, those that pass are named.
_PERMANENT_CODES = frozenset({*range(400, 500), 501} - {408, 409, 425, 429})


def reason_in(body: bytes) -> str:
    """What an error's body or event data says, for the log: one line of at most REASON_MAX characters; "" if nothing.

    Never holds a key. The client gets it `without_addresses`.
    """
    try:
        return _line(_text(_ANY.decode(body)))
    except (ValueError, RecursionError):
        plain = body[:BODY_MAX].lstrip()
        if plain[:1] in (b"{", b"[", b"<"):  # broken JSON, or a page for people
            return ""
        return _line(plain.decode("utf-8", "replace"))


def without_addresses(text: str) -> str:
    """`text` without addresses in the host's network and without its files: those are the operator's, in the log."""
    return _WORD.sub(lambda match: "(hidden)" if _is_private(match[0].strip("[]")) else match[0], text)


def blames_the_request(body: bytes) -> bool:
    """Whether an error's body says that the request itself is at fault, so that it fails again as it is."""
    try:
        error = _ANY.decode(body)
    except (ValueError, RecursionError):
        return False
    if isinstance(error, dict) and isinstance(error.get("error"), dict):
        error = error["error"]
    if not isinstance(error, dict):
        return False
    kind, code = error.get("type"), error.get("code")
    named = isinstance(kind, str) and kind.lower() in _CLIENTS_MISTAKES
    return named or (isinstance(code, int) and code in _PERMANENT_CODES)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list):
        return "; ".join(filter(None, map(_text, value[:3])))
    if isinstance(value, dict):
        return next(filter(None, (_text(value.get(name)) for name in _MEMBERS)), "")
    return ""


def _line(text: str) -> str:
    printable = "".join(char if char.isprintable() else " " for char in text[: 4 * REASON_MAX])
    line = _KEY.sub(r"\1…", " ".join(printable.split()))
    return line if len(line) <= REASON_MAX else line[: REASON_MAX - 1] + "…"


_ANY = msgspec.json.Decoder()
_KEY = re.compile(r"(?i)\b(bearer\s+|sk-)[^\s\"',;)]+")

#: What can be an address or a path, as a whole. A full stop or a colon at its end is the sentence's.
_WORD = re.compile(r"""host='[^']*'|[^\s"'`,;(){}<>=]*[^\s"'`,;(){}<>=.:!?]""")

_LOCAL = r"(?:[\w-]+\.)*(?:localhost|[\w-]+\.(?:internal|local|lan|corp|svc|home|intranet))"

#: A page that everybody may read: a URL with a name of the public DNS and without a port.
_PUBLIC = re.compile(rf"https?://(?!{_LOCAL}(?!\w))(?:[\w-]+\.)+[a-z]{{2,}}(?:[/?#].*)?", re.IGNORECASE)

_PRIVATE = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"host='.*'",  # as urllib3 says it
        r"[a-z][\w+.-]*:[/@].*",  # a URL or a socket: http://gpu7/v1, ipc:///tmp/0a1b, unix:/run/engine.sock
        r"[a-z0-9.-]*[a-z][a-z0-9.-]*:\d{4,5}(?:/.*)?",  # host:port
        rf"{_LOCAL}(?::\d+)?(?:/.*)?",
        r"(?:~|/(?!(?:v1|v2|cohere|engine)/)[^/]+)/.*",  # a file: a path of two names or more that is no route's
    )
]


def _is_private(word: str) -> bool:
    """Whether `word` says where something is on the engine's host or in its network."""
    if _PUBLIC.fullmatch(word):
        return False
    return _is_ip(word.partition("/")[0]) or any(pattern.fullmatch(word) for pattern in _PRIVATE)


def _is_ip(word: str) -> bool:
    """Whether `word` is an IP address, with a port or without."""
    for host in (word, word.rpartition(":")[0]):
        try:
            ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            continue
        return True
    return False
