import json
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from sluicegate_run.ask import Answer, ask, curl
from sluicegate_run.failure import RunError


class Gateway:
    """Answers one POST with these bytes, whatever they are, and closes."""

    def __init__(self) -> None:
        self.answer = b""
        self.request: dict[str, Any] = {}
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                gateway.request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.wfile.write(gateway.answer)
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def streams(self, *events: object, length: int | None = None) -> None:
        lines = (event if isinstance(event, str) else f"data: {json.dumps(event)}\n\n" for event in events)
        body = "".join(lines).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: {length or len(body)}\r\n\r\n"
        self.answer = head.encode() + body

    def refuses(self, status: str, body: str) -> None:
        self.answer = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    # A proxy in the environment must not come between this machine and itself.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    gateway = Gateway()
    thread = threading.Thread(target=gateway.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield gateway
    gateway.server.shutdown()
    thread.join()
    gateway.server.server_close()


def chunk(content: str | None) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": content} if content is not None else {"role": "assistant"}}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 37, "completion_tokens": 8}}
DONE = "data: [DONE]\n\n"


def test_answer_is_written_as_it_comes(gateway: Gateway) -> None:
    """The text is written as it comes, and the tokens are counted as the engine counts them."""
    gateway.streams(chunk(None), chunk("The capital"), ": tokens=8\n\n", chunk(" is Paris."), USAGE, DONE)
    pieces: list[str] = []
    answer = ask(gateway.url, "small", "Where?", pieces.append)
    assert pieces == ["The capital", " is Paris."]
    assert answer.tokens == 8
    assert 0 < answer.first_token_s <= answer.total_s
    assert gateway.request["messages"] == [{"role": "user", "content": "Where?"}]
    assert (gateway.request["stream"], gateway.request["stream_options"]) == (True, {"include_usage": True})


def test_an_empty_answer_is_one_too(gateway: Gateway) -> None:
    gateway.streams(chunk(None) | {"error": ""}, USAGE | {"usage": None}, DONE)
    assert ask(gateway.url, "small", "Where?", print).tokens == 0


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ((chunk("The"),), "ended without .DONE."),
        ((chunk("The"), {"error": {"message": "engine died"}}), "broke off: engine died"),
        ((chunk("The"), "event: error\n", {"error": "odd"}), 'broke off: {"error": "odd"}'),
    ],
)
def test_an_answer_that_is_not_whole_is_none(gateway: Gateway, events: tuple[object, ...], reason: str) -> None:
    gateway.streams(*events)
    with pytest.raises(RunError, match=reason):
        ask(gateway.url, "small", "Where?", lambda _: None)


def test_a_connection_that_breaks_off_is_said(gateway: Gateway) -> None:
    gateway.streams(chunk("The"), length=1000)
    with pytest.raises(RunError, match=r"broke off \(.*\)\.$"):
        ask(gateway.url, "small", "Where?", lambda _: None)


@pytest.mark.parametrize(
    ("body", "reason"),
    [('{"error": {"message": "no slot"}}', "no slot"), ("plain words", "plain words"), ("", "no reason given")],
)
def test_a_refusal_is_said(gateway: Gateway, body: str, reason: str) -> None:
    gateway.refuses("503 Service Unavailable", body)
    with pytest.raises(RunError, match=f"The gateway answered 503 to the first question: {reason}$"):
        ask(gateway.url, "small", "Where?", print)


def test_the_rate_leaves_out_the_first_token() -> None:
    answer = Answer(tokens=11, first_token_s=0.5, total_s=1.0)
    assert str(answer) == "11 tokens, the first after 0.50 s, then 20 tokens/s (1.00 s in all)"
    assert "then 0 tokens/s" in str(Answer(tokens=1, first_token_s=0.5, total_s=0.5))


def test_the_next_question_can_be_pasted_into_a_shell() -> None:
    words = shlex.split(curl("http://127.0.0.1:8080", "small", "What's “new”?"))
    assert words[:2] == ["curl", "http://127.0.0.1:8080/v1/chat/completions"]
    assert json.loads(words[-1]) == {"model": "small", "messages": [{"role": "user", "content": "What's “new”?"}]}
