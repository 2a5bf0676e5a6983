"""One question, asked as any client of an OpenAI API asks it; the answer is written while it arrives."""

import json
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2

from .failure import RunError

# Enough for a short answer; the model may talk on.
MAX_TOKENS = 200
# A 135M model on 2 cores answers within 1 s; on a GPU the first request may still compile kernels.
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Answer:
    """What arrived. `tokens` is the engine's own count; times in seconds from the moment the request was sent."""

    tokens: int
    first_token_s: float
    total_s: float

    def __str__(self) -> str:
        # The decode rate: the tokens after the first, over the time after the first.
        decode_s = self.total_s - self.first_token_s
        rate = (self.tokens - 1) / decode_s if decode_s > 0 else 0.0
        return (
            f"{self.tokens} tokens, the first after {self.first_token_s:.2f} s, "
            f"then {rate:.0f} tokens/s ({self.total_s:.2f} s in all)"
        )


def ask(url: str, model: str, question: str, write: Callable[[str], None]) -> Answer:
    """Ask, and hand the answer's text to `write` as it arrives. Raises RunError if the answer is not complete."""
    body = _request(model, question) | {
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
    }
    started, tokens = False, 0
    # trust_env: no proxy is needed on the way to this machine itself.
    with httpx2.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False) as client:
        first = last = start = time.monotonic()
        try:
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    reason = _message(response.read().decode(errors="replace"))
                    raise RunError(f"The gateway answered {response.status_code} to the first question: {reason}")
                for event in _events(response.iter_lines()):
                    for choice in event.get("choices", ()):
                        if content := choice.get("delta", {}).get("content"):
                            last = time.monotonic()
                            first, started = first if started else last, True
                            write(content)
                    if usage := event.get("usage"):
                        tokens = usage["completion_tokens"]
        except httpx2.TransportError as error:
            raise RunError(f"The answer to the first question broke off ({error}).") from error
    return Answer(tokens, first - start, last - start)


def curl(url: str, model: str, question: str) -> str:
    """The same question as a command for a shell."""
    body = shlex.quote(json.dumps(_request(model, question), ensure_ascii=False))
    return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d {body}"


def _request(model: str, question: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": question}]}


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The data of a stream's events up to its [DONE]; RunError at an error event, or at an end without [DONE]."""
    for line in lines:
        if not line.startswith("data:"):
            continue  # comments, event names and the empty lines between events
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        event = json.loads(data)
        if event.get("error"):
            raise RunError(f"The answer to the first question broke off: {_message(data)}")
        yield event
    raise RunError("The answer to the first question ended without [DONE]: the engine or the gateway broke it off.")


def _message(body: str) -> str:
    """The message of an OpenAI error body, else the body."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.strip()[:300] or "no reason given"
