"""The check of heads: the message for each fault, which never quotes the client. Status by status: tests/wire."""

import pytest

from sluicegate.accept.http1.grammar import (
    HTTP2_PREFACE,
    Malformed,
    check_chunk_line,
    check_head,
    check_section,
    origin_form,
    target_of,
    valid_host,
)

GET = b"GET / HTTP/1.1\r\nhost: a\r\n"


@pytest.mark.parametrize(
    "head",
    [
        GET + b"\r\n",
        GET + b"x:\r\n\r\n",
        GET + b"transfer-encoding: chunked\r\n\r\n",
        GET + b"content-length:  7 \r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost:\r\n\r\n",
        b"GET https://a:1/b HTTP/1.1\r\nHOST: [::1]\r\n\r\n",
        HTTP2_PREFACE,
    ],
)
def test_valid_heads_pass(head: bytes) -> None:
    check_head(head)


@pytest.mark.parametrize(
    ("head", "status", "message"),
    [
        (GET + b"x: secret\n\r\n", 400, "a line is folded, does not end with CRLF, or holds a control character"),
        (b"\r\n", 400, "its request line is malformed"),
        (b"GET secret\r\n\r\n", 400, "its request line is malformed"),
        (b"SECRET / HTTP/1.1\r\n\r\n", 400, "its method is unknown"),
        (b"GET / HTTP/2.0\r\n\r\n", 400, "its version is neither 1.0 nor 1.1"),
        (b"GET secret HTTP/1.1\r\n\r\n", 400, "its target is neither a path nor the URL of one"),
        (b"GET * HTTP/1.1\r\n\r\n", 400, "its target is neither a path nor the URL of one"),
        (GET + b"secret\r\n\r\n", 400, "the name of a header field is malformed"),
        (GET + b"host: b\r\n\r\n", 400, "it has more than one Host field"),
        (b"GET / HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n", 400, "it has more than one Host field"),
        (b"GET / HTTP/1.1\r\nx: y\r\n\r\n", 400, "it has no Host field"),
        (b"GET / HTTP/1.1\r\nhost: secret/\r\n\r\n", 400, "its Host field is malformed"),
        (GET + b"content-length: secret\r\n\r\n", 400, "its Content-Length is not one number"),
        (GET + b"content-length: 7\r\nContent-Length: 7\r\n\r\n", 400, "its Content-Length is not one number"),
        (
            GET + b"content-length: 7\r\ntransfer-encoding: chunked\r\n\r\n",
            400,
            "it has both Content-Length and Transfer-Encoding",
        ),
        (b"GET / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n", 400, "HTTP/1.0 has no Transfer-Encoding"),
        (GET + b"transfer-encoding: secret\r\n\r\n", 400, "its last Transfer-Encoding is not 'chunked'"),
        (
            GET + b"transfer-encoding: secret, chunked\r\n\r\n",
            501,
            "the only Transfer-Encoding that is implemented is 'chunked'",
        ),
    ],
)
def test_each_fault_is_named_and_nothing_is_quoted(head: bytes, status: int, message: str) -> None:
    with pytest.raises(Malformed) as caught:
        check_head(head)
    assert (caught.value.status, str(caught.value)) == (status, message)


@pytest.mark.parametrize("section", [b"\r\n", b"x: y\r\n\r\n", b"x: \t\xff\r\ny:\r\n\r\n"])
def test_sections_of_proper_lines_pass(section: bytes) -> None:
    check_section(section)


@pytest.mark.parametrize(
    "section",
    [
        b"",
        b"\n",
        b"x: y\r\n",
        b"x: y\n\r\n",
        b"x: y\r\r\n\r\n",
        b" x: y\r\n\r\n",
        b"x: y\r\n\tz\r\n\r\n",
        b"x: \0\r\n\r\n",
    ],
)
def test_sections_with_any_other_line_do_not(section: bytes) -> None:
    with pytest.raises(Malformed):
        check_section(section)


@pytest.mark.parametrize("line", [b"0\r\n", b"00fF\r\n", b'a;b="c";d\r\n', b"a; b\t\xff\r\n"])
def test_chunk_lines_pass(line: bytes) -> None:
    check_chunk_line(line)


@pytest.mark.parametrize(
    "line", [b"\r\n", b"g\r\n", b"0x1\r\n", b"-1\r\n", b"1 \r\n", b"1;\r\r\n", b"1;\0\r\n", b"1\n"]
)
def test_other_chunk_lines_do_not(line: bytes) -> None:
    with pytest.raises(Malformed):
        check_chunk_line(line)


@pytest.mark.parametrize(
    ("host", "valid"),
    [
        (b"", True),
        (b"a", True),
        (b"a:", True),
        (b"a_b.c-d:80", True),
        (b"%c3%a4", True),
        (b"10.0.0.1:8080", True),
        (b"[fe80::1%25eth0]:80", True),
        (b"a:b", False),
        (b"a:80:80", False),
        (b"%c", False),
        (b"%zz", False),
        (b"[::1", False),
        (b"::1", False),
        (b"[::1]a", False),
        (b"a b", False),
        (b"a/b", False),
        (b"a@b", False),
        (b"a?b", False),
        (b"a#b", False),
        (b"\xe4", False),
        (b"a\n", False),
    ],
)
def test_host(host: bytes, valid: bool) -> None:
    assert (valid_host(host) is not None) is valid


def test_a_long_host_is_judged_at_once() -> None:
    assert valid_host(b"a" * 100_000 + b"/") is None
    assert valid_host(b"%61" * 100_000 + b"%") is None


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/a?b", b"/a?b"),
        (b"*", b"*"),
        (b"http://a/b?c", b"/b?c"),
        (b"HTTPS://a:1", b"/"),
        (b"http://a?b", b"/?b"),
        (b"ftp://a/b", b"ftp://a/b"),
    ],
)
def test_origin_form(target: bytes, path: bytes) -> None:
    assert origin_form(target) == path


@pytest.mark.parametrize(
    ("head", "target"),
    [
        (b"POST /v1/messages HTTP/1.1\r\n", "/v1/messages"),
        (b"POST http://a/v1/messages HTTP/1.1\r\n", "/v1/messages"),
        (b"POST /v1", "/v1"),
        (b"POST ", ""),
        (b"POST", ""),
        (b"", ""),
        (b"POST /\xff\x00 HTTP/1.1\r\n", "/\\xff\x00"),
    ],
)
def test_target_of_a_head_that_need_not_be_valid(head: bytes, target: str) -> None:
    assert target_of(head) == target
