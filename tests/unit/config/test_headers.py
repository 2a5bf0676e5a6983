"""Names of headers in a configuration."""

import pytest

from sluicegate.config.faults import SettingError
from sluicegate.config.headers import HEADERS, parse_header


@pytest.mark.parametrize(("text", "name"), [("X-Session-ID", "x-session-id"), ("a", "a"), ("x_1.b~|", "x_1.b~|")])
def test_a_name_is_kept_in_lower_case(text: str, name: str) -> None:
    assert parse_header(text) == name
    assert HEADERS.parse(HEADERS.write(name)) == name


@pytest.mark.parametrize("text", ["", " ", "a b", "a:", "x\r\ny: z", "ü", "x" * 65])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(SettingError, match="a name consists of"):
        parse_header(text)


@pytest.mark.parametrize("text", ["Host", "content-length", "Transfer-Encoding", "x-request-id", "accept-encoding"])
def test_what_the_gateway_sets_itself(text: str) -> None:
    """One more of them would change where a request ends, or in which form an answer comes."""
    with pytest.raises(SettingError, match=r"not those that the gateway sets itself: .*host"):
        parse_header(text)
