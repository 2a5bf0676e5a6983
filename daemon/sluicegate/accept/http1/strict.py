"""HTTP/1.1 on the ordinary way: Hypercorn's protocol over h11, with grammar.py as the judge of heads and trailers.

h11 alone lets pass what the fast way does not: bare LF, folded fields, control characters, two equal lengths, any
version, any Host. Hypercorn alone answers a head that is not valid without a body and without a trace in log and
metrics, and takes a broken chunk for a client that disconnected.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h11
import trio
from h11._receivebuffer import ReceiveBuffer
from hypercorn.protocol.events import Event, Response
from hypercorn.protocol.h11 import H11Protocol

from ... import refusals
from ...config.live import Live
from ...outcome import Outcome, Refusal
from ...timing import server_timing
from .. import cors
from ..handler import Peer, Unmatched
from ..intake import dialect_of, new_id
from .grammar import Malformed, check_chunk_line, check_head, check_section, method_of, origin_form, target_of
from .head import may_be_hot


class StrictH11(H11Protocol):
    """One HTTP/1.1 connection of Hypercorn's. A head that is not valid is answered here, and never reaches ASGI."""

    def __init__(
        self, *args: Any, peer: Peer, live: Live, unmatched: Unmatched, linger: Callable[[], Awaitable[None]]
    ) -> None:
        """`linger` ends what is sent and gives the client time to take it."""
        super().__init__(*args)
        self._checked = _CheckedConnection(self.config.h11_max_incomplete_size, peer)
        self.connection = self._checked
        self._live = live
        self._unmatched = unmatched
        self._linger = linger
        peer.go_on = self._go_on

    async def _go_on(self) -> None:
        if self._checked.awaits_100:
            await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))

    async def gives_back(self, data: bytes) -> bool:
        """Whether `data`, which has just been read, begins a request that may be one for the fast way.

        If it comes before the present answer has ended, wait for that, as with every request that is pipelined.
        """
        connection = self._checked
        if self.connection is not connection or connection.trailing_data[0] or not (data and may_be_hot(data)):
            return False
        if connection.their_state is h11.DONE:
            await self.can_read.clear()
            await self.can_read.wait()
        return connection.states == {h11.CLIENT: h11.IDLE, h11.SERVER: h11.IDLE}

    async def stream_send(self, event: Event) -> None:
        if isinstance(event, Response) and self._checked.refusal is not None:
            event.headers.append((b"connection", b"close"))
        await super().stream_send(event)

    async def _send_error_response(self, _status: int) -> None:
        """Hypercorn calls this at a head that is not valid; it closes the connection when this returns."""
        refusal = self._checked.refusal
        if refusal is None:
            return  # the client disconnected in the middle of a head
        request_id = new_id()
        self._unmatched(request_id, refusal, self._checked.method, self._checked.target)
        made = refusals.answer(dialect_of(self._checked.target), refusal)
        more = [
            (b"x-request-id", request_id.encode("ascii")),
            (b"server-timing", server_timing(self._checked.began_at)),
            *cors.fields(self._live.current.cors.origins, cors.origin_in(self._checked.head)),
            (b"content-length", b"%d" % len(made.body)),
            (b"connection", b"close"),
            *self.config.response_headers("h11"),
        ]
        await self._send_h11_event(h11.Response(status_code=made.status, headers=[*made.headers, *more]))
        await self._send_h11_event(h11.Data(data=made.body))
        await self._send_h11_event(h11.EndOfMessage())
        await self._linger()


