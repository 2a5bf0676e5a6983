"""What a head and a trailer section must look like (RFC 9112, and RFC 9110 for fields): the judge for both ways in.

Strict: where the RFC lets a recipient repair a message or refuse it, it is refused, for a proxy in front of the gateway
may have repaired it in another way, and the two would disagree about where a request ends.
"""

import re
from http import HTTPMethod

#: HTTP/2 with prior knowledge (RFC 9113, 3.4) begins with what looks like a head.
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\n"

#: RFC 9110, 9.1: names are case-sensitive. For others it would have 501, but a 5xx alerts the gateway's operator.
_METHODS = frozenset(method.encode("ascii") for method in HTTPMethod)

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]++"

#: RFC 9112, 2.2 and 5.2; RFC 9110, 5.5: lines end with CRLF. No other CR or LF, no control character but the tab, and
#: no line that begins with white space (a folded field).
_SECTION = re.compile(rb"(?:[^\x00-\x20\x7f][^\x00-\x08\x0a-\x1f\x7f]*\r\n)*\r\n")

#: RFC 9112, 7.1: a hexadecimal size, then maybe extensions. No white space between, and no control character.
_CHUNK_LINE = re.compile(rb"[0-9A-Fa-f]+(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n")

#: RFC 9112, 3: single spaces, the version in upper case.
_REQUEST_LINE = re.compile(rb"(%b) ([\x21-\x7e]+) HTTP/([0-9]\.[0-9])\r\n" % _TOKEN)

#: RFC 9112, 5.1: no white space between name and colon.
_FIELDS = re.compile(rb"(?:%b:[^\r]*+\r\n)*+\r\n" % _TOKEN)

#: The fields that say whom a request is for and where it ends.
_NOTED = re.compile(rb"\n(host|content-length|transfer-encoding):[ \t]*([^\r]*)", re.IGNORECASE)

#: RFC 3986, 3.2.2 and 3.2.3: an address in brackets or a registered name, which may be empty; then maybe a port.
_HOST = re.compile(
    rb"[0-9A-Za-z._~!$&'()*+,;=-]*+(?:%[0-9A-Fa-f]{2}[0-9A-Za-z._~!$&'()*+,;=-]*+)*+(?::[0-9]*)?"
    rb"|\[[0-9A-Za-z:.%_~!$&'()*+,;=-]+\](?::[0-9]*)?"
)

#: Whether a value may be that of a Host field (RFC 9110, 7.2); not None if so. An empty one may.
valid_host = _HOST.fullmatch

#: RFC 9112, 3.2.2: a whole URL as the target.
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)


class Malformed(Exception):
    """Not a valid message. `status` is the answer's (400, or 501 for a coding that is not implemented).

    The message completes "The request is not valid HTTP/1.1: …" and never holds what the client sent.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def check_head(head: bytes) -> None:
    """Raise Malformed unless `head`, which ends with its blank line, is that of a valid HTTP/1.0 or 1.1 request."""
    if head == HTTP2_PREFACE:
        return
    check_section(head)
    match = _REQUEST_LINE.match(head)
    if not match:
        raise Malformed("its request line is malformed")
    method, target, version = match.groups()
    if method not in _METHODS:
        raise Malformed("its method is unknown")
    if version not in (b"1.0", b"1.1"):
        raise Malformed("its version is neither 1.0 nor 1.1")
    _check_target(method, target)
    if not _FIELDS.fullmatch(head, match.end()):
        raise Malformed("the name of a header field is malformed")
    values: dict[bytes, list[bytes]] = {b"host": [], b"content-length": [], b"transfer-encoding": []}
    for name, value in _NOTED.findall(head):
        values[name.lower()].append(value.rstrip(b" \t"))
    _check_host(values[b"host"], version)
    _check_framing(values[b"content-length"], values[b"transfer-encoding"], version)


def check_section(section: bytes) -> None:
    """Raise Malformed unless `section`, a head or a chunked body's trailers, consists of proper lines."""
    if not _SECTION.fullmatch(section):
        raise Malformed("a line is folded, does not end with CRLF, or holds a control character")


def check_chunk_line(line: bytes | bytearray) -> None:
    """Raise Malformed unless `line` may stand before a chunk."""
    if not _CHUNK_LINE.fullmatch(line):
        raise Malformed("the line before a chunk is malformed")


def origin_form(target: bytes) -> bytes:
    """A valid target as path and query: a URL without its scheme and authority, anything else unchanged."""
    match = _ABSOLUTE.fullmatch(target)
    if not match:
        return target
    rest: bytes = match[2]
    return rest if rest.startswith(b"/") else b"/" + rest


def without_dots(path: str) -> str:
    """`path` without its dot segments (RFC 3986, 5.2.4).

    Unchanged, and so no route's, if they lead up to its root: such a path would get past a proxy's rule for the
    beginnings of paths.
    """
    kept: list[str] = []
    for segment in path[1:].split("/"):
        if segment == "..":
            if len(kept) < 2:
                return path
            kept.pop()
        elif segment != ".":
            kept.append(segment)
    return "/" + "/".join(kept)


def method_of(head: bytes) -> str:
    """The method at the beginning of a head that need not be valid; "" if it is none."""
    word = head[:16].partition(b" ")[0]
    return word.decode("ascii") if word in _METHODS else ""


def target_of(head: bytes) -> str:
    """The target in the beginning of a head that need not be valid, in origin form; "" if there is none."""
    words = head[:1000].split(b" ", 2)
    return origin_form(words[1]).decode(errors="backslashreplace") if len(words) > 1 else ""


def _check_target(method: bytes, target: bytes) -> None:
    """RFC 9112, 3.2: a path; a URL with a host and without a user; * with OPTIONS only. CONNECT is not implemented."""
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return
    match = _ABSOLUTE.fullmatch(target)
    if not match or match[1][:1] in (b"", b":") or not valid_host(match[1]):
        raise Malformed("its target is neither a path nor the URL of one")


def _check_host(hosts: list[bytes], version: bytes) -> None:
    """RFC 9112, 3.2: HTTP/1.1 must have one; nobody may have two."""
    if len(hosts) > 1:
        raise Malformed("it has more than one Host field")
    if not hosts and version == b"1.1":
        raise Malformed("it has no Host field")
    if hosts and not valid_host(hosts[0]):
        raise Malformed("its Host field is malformed")


def _check_framing(lengths: list[bytes], codings: list[bytes], version: bytes) -> None:
    """RFC 9112, 6: one length, or chunked, or neither."""
    if len(lengths) > 1 or (lengths and not lengths[0].isdigit()):
        raise Malformed("its Content-Length is not one number")
    if not codings:
        return
    if lengths:
        raise Malformed("it has both Content-Length and Transfer-Encoding")
    if version == b"1.0":
        raise Malformed("HTTP/1.0 has no Transfer-Encoding")
    names = [name.strip(b" \t").lower() for name in b",".join(codings).split(b",")]
    if names.count(b"chunked") != 1 or names[-1] != b"chunked":
        raise Malformed("its last Transfer-Encoding is not 'chunked'")
    if len(names) > 1:
        raise Malformed("the only Transfer-Encoding that is implemented is 'chunked'", 501)
