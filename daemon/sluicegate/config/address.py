"""Addresses of sockets, and the two ways in which a configuration writes them. Pure: no name is resolved here."""

import ipaddress
import os.path
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from .faults import SettingError

#: sizeof(sockaddr_un.sun_path) is 108 on Linux, with room for a final NUL (unix(7)).
UNIX_PATH_MAX_BYTES = 107

#: RFC 1035, section 2.3.4.
HOST_MAX_CHARS = 253

# Of each family, the wildcard address and the loopback address that it includes.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 -- compared with, never bound

_TCP = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<host>[^:\[\]]*)):(?P<port>[0-9]{1,5})")
_V6 = re.compile(r"[0-9A-Fa-f:.]+(?:%[0-9A-Za-z._-]+)?")
# The underscore is not a host name's by the letter, but compose files and internal zones use it.
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """`host` is a name or an IP address without brackets; `port` 0 (listening only) lets the kernel choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """`path` is absolute and at most 107 bytes long."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Notation(Generic[T]):
    """How one kind of value is written: `parse` raises SettingError, and `parse(write(a)) == a`."""

    allowed: str
    parse: Callable[[str], T]
    write: Callable[[T], str]


def parse_listen(text: str) -> Address:
    """`host:port`, `[::1]:8080` or `unix:/path`. Raises SettingError."""
    if text.startswith("unix:"):
        return _unix(text, LISTEN)
    if "://" in text:
        raise _refusal(LISTEN, "a listening address has no scheme")
    if text.startswith(":") and text.count(":") == 1:
        # The empty host means every interface elsewhere; nobody should open a GPU to the world by leaving out a word.
        raise _refusal(LISTEN, "the host is missing; 127.0.0.1 serves this host alone, 0.0.0.0 every interface")
    return _tcp(text, LISTEN, lowest_port=0)


def parse_engine(text: str) -> Address:
    """`http://host:port` or `unix:/path`; one `/` or `/v1` behind it is dropped. Raises SettingError.

    Requests keep the path that the client sent, which begins with `/v1`; what OpenAI's SDKs call a base URL therefore
    means the same engine with and without it. Any other path is refused, since it would be ignored.
    """
    if text.startswith("unix:"):
        return _unix(text, ENGINE)
    scheme, separator, rest = text.partition("://")
    if separator and scheme.lower() == "https":
        raise _refusal(
            ENGINE, "TLS to the engine is not supported, for the engine is on this host or in a private network"
        )
    if not separator or scheme.lower() != "http":
        raise _refusal(ENGINE, "it begins with http:// or unix:/")
    if "@" in rest:
        raise _refusal(ENGINE, "a user name or password is not supported")
    authority, *path = re.split(r"(?=[/?#])", rest, maxsplit=1)
    if path and path[0] not in ("/", "/v1", "/v1/"):
        raise _refusal(ENGINE, "nothing may follow the port but / or /v1, for requests keep the path they came with")
    return _tcp(authority, ENGINE, lowest_port=1)


def write_engine(address: Address) -> str:
    return f"http://{address}" if isinstance(address, TcpAddress) else str(address)


LISTEN = Notation("host:port, [ipv6]:port or unix:/path", parse_listen, str)
ENGINE = Notation("http://host:port or unix:/path", parse_engine, write_engine)


def reaches(target: Address, listen: Address) -> bool:
    """Whether a connection to `target` would certainly arrive at the listener on `listen`. Names are not resolved."""
    if isinstance(target, UnixAddress) or isinstance(listen, UnixAddress):
        return (
            isinstance(target, UnixAddress)
            and isinstance(listen, UnixAddress)
            and os.path.normpath(target.path) == os.path.normpath(listen.path)
        )
    if target.port != listen.port:
        return False
    # Linux takes a connection to the wildcard address for one to the loopback address.
    targets = {_LOOPBACK.get(host, host) for host in _hosts(target.host)}
    listening = _hosts(listen.host)
    covered = listening | {_LOOPBACK[host] for host in listening if host in _LOOPBACK}
    return not targets.isdisjoint(covered)


def describes(listen: Address, bound: Address) -> bool:
    """Whether a listener on `listen` could be the socket that is bound to `bound`. Names are not resolved."""
    if isinstance(listen, UnixAddress) or isinstance(bound, UnixAddress):
        return reaches(listen, bound)
    if listen.port not in (0, bound.port):
        return False
    return _is_name(listen.host) or not _hosts(listen.host).isdisjoint(_hosts(bound.host))


def _is_name(host: str) -> bool:
    return not _is_v6(host) and not host.rpartition(".")[2].isdecimal() and host.lower() != "localhost"


def _hosts(host: str) -> set[str]:
    """The hosts that `host` means, each in one spelling."""
    if host.lower() == "localhost":
        return set(_LOOPBACK.values())
    try:
        return {str(ipaddress.ip_address(host))}
    except ValueError:
        return {host.lower()}


def _unix(text: str, notation: Notation[Address]) -> UnixAddress:
    path = text.removeprefix("unix:")
    if path.startswith("///"):
        # The long form of the same URL: an empty authority, then the path.
        path = path[2:]
    if not path.startswith("/") or path.startswith("//"):
        raise _refusal(notation, "the path of a Unix socket is absolute, as in unix:/run/sluicegate/http.sock")
    if path.endswith("/"):
        raise _refusal(notation, "the path of a Unix socket names a file, not a directory")
    if not path.isprintable():
        raise _refusal(notation, "the path holds a control character")
    size = len(path.encode())
    if size > UNIX_PATH_MAX_BYTES:
        raise _refusal(notation, f"the path is {size} bytes long, and the system takes {UNIX_PATH_MAX_BYTES}")
    return UnixAddress(path)


def _tcp(text: str, notation: Notation[Address], *, lowest_port: int) -> TcpAddress:
    match = _TCP.fullmatch(text)
    if match is None:
        raise _refusal(notation, _why_not_tcp(text))
    host, port = match["v6"] if match["v6"] is not None else match["host"], int(match["port"])
    if not (_is_v6(host) if match["v6"] is not None else _is_host(host)):
        raise _refusal(notation, "the host is neither a name nor an IP address")
    if not lowest_port <= port <= 65535:
        raise _refusal(notation, f"the port is from {lowest_port} to 65535")
    return TcpAddress(host, port)


def _why_not_tcp(text: str) -> str:
    if "[" not in text and text.count(":") > 1:
        return "an IPv6 address stands in brackets, as in [::1]:8080"
    if ":" not in text.rpartition("]")[2]:
        return "the port is missing"
    return "the port is a number"


def _is_v6(host: str) -> bool:
    if not _V6.fullmatch(host):
        return False
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _is_host(host: str) -> bool:
    labels = host.split(".")
    if labels[-1].isdecimal():
        # Resolvers read "127.1" and "1" as addresses that nobody meant.
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            return False
        return True
    return len(host) <= HOST_MAX_CHARS and all(map(_LABEL.fullmatch, labels))


def _refusal(notation: Notation[Address], why: str) -> SettingError:
    return SettingError(f"must be {notation.allowed}; {why}")
