"""Bodies with a content coding: decoded within the limit, or refused with what would be taken."""

import gzip
import importlib
import zlib
from collections.abc import Callable, Mapping

import pytest

from sluicegate.accept.codings import MEMBERS_MAX, TAKEN, decoded
from sluicegate.bodies import Bodies, Room
from sluicegate.config.live import Live
from sluicegate.config.schema import Config, LimitConfig
from sluicegate.exchange import Headers
from sluicegate.outcome import Outcome, Refusal
from tests.harness import SimBody

ROOM = Room(Bodies(Live(Config())))
LIMITS = LimitConfig(body_max_bytes=1_000_000)
TEXT = b'{"model": "fake-model"}'
BOMB = b"\0" * 100_000_000


def _deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def _zstd() -> Mapping[str, Callable[[bytes], bytes]]:
    """Where the library is there, as the gate's own choice says."""
    if "zstd" not in TAKEN:
        return {}
    try:
        library = importlib.import_module("compression.zstd")
    except ImportError:
        library = importlib.import_module("backports.zstd")
    return {"zstd": library.compress}


#: Content-Encoding → how a client makes it.
CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZip": gzip.compress,
    " gzip\t": gzip.compress,
    "identity, gzip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": _deflated,
    **_zstd(),
}


def _body(coding: str | bytes, data: bytes, *more: tuple[bytes, bytes]) -> tuple[SimBody, Headers]:
    value = coding if isinstance(coding, bytes) else coding.encode()
    headers = [(b"host", b"gate"), (b"content-encoding", value), (b"content-length", b"%d" % len(data)), *more]
    body, kept = decoded(SimBody(data), headers, LIMITS)
    return body, kept  # type: ignore[return-value]


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("text", [TEXT, b"", b"x" * 1_000_000], ids=["short", "empty", "limit"])
async def test_decoded(coding: str, text: bytes) -> None:
    body, headers = _body(coding, CODINGS[coding](text))
    assert await body.whole(ROOM) == text
    assert b"".join([part async for part in body.parts(ROOM)]) == text
    assert headers == [(b"host", b"gate")]


async def test_two_members_are_one_body() -> None:
    """RFC 1952, 2.2."""
    body, _ = _body("gzip", gzip.compress(TEXT[:5]) + gzip.compress(TEXT[5:]))
    assert await body.whole(ROOM) == TEXT


@pytest.mark.parametrize("coding", ["", "identity", "Identity , identity"])
async def test_none(coding: str) -> None:
    body, headers = _body(coding, TEXT)
    assert await body.whole(ROOM) == TEXT
    assert (b"content-length", b"%d" % len(TEXT)) in headers


@pytest.mark.parametrize("coding", CODINGS)
async def test_bomb(coding: str) -> None:
    body, _ = _body(coding, CODINGS[coding](BOMB))
    with pytest.raises(Refusal) as caught:
        await body.whole(ROOM)
    assert (caught.value.outcome, caught.value.status) == (Outcome.TOO_LARGE, 413)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("how", ["cut off", "damaged", "not it at all", "something behind"])
async def test_undecodable(coding: str, how: str) -> None:
    data = CODINGS[coding](TEXT)
    wrong = {
        "cut off": data[:-3],
        "damaged": b"\xff\xff" + data[2:],
        "not it at all": TEXT,
        "something behind": data + b"{}",
    }[how]
    body, _ = _body(coding, wrong)
    with pytest.raises(Refusal) as caught:
        await body.whole(ROOM)
    assert (caught.value.outcome, caught.value.status) == (Outcome.INVALID, 400)
    assert "content-encoding" in caught.value.message


async def test_members_are_bounded() -> None:
    """Each costs a decoder, and nothing of the limit if it is empty."""
    body, _ = _body("gzip", gzip.compress(b"") * (MEMBERS_MAX + 1))
    with pytest.raises(Refusal):
        await body.whole(ROOM)


@pytest.mark.parametrize("coding", ["br", "compress", "gzip, gzip", "deflate,gzip", "gzip;q=1", b"\xff", "chunked"])
async def test_not_taken(coding: str | bytes) -> None:
    """RFC 9110, 15.5.16: the answer names what is."""
    body, _ = _body(coding, TEXT)
    with pytest.raises(Refusal) as caught:
        await body.whole(ROOM)
    assert (caught.value.outcome, caught.value.status) == (Outcome.INVALID, 415)
    assert "gzip, deflate" in caught.value.message
    assert caught.value.headers == ((b"accept-encoding", ", ".join(TAKEN).encode()),)


async def test_two_fields_are_two_codings() -> None:
    body, _ = _body("gzip", TEXT, (b"content-encoding", b"gzip"))
    with pytest.raises(Refusal) as caught:
        await body.whole(ROOM)
    assert caught.value.status == 415