class _CheckedConnection(h11.Connection):
    """h11 with stricter heads and trailers.

    `refusal` is set at the first violation; what comes after it is dropped. If it is in a body, the task
    that reads the body is woken, and finds it in `peer.refusal`.
    """

    def __init__(self, head_max: int, peer: Peer) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=head_max)
        self._receive_buffer = _CheckedBuffer(self._check)
        self._head_max = head_max
        self._peer = peer
        self._ended = False
        self._skipped_line = False
        self.began_at = trio.current_time()  # bytes came that no event has held yet
        self.target = ""  # of a head that is not valid, as are:
        self.method = ""
        self.head = b""
        self.refusal: Refusal | None = None

    @property
    def awaits_100(self) -> bool:
        """Whether the client waits for a 100 before it sends its body."""
        return super().they_are_waiting_for_100_continue

    @property
    def they_are_waiting_for_100_continue(self) -> bool:
        """Never, for Hypercorn: it would send the 100 before anybody has decided to read the body."""
        return False

    def receive_data(self, data: bytes) -> None:
        if not data:
            self._ended = True
        if not self._receive_buffer:
            self.began_at = trio.current_time()
        if self.refusal is None:
            super().receive_data(data)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if self.refusal is not None:
            return h11.NEED_DATA
        state = self.their_state
        if state is h11.MUST_CLOSE:
            # RFC 9112, 9.6: what follows the last request is not processed. h11 would refuse it during the answer.
            self._receive_buffer.maybe_extract_at_most(len(self._receive_buffer))
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            if self._ended:
                raise
            self.refusal = self._refusal(error, in_body=state is h11.SEND_BODY)
            if state is not h11.SEND_BODY:
                raise
            self._peer.refusal = self.refusal
            return h11.Data(data=b"")
        if isinstance(event, h11.Request) and _is_broken_handshake(event):
            # Hypercorn would answer without a body, tell nobody, and wait for ever for what comes then.
            self.target, self.method = event.target.decode("ascii"), event.method.decode("ascii")
            self.refusal = Refusal(Outcome.INVALID, 400, "The request is not a valid WebSocket handshake.")
            raise h11.RemoteProtocolError("malformed")
        if isinstance(event, h11.Request) and not event.target.startswith(b"/"):
            target = origin_form(event.target)
            return h11.Request(
                method=event.method, target=target, headers=event.headers, http_version=event.http_version
            )
        return event

    def _check(self, section: bytes) -> bool:
        """`section` has just been read: a head or a chunked body's trailers. False if it is to be ignored."""
        if self.their_state is not h11.IDLE:
            check_section(section)
            return True
        if section == b"\r\n" and not self._skipped_line:
            self._skipped_line = True  # RFC 9112, 2.2: one empty line before a request
            return False
        self._skipped_line = False
        self.head, self.target, self.method = section, target_of(section), method_of(section)
        if len(section) > self._head_max:
            raise h11.LocalProtocolError("head too large", error_status_hint=431)
        check_head(section)
        self.head, self.target = b"", ""
        return True

    def _refusal(self, error: h11.RemoteProtocolError, *, in_body: bool) -> Refusal:
        """Not with h11's own message, which holds what the client sent."""
        if in_body:
            return Refusal(Outcome.INVALID, 400, "The request's body is not validly chunked.")
        if error.error_status_hint == 431:
            if not self.target:
                self.head = self.trailing_data[0]
                self.target, self.method = target_of(self.head), method_of(self.head)
            return Refusal(Outcome.INVALID, 431, f"The request's head is larger than {self._head_max} bytes.")
        why = str(error.__cause__ or "it is malformed")
        return Refusal(Outcome.INVALID, error.error_status_hint, f"The request is not valid HTTP/1.1: {why}.")


def _is_broken_handshake(request: h11.Request) -> bool:
    """Whether Hypercorn would take it for a WebSocket handshake and find it invalid (RFC 6455, 4.2.1)."""
    fields = dict(request.headers)
    if request.method != b"GET" or fields.get(b"upgrade", b"").lower() != b"websocket":
        return False
    tokens = [token.strip() for token in fields.get(b"connection", b"").lower().split(b",")]
    valid = b"sec-websocket-key" in fields and fields.get(b"sec-websocket-version") == b"13"
    return b"upgrade" in tokens and (not valid or request.http_version != b"1.1")


class _CheckedBuffer(ReceiveBuffer):
    """h11's buffer, which has what h11 reads of it line by line checked as it came, with its line ends."""

    def __init__(self, check: Callable[[bytes], bool]) -> None:
        super().__init__()
        self._check = check

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """A head or a chunked body's trailers."""
        before = bytes(self)
        lines = super().maybe_extract_lines()
        if lines is None:
            return None
        with _as_h11():
            if self._check(before[: len(before) - len(self)]):
                return lines
        return self.maybe_extract_lines()

    def maybe_extract_next_line(self) -> bytearray | None:
        """The line before a chunk."""
        line = super().maybe_extract_next_line()
        if line is not None:
            with _as_h11():
                check_chunk_line(line)
        return line


@contextmanager
def _as_h11() -> Iterator[None]:
    try:
        yield
    except Malformed as malformed:
        raise h11.LocalProtocolError("malformed", error_status_hint=malformed.status) from malformed
