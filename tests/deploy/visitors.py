"""Clients of the deployed gateway: they ask through its port, from outside of the host."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx2

#: The model is small and the host shares two cores with Prometheus: an answer of this many tokens takes seconds.
TOKENS = 24

#: Clients at a time: more than the gateway has slots and places in its line.
CROWD = 6

#: Longer than everything the gateway allows itself (seconds).
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Gateway:
    """The deployed gateway as its clients know it: a URL."""

    url: str

    def chat(self, content: str, *, request_id: str = "") -> dict[str, Any]:
        """Ask, and give the whole answer; another status than 200 is an AssertionError."""
        headers = {"x-request-id": request_id} if request_id else {}
        answer = httpx2.post(f"{self.url}{CHAT}", json=question(content, TOKENS), headers=headers, timeout=PATIENCE_S)
        assert answer.status_code == 200, f"{answer.status_code}: {answer.text}"
        body: dict[str, Any] = answer.json()
        return body

    def metrics(self) -> dict[str, float]:
        """The gateway's own numbers now, by series as it prints them."""
        text = httpx2.get(f"{self.url}/metrics", timeout=PATIENCE_S).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {series: float(value) for series, value in lines}

    def status(self, path: str) -> int:
        """The status of a GET, or 0 if no answer comes."""
        try:
            return httpx2.get(f"{self.url}{path}", timeout=PATIENCE_S).status_code
        except httpx2.TransportError:
            return 0

    def stream(self, content: str, tokens: int) -> "Stream":
        """A stream of so many tokens; it begins when it is read."""
        return Stream(self, question(content, tokens, stream=True, ignore_eos=True))


CHAT = "/v1/chat/completions"


def question(content: str, tokens: int, **more: object) -> dict[str, object]:
    """The body of a chat."""
    return {"messages": [{"role": "user", "content": content}], "max_tokens": tokens, "temperature": 0, **more}


@dataclass
class Stream:
    """A stream, and what came of it so far. To stop reading it is to leave."""

    gateway: Gateway
    body: dict[str, object]
    events: list[str] = field(default_factory=list)
    status: int = 0

    def read(self) -> Iterator[str]:
        """The events as they come; a connection that breaks is httpx2's TransportError."""
        with httpx2.stream("POST", f"{self.gateway.url}{CHAT}", json=self.body, timeout=PATIENCE_S) as answer:
            self.status = answer.status_code
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    self.events.append(line.removeprefix("data: "))
                    yield self.events[-1]


def crowd(gateway: Gateway, seconds: float) -> Counter[str]:
    """All that clients do, for a while: ask, stream, leave in the middle, ask nonsense.

    Gives how often each happened, by the status of the answer or "left".
    """
    deadline = time.monotonic() + seconds
    with ThreadPoolExecutor(CROWD) as pool:
        return sum(pool.map(lambda number: _visitor(gateway, number, deadline), range(CROWD)), Counter())


def _visitor(gateway: Gateway, number: int, deadline: float) -> Counter[str]:
    seen: Counter[str] = Counter()
    chance = random.Random(number)
    while time.monotonic() < deadline:
        match chance.choice(["whole", "stream", "leaver", "completion", "nonsense"]):
            case "stream":
                stream = gateway.stream("Tell me about rivers.", TOKENS)
                for _ in stream.read():
                    pass
                seen[str(stream.status)] += 1
            case "leaver":
                stream = gateway.stream("Tell me about mountains.", TOKENS)
                reading = stream.read()
                for _ in reading:
                    if len(stream.events) > 3:
                        break
                reading.close()  # type: ignore[attr-defined]
                seen["left" if stream.status == 200 else str(stream.status)] += 1
            case "whole":
                seen[_ask(gateway, CHAT, question("What is the capital of France?", TOKENS))] += 1
            case "completion":
                seen[_ask(gateway, "/v1/completions", {"prompt": "Once upon a time", "max_tokens": TOKENS})] += 1
            case "nonsense":
                seen[_ask(gateway, CHAT, {"messages": "none", "max_tokens": -1})] += 1
        # A client whose request was refused waits a moment before it asks again.
        time.sleep(chance.uniform(0.1, 1.0))
    return seen


def _ask(gateway: Gateway, path: str, body: dict[str, object]) -> str:
    return str(httpx2.post(f"{gateway.url}{path}", json=body, timeout=PATIENCE_S).status_code)
