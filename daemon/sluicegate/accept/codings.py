"""Content codings of request bodies (RFC 9110, 8.4): behind this module every body is decoded.

What a body decodes to is bounded by limits.body_max_bytes, as a body without a coding is: a small one that becomes a
huge one (a bomb) is given up at the limit.
"""

import importlib
import zlib
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing
from typing import Any

import trio

from ..config.schema import LimitConfig
from ..exchange import Body, Headers, Room
from ..outcome import Outcome, Refusal
from .intake import Held, too_large

#: Bytes that are decoded at once (0.2 ms). Then other tasks have their turn.
STEP = 262_144

#: Members of a gzip file, or frames of a zstd file, one behind the other. Clients send one.
MEMBERS_MAX = 16

#: Largest window of zstd (its logarithm): what every decoder should support (RFC 8878, 3.1.1.1.2), and no more memory.
ZSTD_WINDOW_LOG = 23

#: A body that is not empty to its pieces, of STEP bytes at most. Raises _Undecodable or zlib.error.
Decoder = Callable[[bytes], Iterator[bytes]]

_GZIP, _ZLIB, _DEFLATE = 31, 15, -15  # zlib's wbits


class _Undecodable(Exception):
    """Not what its coding says, or cut off."""


def _inflated(data: bytes, wbits: int) -> Iterator[bytes]:
    for _ in range(MEMBERS_MAX):
        decoder = zlib.decompressobj(wbits)
        while not decoder.eof:
            piece = decoder.decompress(data, STEP)
            data = decoder.unconsumed_tail
            if not (piece or data or decoder.eof):
                raise _Undecodable
            yield piece
        data = decoder.unused_data
        if not data:
            return
        if wbits != _GZIP:
            break
    raise _Undecodable


def _gunzipped(data: bytes) -> Iterator[bytes]:
    return _inflated(data, _GZIP)


def _deflated(data: bytes) -> Iterator[bytes]:
    """RFC 9110, 8.4.1.2: in zlib's format. Some clients send it bare."""
    zlibs = data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0
    return _inflated(data, _ZLIB if zlibs else _DEFLATE)


def _zstd(library: Any) -> Decoder:
    options = {library.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}

    def decoded(data: bytes) -> Iterator[bytes]:
        for _ in range(MEMBERS_MAX):
            decoder = library.ZstdDecompressor(options=options)
            while not decoder.eof:
                try:
                    piece = decoder.decompress(data, STEP)
                except library.ZstdError:
                    raise _Undecodable from None
                data = b""
                if not piece and decoder.needs_input and not decoder.eof:
                    raise _Undecodable
                yield piece
            data = decoder.unused_data
            if not data:
                return
        raise _Undecodable

    return decoded


def _decoders() -> dict[bytes, Decoder]:
    decoders: dict[bytes, Decoder] = {b"gzip": _gunzipped, b"deflate": _deflated}
    for name in ("compression.zstd", "backports.zstd"):  # Python's own, from 3.14 on; or the extra `zstd`
        try:
            return decoders | {b"zstd": _zstd(importlib.import_module(name))}
        except ImportError:
            pass
    return decoders


_DECODERS = _decoders()

#: The codings that are taken.
TAKEN = tuple(coding.decode("ascii") for coding in _DECODERS)


def decoded(body: Body, headers: Headers, limits: LimitConfig) -> tuple[Body, Headers]:
    """The request's body without its content coding, and its headers to match."""
    values = b",".join(value for name, value in headers if name == b"content-encoding")
    codings = [coding for one in values.split(b",") if (coding := one.strip(b" \t").lower()) not in (b"", b"identity")]
    if not codings:
        return body, headers
    kept = [field for field in headers if field[0] not in (b"content-encoding", b"content-length")]
    return _Decoded(body, [_ALIASES.get(coding, coding) for coding in codings], limits), kept


#: RFC 9110, 8.4.1.3.
_ALIASES = {b"x-gzip": b"gzip"}


class _Decoded:
    """A body whose coding is undone. Raises Refusal as every body does; 415 before a byte is read.

    What it was packed in is held as well, until all of it is unpacked.
    """

    def __init__(self, body: Body, codings: list[bytes], limits: LimitConfig) -> None:
        self._body = body
        self._codings = codings
        self._limits = limits
        self._plain = Held()

    @property
    def held(self) -> int:
        return self._plain.held + self._body.held

    async def whole(self, room: Room) -> bytes:
        room.begin(0)  # also for one that came with its head: it may be a large one
        parts = []
        async with aclosing(self.parts(room)) as arriving:
            async for part in arriving:
                self._plain.hold(room, len(part))
                parts.append(part)
        self._body.release()
        return b"".join(parts)

    def release(self) -> None:
        self._plain.release()
        self._body.release()

    async def parts(self, room: Room) -> AsyncGenerator[bytes, None]:
        decode = _DECODERS.get(self._codings[0]) if len(self._codings) == 1 else None
        if decode is None:
            raise _not_taken()
        data = await self._body.whole(room)
        size = 0
        for part in self._decode(decode, data):
            size += len(part)
            if size > self._limits.body_max_bytes:
                raise too_large(self._limits)
            yield part
            if size >= STEP:
                await trio.lowlevel.checkpoint()

    def _decode(self, decode: Decoder, data: bytes) -> Generator[bytes, None, None]:
        if not data:
            return
        try:
            yield from decode(data)
        except (_Undecodable, zlib.error):
            coding = self._codings[0].decode("ascii")
            message = f"The request body is not what its content-encoding says ({coding})."
            raise Refusal(Outcome.INVALID, 400, message) from None


def _not_taken() -> Refusal:
    taken = ", ".join(TAKEN)
    message = f"The request body has a content-encoding that is not taken. Send it with one of {taken}, or with none."
    fields = ((b"accept-encoding", taken.encode("ascii")),)  # RFC 9110, 15.5.16
    return Refusal(Outcome.INVALID, 415, message, code="unsupported_media_type", headers=fields)
