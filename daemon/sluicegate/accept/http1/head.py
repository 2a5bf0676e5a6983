"""The head of a request on a hot route, as llhttp (httptools) parses it; strict, and within RFC 9112."""

import httptools

from ...dialects.routes import ENDPOINTS
from ...exchange import Endpoint, Headers

_HOT = {path.encode("ascii"): endpoint for path, endpoint in ENDPOINTS.items() if not endpoint.opaque}

#: Fields that make a request one for Hypercorn.
_STRANGE = frozenset({b"expect", b"transfer-encoding", b"upgrade", b"http2-settings"})


class Head:
    """A request's head on a hot route."""

    __slots__ = ("complete", "headers", "hot", "keep_alive", "strange", "target")

    def __init__(self) -> None:
        self.headers: Headers = []
        self.target = b""
        self.complete = False
        self.strange = False
        self.keep_alive = True
        self.hot: Endpoint

    @classmethod
    def parse(cls, data: bytes) -> "Head | None":
        """The head in `data`, which ends with its blank line; None if it is not for the fast way.

        httptools.HttpParserError if it is not HTTP, or says two things about its length.
        """
        head = cls()
        parser = httptools.HttpRequestParser(head)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return None
        hot = _HOT.get(head.target)
        if hot is None or head.strange or not head.complete:
            return None
        if parser.get_method() != b"POST" or parser.get_http_version() != "1.1":
            return None
        head.hot = hot
        head.keep_alive = bool(parser.should_keep_alive())
        return head

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in _STRANGE:
            self.strange = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True

    def on_body(self, _: bytes) -> None:
        self.strange = True  # llhttp saw the end of the head before we did: not both can be right


def plausible(buffer: bytes) -> bool:
    """Whether `buffer` may still become a head for the fast way: it begins like a POST in HTTP/1.1."""
    return b"POST /".startswith(buffer[:6])
