"""What engines say of their failures, and what of it a client and the log get."""

import json

import pytest

from sluicegate.dialects.failure import REASON_MAX, blames_the_request, reason_in, without_addresses


def error(**members: object) -> bytes:
    return json.dumps({"error": members}).encode()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (error(message="No chat template.", type="NotImplementedError", code=501), "No chat template."),
        (b'{"type":"error","error":{"type":"api_error","message":"boom"}}', "boom"),
        (b'{"error":"boom"}', "boom"),
        (b'{"object":"error","message":"boom","code":500}', "boom"),
        (b'{"detail":"Not supported"}', "Not supported"),
        (b'{"detail":[{"loc":["body"],"msg":"a"},{"msg":"b"}]}', "a; b"),
        (b'{"type":"response.failed","response":{"error":{"code":"server_error","message":"boom"}}}', "boom"),
        (b"Internal Server Error", "Internal Server Error"),
        (b'"boom"', "boom"),
        (b"", ""),
        (b"{}", ""),
        (b"[1, null]", ""),
        (b'{"error":{"message":null}}', ""),
        (b'{"error":{"message":"half', ""),
        (b"<html><body>502</body></html>", ""),
        (b'{"error":' + b"[" * 100_000, ""),
        (error(message="two\nlines\tand \x1b[31mred\x00"), "two lines and [31mred"),
        (error(message="Wrong key: sk-abc123, Bearer xyz"), "Wrong key: sk-…, Bearer …"),
        (b"\xff\xfe", "\ufffd\ufffd"),
    ],
)
def test_the_reason_in_an_errors_body(body: bytes, reason: str) -> None:
    assert reason_in(body) == reason


@pytest.mark.parametrize("body", [error(message="x" * 100_000), b"x" * 100_000])
def test_a_reason_is_bounded(body: bytes) -> None:
    assert reason_in(body) == "x" * (REASON_MAX - 1) + "…"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3:8000",
        "localhost:8000",
        "[::1]:8000",
        "fe80::1%eth0",
        "2001:db8:0:0:0:0:0:1",
        "gpu-7:8000",
        "gpu-7.internal",
        "gpu.example.com:8000",
        "host='gpu7'",
        "http://gpu7/v1",
        "http://10.1.2.3:8000/v1",
        "tcp://10.1.2.3:5555",
        "ipc:///tmp/0a1b",
        "unix:/run/vllm/engine.sock",
        "/run/vllm/engine.sock",
        "/srv2/engine.sock",
        "/root/.cache/huggingface/hub",
        "~/models/x",
        "[/run/vllm/engine.sock]",
        "10.1.2.3:8000/v1",
        "gpu-7:8000/v1",
        "localhost",
        "https://gpu-7.internal/v1",
        "http://example.com:8000/v1",
        "https://me:secret@example.com/",
        "unix:@vllm",
    ],
)
def test_a_client_gets_no_address_of_the_host(address: str) -> None:
    assert (
        without_addresses(f"Cannot reach {address}, gave up ({address})") == "Cannot reach (hidden), gave up ((hidden))"
    )


@pytest.mark.parametrize(
    "text",
    [
        "POST /v1/chat/completions needs std::vector at 10:20:30, 1:2 and 0.32.0",
        "See https://docs.vllm.ai/en/stable/ and https://example.com.",
        "Cannot fetch http://example.com/cat.png?size=1, https://local.example.com: 404!",
        "'Qwen/Qwen3-8B:Q4' lacks [Errno 5] a/b/c, /tokenize, /v2/rerank and max_tokens=4096 (max_tokens:4096).",
        "This model's maximum context length is 2048 tokens.",
    ],
)
def test_what_is_no_address_stays(text: str) -> None:
    assert without_addresses(text) == text


def test_an_address_ends_before_the_sentence_does() -> None:
    assert without_addresses("At 10.1.2.3:80: no /run/x.sock.") == "At (hidden): no (hidden)."


@pytest.mark.parametrize(
    ("body", "blamed"),
    [
        (error(type="BadRequestError", code=400), True),
        (error(type="NotImplementedError"), True),
        (error(type="server_error", code=422), True),
        (b'{"object":"error","type":"invalid_request_error"}', True),
        (error(type="InternalServerError", code=500), False),
        (error(type="ServiceUnavailableError", code=503), False),
        (error(code=429), False),
        (error(code="400"), False),
        (b'{"error":"BadRequestError"}', False),
        (b"BadRequestError", False),
        (b"[]", False),
    ],
)
def test_whose_fault_an_error_is(body: bytes, blamed: bool) -> None:
    assert blames_the_request(body) is blamed
