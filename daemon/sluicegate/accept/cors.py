"""Cross-origin requests (the Fetch standard's CORS): the fields that let a page of another origin use the gateway.

Never Access-Control-Allow-Credentials: no cookie means anything here, so that even `*` gives a page nothing that its
user has and any other program has not. Pure.
"""

import functools
import re

from ..exchange import Headers

#: What a page needs to read of an answer's fields. The six names are OpenAI's. `*` covers what an engine adds;
#: browsers that do not know it find the rest by name.
_EXPOSED = (
    b"*, x-request-id, x-sluicegate-outcome, retry-after, retry-after-ms, x-should-retry, server-timing, allow, "
    b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)

#: Any method passes the preflight: the answer to the request itself says in words what is wrong with one.
_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"

#: How long a browser may remember a preflight's answer (seconds). Chromium remembers none longer.
_MAX_AGE = b"7200"

#: Names of fields that a page may ask to send: SDKs send some twenty. A longer list is not answered for.
_ASKED = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z, \t-]{1,2048}")

#: The field in a head that need not be valid, or of which the end is missing.
_ORIGIN = re.compile(rb"\r?\norigin:[ \t]*([\x21-\x7e]{1,300})[ \t]*\r?\n", re.IGNORECASE)


@functools.lru_cache(maxsize=64)
def fields(origins: tuple[str, ...], origin: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """What every answer to a request from `origin` (b"": it names none) carries; `origins`: cors.origins."""
    if "*" in origins:
        allowed = b"*"
    elif origins:
        known = origin.decode("latin-1").lower() in origins
        allowed = origin if known else b""
    else:
        return ()
    found = [] if allowed == b"*" else [(b"vary", b"origin")]
    if allowed:
        found += [
            (b"access-control-allow-origin", allowed),
            (b"access-control-expose-headers", _EXPOSED),
            (b"timing-allow-origin", allowed),
        ]
    return tuple(found)


@functools.lru_cache(maxsize=64)
def lines(origins: tuple[str, ...], origin: bytes) -> bytes:
    """The same as they stand in a head."""
    return b"".join([b"%b: %b\r\n" % field for field in fields(origins, origin)])


def unread(origins: tuple[str, ...]) -> tuple[tuple[bytes, bytes], ...]:
    """The same where no request was read: for `*`, or the only origin that may come here."""
    return fields(origins, origins[0].encode("ascii")) if len(origins) == 1 or "*" in origins else ()


def origin_of(headers: Headers) -> bytes:
    """The Origin field; b"" if there is none."""
    return next((value.strip(b" \t") for name, value in headers if name == b"origin"), b"")


def origin_in(head: bytes) -> bytes:
    """The Origin field in a head that need not be valid; b"" if there is none."""
    match = _ORIGIN.search(head)
    return match[1] if match else b""


def preflight(origins: tuple[str, ...], headers: Headers) -> Headers | None:
    """The answer's fields if an OPTIONS with `headers` is the preflight of a page that may come here; else None."""
    asked = dict(headers)
    if b"access-control-request-method" not in asked:
        return None
    found = [field for field in fields(origins, origin_of(headers)) if field[0] != b"access-control-expose-headers"]
    if not any(name == b"access-control-allow-origin" for name, _ in found):
        return None
    found += [
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-max-age", _MAX_AGE),
        (b"vary", b"access-control-request-headers"),
    ]
    names = asked.get(b"access-control-request-headers", b"")
    if _ASKED.fullmatch(names):
        found.append((b"access-control-allow-headers", names))
    if asked.get(b"access-control-request-private-network", b"").lower() == b"true":
        found.append((b"access-control-allow-private-network", b"true"))
    return found
