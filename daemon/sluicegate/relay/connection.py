"""One HTTP/1.1 connection to the engine: a request out, an answer in, and whether it may be used again.

Heads and framing are parsed by llhttp (httptools), the parser of Node.js: strict, and kept by others.
"""

import socket
from dataclasses import dataclass

import httptools
import trio

from ..exchange import Headers
from .wire import Wire

#: Largest head of an answer (bytes). vLLM's are below 500.
HEAD_MAX = 65536

_END_OF_HEAD = b"\r\n\r\n"


class EngineBroken(Exception):
    """The engine closed, reset or garbled the exchange. `why` is for the log."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class HeadTooLarge(EngineBroken):
    """The head of the answer exceeds HEAD_MAX, which `why` names."""


class AnswerTooLarge(EngineBroken):
    """The answer exceeds a limit of the gateway's own, which `why` names. The engine is well."""


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


class EngineConnection:
    """Owns its wire. One exchange at a time: `send`, `head`, `body_part` until None. `reusable` only after that None.

    A connection that was left in the middle of an exchange (cancelled, broken) is never reusable: close it.
    The pump may read the rest of a body in our place: from `sock`, into `answer`; it then says `exchanged`.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.idle_since = 0.0
        self.reused = False
        self._idle = True
        self._keep_alive = True
        self._answer: Answer | None = None
        self._received = False

    async def send(self, data: bytes) -> None:
        """Send a request, or a piece of one. EngineBroken if the engine is gone."""
        self._idle = self._received = False
        self._answer = None
        try:
            await self.wire.send_all(data)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise EngineBroken(f"the engine closed the connection while the request was sent ({error})") from None

    async def head(self) -> AnswerHead:
        """The head of the answer. EngineBroken if there will be none."""
        raw = b""
        while True:
            while (end := raw.find(_END_OF_HEAD)) < 0:
                if len(raw) > HEAD_MAX:
                    raise HeadTooLarge(f"the head of the engine's answer is larger than {HEAD_MAX} bytes")
                if not b"HTTP/1.".startswith(raw[:7]):
                    raise EngineBroken("the engine's answer is not HTTP")
                data = await self._receive()
                if not data:
                    raise EngineBroken("the engine closed the connection without an answer")
                raw += data
            answer = Answer(raw[: end + 4])
            raw = raw[end + 4 :]
            if answer.head.status >= 200:  # what is below is only a notice that the answer will come
                self._answer = answer
                answer.feed(raw)
                return answer.head

    async def body_part(self) -> bytes | None:
        """The next bytes of the body, framing removed, as they come; None at its proper end; EngineBroken if none."""
        answer = self.answer
        while not answer.parts:
            if answer.complete:
                self.exchanged()
                return None
            data = await self._receive()
            if data:
                answer.feed(data)
            else:
                answer.end()
        return answer.take()

    @property
    def answer(self) -> "Answer":
        """The present answer, once `head` has returned."""
        assert self._answer is not None
        return self._answer

    def exchanged(self) -> None:
        """The exchange is over, in good order: the answer was read to its end."""
        self._idle = True
        self._keep_alive = self.answer.keep_alive and not self.answer.surplus

    @property
    def sock(self) -> socket.socket | None:
        """The socket below, None where the wire has none."""
        return getattr(self.wire, "sock", None)

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

    async def _receive(self) -> bytes:
        try:
            data = await self.wire.receive_some()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise EngineBroken(f"the connection to the engine broke ({error})") from None
        if data:
            self._received = True
        return data

    def __repr__(self) -> str:
        return f"<EngineConnection {self.wire!r} idle={self._idle} reused={self.reused}>"


class Answer:
    """One answer in the course of being parsed. Raises EngineBroken for what is not HTTP.

    `parts`: pieces of the body, framing removed. `complete`: its end was there, and `surplus` if something came behind.
    `at_boundary`: in a chunked body, between two chunks, with nothing of the next one fed yet.
    """

    __slots__ = (
        "_headers",
        "_in_chunk",
        "_parser",
        "at_boundary",
        "complete",
        "head",
        "keep_alive",
        "parts",
        "surplus",
    )

    def __init__(self, raw_head: bytes) -> None:
        self.head = AnswerHead(0, [])
        self.parts: list[bytes] = []
        self.complete = False
        self.surplus = False
        self.keep_alive = False
        self.at_boundary = True
        self._in_chunk = False
        self._headers: Headers = []
        self._parser = httptools.HttpResponseParser(self)
        self._parse(raw_head)
        if not self.head.status:
            raise EngineBroken("the engine's answer is not HTTP")

    def feed(self, data: bytes) -> None:
        """Bytes that came behind the head."""
        if self.complete:
            self.surplus = self.surplus or bool(data)
        else:
            self._parse(data)
        self.at_boundary = not self._in_chunk and data.endswith(b"\r\n")

    def end(self) -> None:
        """The engine closed its side: the end of a body without framing, a broken one otherwise."""
        if self.head.header(b"content-length") or self.head.header(b"transfer-encoding"):
            raise EngineBroken("the engine closed the connection in the middle of its answer")
        self.complete, self.keep_alive = True, False

    def take(self) -> bytes:
        """The parts so far, in one piece; they are gone from here then."""
        parts = self.parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        return data

    @property
    def chunked(self) -> bool:
        return self.head.header(b"transfer-encoding").strip(b" ").lower() == b"chunked"

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self.complete:
                raise EngineBroken(f"the engine's answer is not HTTP ({error})") from None
            self.surplus = True
        except httptools.HttpParserUpgrade:
            raise EngineBroken("the engine wants to change the protocol") from None

    # -- llhttp's callbacks ---------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.complete:
            self.surplus = True
        elif not self.head.status:
            self.head = AnswerHead(self._parser.get_status_code(), self._headers)
            self._headers = []  # what comes now are trailers, and no headers (RFC 9110, 6.5.1)

    def on_body(self, body: bytes) -> None:
        if not self.complete:
            self.parts.append(bytes(body))

    def on_chunk_header(self) -> None:
        self._in_chunk = True

    def on_chunk_complete(self) -> None:
        self._in_chunk = False

    def on_message_complete(self) -> None:
        if not self.complete:
            self.complete = True
            self.keep_alive = bool(self._parser.should_keep_alive())
