"""Who a request is from: only trusted peers may say, and only addresses count."""

import socket
from ipaddress import ip_network

import pytest
from trio.testing import MockClock

from sluicegate.accept.proxied import SIGNATURE, NotAnnounced, announced, client_of, peer_address
from sluicegate.config.faults import SettingError
from sluicegate.config.networks import NETWORKS, Network
from sluicegate.exchange import Headers

LAN: tuple[Network, ...] = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
HERE: tuple[Network, ...] = ("unix",)
NAT = "198.51.100.7"

XFF, FORWARDED = b"x-forwarded-for", b"forwarded"


@pytest.mark.parametrize(
    ("peer", "headers", "trusted", "client"),
    [
        (NAT, [(XFF, b"1.2.3.4")], LAN, NAT),  # anybody can write that
        ("10.0.0.1", [(XFF, b"1.2.3.4")], (), "10.0.0.1"),
        ("10.0.0.1", [], LAN, "10.0.0.1"),
        ("10.0.0.1", [(XFF, b"1.2.3.4")], LAN, "1.2.3.4"),
        ("fd00::1", [(XFF, b" 2001:DB8::1 ")], LAN, "2001:db8::1"),
        ("10.0.0.1", [(XFF, b"6.6.6.6, 1.2.3.4, 10.9.9.9")], LAN, "1.2.3.4"),
        ("10.0.0.1", [(XFF, b"6.6.6.6"), (XFF, b"1.2.3.4")], LAN, "1.2.3.4"),
        ("10.0.0.1", [(XFF, b"10.0.0.3,10.0.0.2")], LAN, "10.0.0.3"),
        ("10.0.0.1", [(XFF, b"6.6.6.6, unknown, 10.0.0.2")], LAN, "10.0.0.2"),
        ("10.0.0.1", [(XFF, b"1.2.3.4:5678")], LAN, "1.2.3.4"),
        ("10.0.0.1", [(XFF, b"[2001:db8::1]:443")], LAN, "2001:db8::1"),
        ("10.0.0.1", [(XFF, b"::ffff:1.2.3.4")], LAN, "1.2.3.4"),
        ("10.0.0.1", [(XFF, b"::ffff:10.0.0.2, 10.0.0.3")], LAN, "10.0.0.2"),
        ("10.0.0.1", [(XFF, b"1.2.3")], LAN, "10.0.0.1"),
        ("10.0.0.1", [(XFF, b"1.2.3.4\nforged")], LAN, "10.0.0.1"),
        ("10.0.0.1", [(XFF, b"<script>")], LAN, "10.0.0.1"),
        ("10.0.0.1", [(XFF, b"")], LAN, "10.0.0.1"),
        ("10.0.0.1", [(XFF, b"1.2.3.4," + b"10.0.0.2," * 5000 + b"10.0.0.3")], LAN, "10.0.0.2"),
        ("10.0.0.1", [(FORWARDED, b"for=1.2.3.4;proto=https;by=10.0.0.1")], LAN, "1.2.3.4"),
        ("10.0.0.1", [(FORWARDED, b'For="[2001:db8::1]:4711"')], LAN, "2001:db8::1"),
        ("10.0.0.1", [(FORWARDED, b'proto=http; for="6.6.6.6", for=1.2.3.4')], LAN, "1.2.3.4"),
        ("10.0.0.1", [(FORWARDED, b'for="6.6.6.6, for=1.2.3.4, for=10.0.0.9')], LAN, "1.2.3.4"),
        ("10.0.0.1", [(FORWARDED, b"for=_hidden, for=10.0.0.2")], LAN, "10.0.0.2"),
        ("10.0.0.1", [(FORWARDED, b"proto=https")], LAN, "10.0.0.1"),
        ("10.0.0.1", [(FORWARDED, b"for=6.6.6.6"), (XFF, b"1.2.3.4")], LAN, "1.2.3.4"),
        ("", [(XFF, b"1.2.3.4")], HERE, "1.2.3.4"),
        ("", [(XFF, b"1.2.3.4")], LAN, ""),
        ("", [], HERE, ""),
    ],
)
def test_client_of(peer: str, headers: Headers, trusted: tuple[Network, ...], client: str) -> None:
    assert client_of(peer, headers, trusted) == client


V4 = bytes([1, 2, 3, 4, 10, 0, 0, 1, 0, 80, 31, 144])
V6 = bytes.fromhex("20010db8" + "00" * 11 + "01") + bytes(20)
MAPPED = bytes(10) + b"\xff\xff" + bytes([1, 2, 3, 4]) + bytes(20)


def header(command: int, kind: int, body: bytes) -> bytes:
    return SIGNATURE + bytes([command, kind]) + len(body).to_bytes(2, "big") + body


@pytest.mark.parametrize("cut", [1, 12, 13, 16, 20, None])
@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (header(0x21, 0x11, V4) + b"GET /", ("1.2.3.4", b"GET /")),
        (header(0x21, 0x11, V4 + b"\x04\x00\x01-") + b"GET /", ("1.2.3.4", b"GET /")),
        (header(0x21, 0x21, V6) + b"GET /", ("2001:db8::1", b"GET /")),
        (header(0x21, 0x21, MAPPED) + b"GET /", ("1.2.3.4", b"GET /")),
        (header(0x20, 0x00, b"") + b"GET /health HTTP/1.0", ("10.0.0.1", b"GET /health HTTP/1.0")),
        (header(0x21, 0x31, bytes(216)) + b"GET /", ("10.0.0.1", b"GET /")),
        (b"\r\nPOST /v1/chat/completions", None),
        (b"\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n", None),
        (header(0x11, 0x11, V4), NotAnnounced),
        (header(0x22, 0x11, V4), NotAnnounced),
        (header(0x21, 0x11, V4[:3]), NotAnnounced),
        (header(0x21, 0x11, bytes(60000)), NotAnnounced),
        (header(0x21, 0x11, V4)[:-1], NotAnnounced),
        (header(0x21, 0x11, V4)[:14], NotAnnounced),
        (SIGNATURE[:6], NotAnnounced),
    ],
)
async def test_announced(sent: bytes, told: tuple[str, bytes] | type[Exception] | None, cut: int | None) -> None:
    """Whole or in pieces; the end of the connection comes behind it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(sent[cut or len(sent) :])
        theirs.shutdown(socket.SHUT_WR)
        if isinstance(told, type):
            with pytest.raises(told):
                await announced(ours, sent[: cut or len(sent)], "10.0.0.1", 60.0)
            return
        found = await announced(ours, sent[: cut or len(sent)], "10.0.0.1", 60.0)
        if found is None or told is None:
            assert found == told
        else:
            assert (found[0], found[1] + ours.recv(4096)) == told


async def test_announced_too_late(autojump_clock: MockClock) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        with pytest.raises(NotAnnounced):
            await announced(ours, SIGNATURE, "10.0.0.1", 5.0)


def test_peer_address() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        for host, seen in (("127.0.0.1", "127.0.0.1"), ("::1", "::1")):
            with socket.create_connection((host, server.getsockname()[1])), server.accept()[0] as sock:
                assert peer_address(sock) == seen
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_address(ours) == ""


@pytest.mark.parametrize("text", ["10.0.0.0/8", "fd00::/8", "unix"])
def test_networks(text: str) -> None:
    assert NETWORKS.write(NETWORKS.parse(text)) == text


@pytest.mark.parametrize("text", ["", "10.0.0.1/8", "localhost", "10.0.0.0/33", "UNIX", "*"])
def test_no_networks(text: str) -> None:
    with pytest.raises(SettingError, match=r"must be an IP address"):
        NETWORKS.parse(text)
