"""Who a request is from, where it came through proxies: what trusted peers say of their own peers, and nobody else.

X-Forwarded-For, Forwarded (RFC 7239), and version 2 of the PROXY protocol, which HAProxy's documentation defines.
"""

import ipaddress
import re
import socket
from collections.abc import Sequence

import trio

from ..config.networks import UNIX, Network
from ..exchange import Headers

#: Proxies in a row that are looked at.
HOPS_MAX = 32

#: Bytes of a PROXY header behind its first 16: the addresses, and what else a proxy tells, which is not read.
ANNOUNCEMENT_MAX = 4096

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"

#: What each kind of connection has for its source: the length of the address (PROXY protocol, 2.2).
_SOURCES = {0x11: 4, 0x12: 4, 0x21: 16, 0x22: 16}

_ADDRESS = re.compile(
    r"\[(?P<bracketed>[0-9A-Fa-f:.]{2,45})\](?::[0-9]{1,5})?"
    r"|(?P<v4>[0-9.]{7,15})(?::[0-9]{1,5})?"
    r"|(?P<v6>[0-9A-Fa-f:.]{2,45})"
)

_IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class NotAnnounced(Exception):
    """What began as a PROXY header is none, or did not arrive in time."""


def peer_address(sock: socket.socket) -> str:
    """The other end's IP address; "" if it has none, as on a Unix socket, or is gone already."""
    try:
        name = sock.getpeername()
    except OSError:
        return ""
    return name[0].partition("%")[0].removeprefix("::ffff:") if isinstance(name, tuple) else ""


def is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    """Whether the peer at `address` ("": on a Unix socket) is among `trusted`."""
    if not address:
        return UNIX in trusted
    ip = ipaddress.ip_address(address)
    return any(ip in network for network in trusted if not isinstance(network, str))


def client_of(peer: str, headers: Headers, trusted: Sequence[Network]) -> str:
    """The address of the client whose request came from `peer`; "" if none is known.

    Each proxy appends who it got the request from. So the list is read from its end, as long as the proxy that is
    known so far is trusted and what it says is an address. What stands before that, anybody may have written.
    """
    client = peer
    if not trusted or not is_trusted(peer, trusted):
        return client
    for hop in reversed(_hops(headers)[-HOPS_MAX:]):
        found = _address(hop)
        if found is None:
            break
        client = found
        if not is_trusted(client, trusted):
            break
    return client


async def announced(sock: socket.socket, data: bytes, address: str, seconds: float) -> tuple[str, bytes] | None:
    """The client's address by the PROXY header that `data`, the first bytes of a connection, begins with, and the rest.

    None if it begins with something else. `address` stays if the proxy speaks for itself, as in its health checks, or
    the client has no IP address. NotAnnounced if the header is not valid or is not there within `seconds`.
    """
    with trio.move_on_after(seconds):
        while SIGNATURE.startswith(data[:12]) and len(data) < 16:
            data += await _more(sock, 16 - len(data))
        if not data.startswith(SIGNATURE):
            return None
        command, kind, length = data[12], data[13], int.from_bytes(data[14:16], "big")
        if command not in (0x20, 0x21) or length > ANNOUNCEMENT_MAX:
            raise NotAnnounced
        while len(data) < 16 + length:
            data += await _more(sock, 16 + length - len(data))
        source = data[16 : 16 + min(length, _SOURCES.get(kind, 0))]
        if command == 0x21 and kind in _SOURCES:
            if len(source) < _SOURCES[kind]:
                raise NotAnnounced
            address = _plain(ipaddress.ip_address(source))
        return address, data[16 + length :]
    raise NotAnnounced


async def announced_before_tls(sock: socket.socket, address: str, seconds: float) -> str:
    """The client's address by the PROXY header in front of a TLS handshake, if there is one; else `address`.

    What follows the header is still unread. NotAnnounced as above.
    """
    with trio.move_on_after(seconds):
        if await _more(sock, 1, socket.MSG_PEEK) != SIGNATURE[:1]:  # a handshake begins with another byte
            return address
        told = await announced(sock, b"", address, seconds)
        if told is not None:
            return told[0]
    raise NotAnnounced


async def _more(sock: socket.socket, length: int, flags: int = 0) -> bytes:
    """Up to `length` bytes: not one that follows the header."""
    while True:
        try:
            data = sock.recv(length, flags)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
        except OSError:
            raise NotAnnounced from None
        else:
            if not data:
                raise NotAnnounced
            return data


def _hops(headers: Headers) -> list[str]:
    """Who the proxies got it from, the nearest last. Forwarded only where there is no X-Forwarded-For."""
    for name in (b"x-forwarded-for", b"forwarded"):
        values = [value for key, value in headers if key == name]
        if values:
            hops = b",".join(values).decode("latin-1").split(",")
            return hops if name == b"x-forwarded-for" else [_for(hop) for hop in hops]
    return []


def _for(element: str) -> str:
    """The parameter `for` of one element of Forwarded."""
    for pair in element.split(";"):
        name, _, value = pair.partition("=")
        if name.strip().lower() == "for":
            return value.strip().strip('"')
    return ""


def _address(text: str) -> str | None:
    """The IP address in `text`, which may have a port; None if there is none."""
    if not (match := _ADDRESS.fullmatch(text.strip())):
        return None
    try:
        return _plain(ipaddress.ip_address(match["bracketed"] or match["v4"] or match["v6"]))
    except ValueError:
        return None


def _plain(ip: _IpAddress) -> str:
    """As text; an IPv4 address in IPv6's clothes as what it is."""
    return str(getattr(ip, "ipv4_mapped", None) or ip)
