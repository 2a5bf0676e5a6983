"""Addresses: what is understood, what is refused and why, and which two are the same place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluicegate.config.address import (
    ENGINE,
    LISTEN,
    Address,
    Notation,
    TcpAddress,
    UnixAddress,
    describes,
    parse_engine,
    parse_listen,
    reaches,
    write_engine,
)
from sluicegate.config.faults import SettingError

LONGEST_PATH = "/" + "p" * 106
LONGEST_HOST = "a." * 126 + "a"

NO_HOST = "the host is neither a name nor an IP address"
V6_STANDS_IN_BRACKETS = "an IPv6 address stands in brackets, as in [::1]:8080"
NO_ABSOLUTE_PATH = "the path of a Unix socket is absolute, as in unix:/run/sluicegate/http.sock"
A_DIRECTORY = "the path of a Unix socket names a file, not a directory"
NO_TLS = "TLS to the engine is not supported, for the engine is on this host or in a private network"
NOTHING_MAY_FOLLOW = "nothing may follow the port but / or /v1, for requests keep the path they came with"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", TcpAddress("127.0.0.1", 8080)),
        ("localhost:65535", TcpAddress("localhost", 65535)),
        ("gpu_1.rack-2.internal:1", TcpAddress("gpu_1.rack-2.internal", 1)),
        (f"{LONGEST_HOST}:80", TcpAddress(LONGEST_HOST, 80)),
        ("[::1]:8080", TcpAddress("::1", 8080)),
        ("[fe80::1%eth0]:8080", TcpAddress("fe80::1%eth0", 8080)),
        ("0.0.0.0:0", TcpAddress("0.0.0.0", 0)),
        ("unix:/run/sluicegate/http.sock", UnixAddress("/run/sluicegate/http.sock")),
        ("unix:///run/http.sock", UnixAddress("/run/http.sock")),
        (f"unix:{LONGEST_PATH}", UnixAddress(LONGEST_PATH)),
    ],
)
def test_listen_is_understood(text: str, address: TcpAddress | UnixAddress) -> None:
    assert parse_listen(text) == address


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the port is missing"),
        ("8080", "the port is missing"),
        ("127.0.0.1", "the port is missing"),
        ("[::1]", "the port is missing"),
        (":8080", "the host is missing; 127.0.0.1 serves this host alone, 0.0.0.0 every interface"),
        ("::1:8080", V6_STANDS_IN_BRACKETS),
        ("127.0.0.1:http", "the port is a number"),
        ("127.0.0.1:", "the port is a number"),
        ("127.0.0.1:٣", "the port is a number"),
        ("127.0.0.1:65536", "the port is from 0 to 65535"),
        ("127.0.0.300:80", NO_HOST),
        ("127.1:80", NO_HOST),
        ("[127.0.0.1]:80", NO_HOST),
        ("[]:80", NO_HOST),
        ("[::g]:80", NO_HOST),
        ("[1:2]:80", NO_HOST),
        ("gpu 1:80", NO_HOST),
        ("-gpu:80", NO_HOST),
        ("gpu..internal:80", NO_HOST),
        ("user:password@gpu:80", V6_STANDS_IN_BRACKETS),
        (f"{'a.' * 127}a:80", NO_HOST),
        ("http://127.0.0.1:8080", "a listening address has no scheme"),
        ("unix:http.sock", NO_ABSOLUTE_PATH),
        ("unix://run/http.sock", NO_ABSOLUTE_PATH),
        ("unix:", NO_ABSOLUTE_PATH),
        ("unix:@abstract", NO_ABSOLUTE_PATH),
        ("unix:/run/", A_DIRECTORY),
        ("unix:/", A_DIRECTORY),
        ("unix:/run/a\x00b", "the path holds a control character"),
        (f"unix:{LONGEST_PATH}p", "the path is 108 bytes long, and the system takes 107"),
        ("unix:/" + "ü" * 54, "the path is 109 bytes long, and the system takes 107"),
    ],
)
def test_listen_is_refused(text: str, why: str) -> None:
    with pytest.raises(SettingError) as caught:
        parse_listen(text)
    assert str(caught.value) == f"must be host:port, [ipv6]:port or unix:/path; {why}"


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
@pytest.mark.parametrize("scheme", ["http", "HTTP"])
def test_engine_is_understood_as_sdks_write_it(scheme: str, ending: str) -> None:
    assert parse_engine(f"{scheme}://gpu1:8000{ending}") == TcpAddress("gpu1", 8000)


def test_engine_on_a_unix_socket_and_on_ipv6() -> None:
    assert parse_engine("unix:/run/vllm/v1") == UnixAddress("/run/vllm/v1")
    assert parse_engine("http://[::1]:8000/v1") == TcpAddress("::1", 8000)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("https://gpu1:8000", NO_TLS),
        ("HTTPS://gpu1:8000", NO_TLS),
        ("gpu1:8000", "it begins with http:// or unix:/"),
        ("https:gpu1", "it begins with http:// or unix:/"),
        ("ftp://gpu1:8000", "it begins with http:// or unix:/"),
        ("http://bob:secret@gpu1:8000", "a user name or password is not supported"),
        ("http://gpu1:8000/v2", NOTHING_MAY_FOLLOW),
        ("http://gpu1:8000/v1/chat", NOTHING_MAY_FOLLOW),
        ("http://gpu1:8000?key=1", NOTHING_MAY_FOLLOW),
        ("http://gpu1:8000/?from=http://gpu2", NOTHING_MAY_FOLLOW),
        ("http://gpu1:8000#top", NOTHING_MAY_FOLLOW),
        ("http://gpu1", "the port is missing"),
        ("http://gpu1/v1", "the port is missing"),
        ("http://:8000", NO_HOST),
        ("http://gpu1:0", "the port is from 1 to 65535"),
        ("unix:vllm.sock", NO_ABSOLUTE_PATH),
    ],
)
def test_engine_is_refused(text: str, why: str) -> None:
    with pytest.raises(SettingError) as caught:
        parse_engine(text)
    assert str(caught.value) == f"must be http://host:port or unix:/path; {why}"


@pytest.mark.parametrize(
    ("target", "listen", "same"),
    [
        ("http://127.0.0.1:80", "127.0.0.1:80", True),
        ("http://127.0.0.1:80", "127.0.0.1:81", False),
        ("http://127.0.0.2:80", "127.0.0.1:80", False),
        ("http://localhost:80", "127.0.0.1:80", True),
        ("http://LOCALHOST:80", "[::1]:80", True),
        ("http://127.0.0.1:80", "0.0.0.0:80", True),
        ("http://localhost:80", "0.0.0.0:80", True),
        ("http://0.0.0.0:80", "127.0.0.1:80", True),
        ("http://0.0.0.0:80", "0.0.0.0:80", True),
        ("http://[::1]:80", "[::]:80", True),
        ("http://[0:0:0:0:0:0:0:1]:80", "[::1]:80", True),
        ("http://[::1]:80", "0.0.0.0:80", False),
        ("http://GPU1:80", "gpu1:80", True),
        ("http://gpu1:80", "0.0.0.0:80", False),
        ("unix:/run/a", "unix:/run/./a", True),
        ("unix:/run/a", "unix:/run/b", False),
        ("unix:/run/a", "127.0.0.1:80", False),
        ("http://127.0.0.1:80", "unix:/run/a", False),
    ],
)
def test_which_engine_is_the_gateway_itself(target: str, listen: str, same: bool) -> None:
    assert reaches(parse_engine(target), parse_listen(listen)) is same


@pytest.mark.parametrize("address", [TcpAddress("::1", 80), TcpAddress("gpu", 80), UnixAddress("/run/a b")])
@pytest.mark.parametrize("notation", [LISTEN, ENGINE])
def test_what_is_written_is_understood(notation: Notation[Address], address: TcpAddress | UnixAddress) -> None:
    assert notation.parse(notation.write(address)) == address


def test_how_the_engine_is_written() -> None:
    assert write_engine(TcpAddress("::1", 80)) == "http://[::1]:80"


@pytest.mark.parametrize("parse", [parse_listen, parse_engine])
@given(text=st.one_of(st.text(), st.text("[]:/@.%1fx").map("http://{}".format), st.text("[]:.%1fx-")))
def test_no_text_raises_anything_else(parse: type, text: str) -> None:
    try:
        address = parse(text)
    except SettingError:
        return
    assert isinstance(address, TcpAddress | UnixAddress)


@pytest.mark.parametrize(
    ("listen", "bound", "same"),
    [
        ("127.0.0.1:8080", "127.0.0.1:8080", True),
        ("127.0.0.1:0", "127.0.0.1:8080", True),
        ("localhost:8080", "127.0.0.1:8080", True),
        ("localhost:8080", "[::1]:8080", True),
        ("[0::1]:8080", "[::1]:8080", True),
        ("gpu1.example:8080", "192.0.2.7:8080", True),  # names are not resolved
        ("gpu1.example:80", "192.0.2.7:8080", False),
        ("127.0.0.1:8080", "0.0.0.0:8080", False),
        ("0.0.0.0:8080", "127.0.0.1:8080", False),
        ("127.0.0.1:8080", "127.0.0.1:8081", False),
        ("localhost:8080", "192.0.2.7:8080", False),
        ("unix:/run/a.sock", "unix:/run/./a.sock", True),
        ("unix:/run/a.sock", "unix:/run/b.sock", False),
        ("unix:/run/a.sock", "127.0.0.1:8080", False),
        ("127.0.0.1:8080", "unix:/run/a.sock", False),
    ],
)
def test_whether_a_socket_is_the_one_that_was_configured(listen: str, bound: str, same: bool) -> None:
    assert describes(parse_listen(listen), parse_listen(bound)) is same
