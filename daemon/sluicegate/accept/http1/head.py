"""The head of a request on a hot route, as llhttp (httptools) parses it; strict, and within RFC 9112."""

import httptools

from ...dialects.routes import ENDPOINTS
from ...exchange import Endpoint, Headers
from ..intake import is_host

#: The hot routes by their request lines, which have one spelling (RFC 9112, section 3).
_HOT = {b"POST %s HTTP/1.1" % path.encode("ascii"): route for path, route in ENDPOINTS.items() if not route.opaque}

#: Fields that make a request one for Hypercorn.
_STRANGE = frozenset({b"expect", b"transfer-encoding", b"upgrade", b"http2-settings"})

_NOTED = _STRANGE | {b"host"}


class NotHttpError(Exception):
    """The head breaks RFC 9112. The message says where, for the client."""


class Head:
    """A request's head on a hot route."""

    __slots__ = ("complete", "headers", "host", "hosts", "hot", "keep_alive", "strange")

    def __init__(self) -> None:
        self.headers: Headers = []
        self.host = b""
        self.hosts = 0
        self.complete = False
        self.strange = False
        self.keep_alive = True
        self.hot: Endpoint

    @classmethod
    def parse(cls, data: bytes) -> "Head | None":
        """The head in `data`, which ends with its blank line; None if it is not for the fast way.

        NotHttpError if it is not HTTP, declares two lengths, or does not have one valid Host.
        """
        if data[:1] <= b" ":  # llhttp takes any line end here
            raise NotHttpError("it begins with white space")
        head = cls()
        parser = httptools.HttpRequestParser(head)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return None
        except httptools.HttpParserError as error:
            raise NotHttpError(str(error)) from None
        hot = _HOT.get(data[: data.index(b"\r\n")])
        if hot is None:
            return None
        if head.hosts != 1 or not is_host(head.host.rstrip(b" \t")):
            raise NotHttpError("it must have one Host, a name or an address")
        if head.strange or not head.complete:
            return None
        head.hot = hot
        head.keep_alive = bool(parser.should_keep_alive())
        return head

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in _NOTED:
            if name == b"host":
                self.hosts += 1
                self.host = value
            else:
                self.strange = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True

    def on_body(self, _: bytes) -> None:
        self.strange = True  # llhttp saw the end of the head before we did: not both can be right


def plausible(buffer: bytes) -> bool:
    """Whether `buffer` is or may become a head for the fast way: it begins like a POST in HTTP/1.1."""
    return b"POST /".startswith(buffer[:6])
