"""Clients of the deployed gateway: they ask through its port, from outside of the host."""

import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx2
import trio

#: The model is small and the host shares two cores with Prometheus: an answer of this many tokens takes seconds.
TOKENS = 24

#: Longer than everything the gateway allows itself (seconds).
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Gateway:
    """The deployed gateway as its clients know it: a URL."""

    url: str

    def chat(self, content: str, *, tokens: int = TOKENS, request_id: str = "") -> dict[str, Any]:
        """Ask, and give the whole answer; another status than 200 is an AssertionError."""
        headers = {"x-request-id": request_id} if request_id else {}
        answer = httpx2.post(
            f"{self.url}/v1/chat/completions", json=question(content, tokens), headers=headers, timeout=PATIENCE_S
        )
        assert answer.status_code == 200, f"{answer.status_code}: {answer.text}"
        body: dict[str, Any] = answer.json()
        return body

    def metrics(self) -> dict[str, float]:
        """The gateway's own numbers now, by series as it prints them."""
        text = httpx2.get(f"{self.url}/metrics", timeout=PATIENCE_S).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {series: float(value) for series, value in lines}

    def status(self, path: str) -> int:
        """The status of a GET, or 0 if nobody answers."""
        try:
            return httpx2.get(f"{self.url}{path}", timeout=PATIENCE_S).status_code
        except httpx2.TransportError:
            return 0


def question(content: str, tokens: int, **more: object) -> dict[str, object]:
    """The body of a chat."""
    return {"messages": [{"role": "user", "content": content}], "max_tokens": tokens, "temperature": 0, **more}


@dataclass
class Stream:
    """A stream under way: what came of it so far."""

    events: list[str]
    status: int = 0
    broken: str = ""

    @property
    def whole(self) -> bool:
        """Whether it came to its end, in the way in which whole streams end."""
        return self.status == 200 and not self.broken and bool(self.events) and self.events[-1] == "[DONE]"


async def stream(client: httpx2.AsyncClient, seen: Stream, content: str, tokens: int) -> AsyncIterator[str]:
    """Ask for a stream and give its events as they come, which `seen` keeps."""
    body = question(content, tokens, stream=True, ignore_eos=True)
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            seen.status = answer.status_code
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    seen.events.append(line.removeprefix("data: "))
                    yield seen.events[-1]
    except httpx2.TransportError as error:
        seen.broken = repr(error)


async def crowd(gateway: Gateway, seconds: float) -> Counter[str]:
    """All that clients do, for a while: ask, stream, leave in the middle, ask nonsense. More than the gateway admits.

    Gives how often each happened, by the status of the answer or "left".
    """
    seen: Counter[str] = Counter()
    async with (
        httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as client,
        trio.open_nursery() as nursery,
    ):
        deadline = trio.current_time() + seconds
        for number in range(6):
            nursery.start_soon(_visitor, client, number, deadline, seen)
    return seen


async def _visitor(client: httpx2.AsyncClient, number: int, deadline: float, seen: Counter[str]) -> None:
    chance = random.Random(number)
    while trio.current_time() < deadline:
        kind = chance.choice(["whole", "stream", "leaver", "completion", "nonsense"])
        if kind in ("stream", "leaver"):
            state = Stream([])
            events = stream(client, state, "Tell me about rivers.", TOKENS)
            async for _ in events:
                if kind == "leaver" and len(state.events) > 3:
                    await events.aclose()  # type: ignore[attr-defined]
                    break
            seen["left" if kind == "leaver" and state.status == 200 else str(state.status)] += 1
        else:
            path, body = {
                "whole": ("/v1/chat/completions", question("What is the capital of France?", TOKENS)),
                "completion": ("/v1/completions", {"prompt": "Once upon a time", "max_tokens": TOKENS}),
                "nonsense": ("/v1/chat/completions", {"messages": "none", "max_tokens": -1}),
            }[kind]
            answer = await client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
            seen[str(answer.status_code)] += 1
        # A client that is turned away comes back after a moment, not at once.
        await trio.sleep(chance.uniform(0.05, 0.3))
