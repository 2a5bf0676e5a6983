"""Names of header fields, as a configuration writes them."""

import re

from .address import Notation
from .faults import SettingError

#: RFC 9110, 5.6.2.
_NAME = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]{1,64}")

#: Fields of the connection and of the message's form, which the gateway makes anew, and those that change an answer's
#: form, which it must be able to read.
_OWN = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
    }
)


def parse_header(text: str) -> str:
    """The name in lower case. Raises SettingError."""
    name = text.lower()
    if not _NAME.fullmatch(name):
        raise SettingError(f"must be {HEADERS.allowed}; a name consists of at most 64 letters, digits and hyphens")
    if name in _OWN:
        raise SettingError(
            f"must be {HEADERS.allowed}; not those that the gateway sets itself: {', '.join(sorted(_OWN))}"
        )
    return name


HEADERS = Notation("the name of a header", parse_header, str)
