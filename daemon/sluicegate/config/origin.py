"""Origins of web pages (RFC 6454), as browsers write them in the field Origin. Pure."""

import re

from .address import Notation
from .faults import SettingError

#: Desktop programs have schemes of their own (tauri://localhost, app://obsidian.md).
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]{0,30})://(?:\[[0-9a-f:.]{2,45}\]|[a-z0-9_.-]{1,253})(:[0-9]{1,5})?")

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def parse_origin(text: str) -> str:
    """`*`, or scheme://host with a port unless it is the scheme's own. Raises SettingError."""
    if text == "*":
        return text
    text = text.lower()
    match = _ORIGIN.fullmatch(text)
    if match is None:
        raise SettingError(f"must be {ORIGINS.allowed}; an origin has no path and no slash at its end")
    port = match[2]
    return text.removesuffix(port) if port and port == _DEFAULT_PORTS.get(match[1]) else text


ORIGINS = Notation('scheme://host, scheme://host:port or "*"', parse_origin, str)
