"""Networks of trusted peers, as a configuration writes them."""

import ipaddress

from .address import Notation
from .faults import SettingError

#: `unix`: whoever connects through a Unix socket.
Network = ipaddress.IPv4Network | ipaddress.IPv6Network | str

UNIX = "unix"


def parse_network(text: str) -> Network:
    """An address, a network as 10.0.0.0/8, or `unix`. Raises SettingError."""
    if text == UNIX:
        return text
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise SettingError(f"must be {NETWORKS.allowed}; {error}") from None


NETWORKS: Notation[Network] = Notation("an IP address, a network (10.0.0.0/8) or unix", parse_network, str)
