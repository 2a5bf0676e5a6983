"""One question, asked as any program asks an OpenAI API; the answer is written while it comes."""

import json
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2

from .errors import EmbeddedError

# A short answer shows everything; the model may talk on.
MAX_TOKENS = 200
# A 135M model on 2 cores answers within 1 s; on a GPU the first request may still compile kernels.
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Answer:
    """What came. `tokens` is the engine's own count; times in seconds from the moment the request was sent."""

    text: str
    tokens: int
    first_token_s: float
    total_s: float

    @property
    def tokens_per_s(self) -> float:
        """The decode rate: the tokens after the first, over the time after the first."""
        decode_s = self.total_s - self.first_token_s
        return (self.tokens - 1) / decode_s if decode_s > 0 else 0.0

    def __str__(self) -> str:
        return (
            f"{self.tokens} tokens, the first after {self.first_token_s:.2f} s, "
            f"then {self.tokens_per_s:.0f} tokens/s ({self.total_s:.2f} s in all)"
        )


def ask(url: str, model: str, question: str, write: Callable[[str], None]) -> Answer:
    """Ask, and hand each piece of the answer to `write` as it comes. Raises EmbeddedError if it is not whole."""
    body = request(model, question) | {
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
    }
    # trust_env: a proxy has no business on the way to this machine itself.
    with httpx2.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False) as client:
        start = time.monotonic()
        try:
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    raise EmbeddedError(
                        f"The gateway answered {response.status_code} to the first question: "
                        f"{_message(response.read().decode(errors='replace'))}"
                    )
                return _answer(_events(response.iter_lines()), start, write)
        except httpx2.TransportError as error:
            raise EmbeddedError(f"The answer to the first question broke off ({error}).") from error


def request(model: str, question: str) -> dict[str, Any]:
    """The least that a chat completion needs."""
    return {"model": model, "messages": [{"role": "user", "content": question}]}


def curl(url: str, model: str, question: str) -> str:
    """The same by hand."""
    body = shlex.quote(json.dumps(request(model, question), ensure_ascii=False))
    return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d {body}"


def _answer(events: Iterator[dict[str, Any]], start: float, write: Callable[[str], None]) -> Answer:
    text: list[str] = []
    tokens = first = 0.0
    last = start
    for event in events:
        if "error" in event:
            raise EmbeddedError(f"The answer to the first question broke off: {_message(json.dumps(event))}")
        for choice in event.get("choices", ()):
            if piece := choice.get("delta", {}).get("content"):
                last = time.monotonic()
                first = first or last
                text.append(piece)
                write(piece)
        if usage := event.get("usage"):
            tokens = usage["completion_tokens"]
    return Answer("".join(text), int(tokens), (first or last) - start, last - start)


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The data of a server-sent event stream up to its [DONE], without which it is not whole."""
    for line in lines:
        if not line.startswith("data:"):
            continue  # comments, event names and the empty lines between events
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        yield json.loads(data)
    raise EmbeddedError(
        "The answer to the first question ended without its [DONE]: the engine or the gateway broke it off."
    )


def _message(body: str) -> str:
    """What an OpenAI error body says, or the body."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.strip()[:300] or "no reason given"
