"""One HTTP/1.1 connection to the engine: a request out, an answer in, and whether it may be used again.

Heads and framing are parsed by llhttp (httptools), the parser of Node.js: strict, and kept by others.
"""

from dataclasses import dataclass, field

import httptools
import trio

from ..exchange import Headers
from .wire import Wire

#: Largest head of an answer (bytes). vLLM's are below 500.
HEAD_MAX = 65536


class EngineBroken(Exception):
    """The engine closed, reset or garbled the exchange. `why` is for the log and the error message."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(slots=True)
class AnswerHead:
    """Status and headers (names in lower case) of the engine's answer."""

    status: int
    headers: Headers

    def header(self, name: bytes) -> bytes:
        """The first field called `name`, or b""."""
        for key, value in self.headers:
            if key == name:
                return value
        return b""


@dataclass(slots=True)
class _Inbox:
    """What llhttp's callbacks leave for us."""

    head: AnswerHead | None = None
    body: list[bytes] = field(default_factory=list)
    complete: bool = False


class EngineConnection:
    """Owns its wire. One exchange at a time: `send`, `head`, `body_part` until None. `reusable` only after that None.

    A connection that was left in the middle of an exchange (cancelled, broken) is never reusable: close it.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.idle_since = 0.0
        self.reused = False
        self._parser = httptools.HttpResponseParser(self)
        self._inbox = _Inbox()
        self._headers: Headers = []
        self._head_bytes = 0
        self._idle = True
        self._received = False
        self._keep_alive = True

    async def send(self, data: bytes) -> None:
        """Send a request, or a piece of one. EngineBroken if the engine is gone."""
        if self._idle:
            self._idle = self._received = False
            self._inbox = _Inbox()
            self._headers = []
            self._head_bytes = 0
        try:
            await self.wire.send_all(data)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise EngineBroken(f"the engine closed the connection while the request was sent ({error})") from None

    async def head(self) -> AnswerHead:
        """The head of the answer. EngineBroken if there will be none."""
        while self._inbox.head is None:
            await self._read()
            if self._inbox.head is None and self._head_bytes > HEAD_MAX:
                raise EngineBroken(f"the head of the engine's answer is larger than {HEAD_MAX} bytes")
        return self._inbox.head

    async def body_part(self) -> bytes | None:
        """The next bytes of the body, framing removed, as they come; None at its proper end; EngineBroken if none."""
        inbox = self._inbox
        while not inbox.body:
            if inbox.complete:
                self._idle = True
                return None
            await self._read()
        if len(inbox.body) == 1:
            return inbox.body.pop()
        data = b"".join(inbox.body)
        inbox.body.clear()
        return data

    @property
    def reusable(self) -> bool:
        """True between two exchanges, if both sides mean to keep the connection."""
        return self._idle and self._keep_alive

    @property
    def answer_begun(self) -> bool:
        """True once any byte of the present answer has come."""
        return self._received

    def looks_alive(self) -> bool:
        return self.wire.looks_alive()

    def close(self) -> None:
        self.wire.close()

    async def _read(self) -> None:
        try:
            data = await self.wire.receive_some()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise EngineBroken(f"the connection to the engine broke ({error})") from None
        if not data:
            self._at_eof()
            return
        self._received = True
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise EngineBroken(f"the engine's answer is not HTTP ({error})") from None
        except httptools.HttpParserUpgrade:
            raise EngineBroken("the engine wants to change the protocol") from None

    def _at_eof(self) -> None:
        head = self._inbox.head
        if head is None:
            raise EngineBroken("the engine closed the connection without an answer")
        if head.header(b"content-length") or head.header(b"transfer-encoding"):
            raise EngineBroken("the engine closed the connection in the middle of its answer")
        self._keep_alive = False
        self._inbox.complete = True  # a body without framing ends with the connection

    # -- llhttp's callbacks ---------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            self._inbox.head = AnswerHead(status, self._headers)
        self._headers = []

    def on_body(self, body: bytes) -> None:
        self._inbox.body.append(bytes(body))

    def on_message_complete(self) -> None:
        if self._inbox.head is not None:
            self._inbox.complete = True
            self._keep_alive = bool(self._parser.should_keep_alive())

    def __repr__(self) -> str:
        return f"<EngineConnection {self.wire!r} idle={self._idle} reused={self.reused}>"
