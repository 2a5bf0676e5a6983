"""A request's head on a hot route. Parsed by llhttp (httptools), which is strict about fields and lengths.

What llhttp lets pass and RFC 9112 does not (more than one space in the request line, no Host field) is found here. The
fast way refuses no head itself: one that is not for it goes to Hypercorn, and grammar.py judges it there.
"""

import functools
import re

import httptools

from ...dialects.routes import ENDPOINTS
from ...exchange import Endpoint, Headers
from . import grammar

#: Request lines of the fast way, byte for byte.
_HOT = {
    b"POST %b HTTP/1.1" % path.encode("ascii"): endpoint for path, endpoint in ENDPOINTS.items() if not endpoint.opaque
}

#: A request line with a query: without it one of the above.
_QUERY = re.compile(rb"(POST [^? ]+)(\?[\x21-\x7e]*)( HTTP/1\.1)")

#: Fields that are looked at while a head is parsed: Host, the body's coding, Origin, and those that are for Hypercorn.
_NOTED = frozenset({b"host", b"content-encoding", b"origin", b"expect", b"transfer-encoding"})

#: It may be ignored (RFC 9110, 7.8), and Java's client sends it with every request. llhttp would end the body at it.
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r]*", re.IGNORECASE)

#: Clients of one gateway send the same few Hosts: looked up in a third of the time of a match. At most 64 heads' worth.
_valid_host = functools.lru_cache(maxsize=64)(grammar.valid_host)

#: What every hot request line begins with.
_BEGINNING = b"POST /"


class Head:
    """A head on the fast way. `headers`: in wire order, names in lower case. `query`: with its question mark.

    `coded`: the body has, or may have, a content coding. `expects`: the client waits for a 100 before it sends it.
    `origin`: that of the page that sends it, or empty.
    """

    __slots__ = (
        "coded",
        "complete",
        "endpoint",
        "expects",
        "headers",
        "hosts",
        "keep_alive",
        "origin",
        "query",
        "strange",
    )

    def __init__(self, endpoint: Endpoint, query: bytes) -> None:
        self.endpoint = endpoint
        self.query = query
        self.headers: Headers = []
        self.hosts = 0
        self.origin = b""
        self.coded = False
        self.expects = False
        self.complete = False
        self.strange = False
        self.keep_alive = True

    @classmethod
    def parse(cls, data: bytes) -> "Head | None":
        """The head in `data`, which ends with its blank line; None if it is not for the fast way, or not valid."""
        line = data[: data.find(b"\r")]
        endpoint, query = _HOT.get(line), b""
        if endpoint is None:
            match = _QUERY.fullmatch(line)
            if match is None or (endpoint := _HOT.get(match[1] + match[3])) is None:
                return None
            query = match[2]
        head = cls(endpoint, query)
        parser = httptools.HttpRequestParser(head)
        try:
            parser.feed_data(data)
        except httptools.HttpParserError:
            return None
        except httptools.HttpParserUpgrade:
            data, ignored = _UPGRADE.subn(b"", data)
            return cls.parse(data) if ignored else None
        if head.hosts != 1 or head.strange or not head.complete:
            return None
        head.keep_alive = bool(parser.should_keep_alive())
        return head

    # -- called by httptools ----------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in _NOTED:
            if name == b"host" and _valid_host(value):
                self.hosts += 1
            elif name == b"content-encoding":
                self.coded = True
            elif name == b"origin":
                self.origin = self.origin or value.rstrip(b" \t")
            elif name == b"expect" and value.strip(b" \t").lower() == b"100-continue":
                self.expects = True
            else:
                self.strange = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True

    def on_body(self, _: bytes) -> None:
        self.strange = True  # llhttp saw the end of the head before we did: not both can be right

    def on_message_complete(self) -> None:
        self.strange = True  # no body was declared; and llhttp has forgotten whether the connection may be kept


def may_be_hot(buffer: bytes) -> bool:
    """Whether `buffer`, not yet a whole head, may become one for the fast way: a POST in lines that end with CRLF."""
    return _BEGINNING.startswith(buffer[:6]) and buffer.count(b"\n") == buffer.count(b"\r\n")
