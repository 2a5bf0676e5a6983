"""Whatever the contract suite is pointed at: a base URL and the name of the model behind it."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
import trio

from tests.certificates import trusting
from tests.engine_contract.raw import RawAnswer, RawClient

#: The gateway's four generating dialects: the path, how a prompt is put, and what bounds the answer.
DIALECTS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
#: Far longer than any answer here takes; a wait that fails names what it waited for.
PATIENCE_S = 60.0
#: From this many tokens on, an answer is meant to last until the test is done with it.
LONG = 1000


@dataclass(frozen=True)
class Target:
    """An engine under contract, or a gateway. `base_url` is http://host:port, https://host:port or unix:/path."""

    base_url: str
    model: str

    async def connect(self) -> RawClient:
        """A raw connection to it."""
        if self.socket_path is not None:
            return RawClient(await trio.open_unix_socket(self.socket_path))
        url = urlsplit(self.base_url)
        assert url.hostname
        stream = await trio.open_tcp_stream(url.hostname, url.port or 80)
        if url.scheme != "https":
            return RawClient(stream)
        return RawClient(trio.SSLStream(stream, trusting(), server_hostname=url.hostname))

    async def ask(self, request: bytes) -> RawAnswer:
        """One request on a connection of its own."""
        async with await self.connect() as client:
            with trio.fail_after(PATIENCE_S):
                return await client.ask(request)

    @property
    def url(self) -> str:
        """The base URL as clients are given it; over a Unix socket its host means nothing."""
        return "http://engine" if self.base_url.startswith("unix:") else self.base_url

    @property
    def socket_path(self) -> str | None:
        """The path of its Unix socket, if it has one."""
        return self.base_url.removeprefix("unix:") if self.base_url.startswith("unix:") else None

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[httpx2.AsyncClient]:
        """An HTTP client for it."""
        transport = httpx2.AsyncHTTPTransport(uds=self.socket_path, verify=trusting())
        async with httpx2.AsyncClient(transport=transport, base_url=self.url, timeout=PATIENCE_S) as client:
            yield client

    async def numbers(self, client: httpx2.AsyncClient) -> "Numbers":
        """Its own counters now."""
        response = await client.get("/metrics")
        assert response.status_code == 200
        return Numbers.read(response.text)

    def question(self, dialect: str, *, limit: int = 16, **more: object) -> dict[str, Any]:
        """A request for a repeatable answer in `dialect`: a short one, or with a large `limit` one that is long anyway.

        On messages and responses vLLM knows no `ignore_eos`, so there the question itself must ask for much.
        """
        content = "What is the capital of France?" if limit < LONG else "Write a long story of a river, in 20 chapters."
        body: dict[str, Any] = {"model": self.model, "temperature": 0, **more}
        if dialect == "completions":
            # A question asked without a chat template gets no answer: the model stops at once.
            return {**body, "prompt": "Once upon a time", "max_tokens": limit}
        if dialect == "responses":
            return {**body, "input": content, "max_output_tokens": limit}
        return {**body, "messages": [{"role": "user", "content": content}], "max_tokens": limit}


@dataclass(frozen=True)
class Numbers:
    """What an engine says about itself in /metrics, summed over its labels."""

    running: float
    waiting: float
    prompt_tokens: float
    generation_tokens: float
    finished: float

    @classmethod
    def read(cls, exposition: str) -> "Numbers":
        """Read the text format."""

        def total(name: str) -> float:
            rows = [line.rpartition(" ")[2] for line in exposition.splitlines() if line.startswith(name + "{")]
            assert rows, f"{name} is missing"
            return sum(map(float, rows))

        return cls(
            total("vllm:num_requests_running"),
            total("vllm:num_requests_waiting"),
            total("vllm:prompt_tokens_total"),
            total("vllm:generation_tokens_total"),
            total("vllm:request_success_total"),
        )

    def since(self, earlier: "Numbers") -> tuple[float, float]:
        """Prompt and generation tokens counted since `earlier`."""
        return self.prompt_tokens - earlier.prompt_tokens, self.generation_tokens - earlier.generation_tokens
