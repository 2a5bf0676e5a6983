"""A fake vLLM: speaks its HTTP, keeps its counters, fails on command. For faults and timing.

    async with open_engine() as engine:
        base_url = await engine.listen_tcp()          # or listen_unix(path), or stream = engine.dial()
        engine.script.next(Behaviour(fault=Fault(Kind.RESET, at=3)))
        ...
        await engine.until(lambda: engine.running == 0)

It passes the real engine's contract suite (tests/engine_contract). As a process: `python -m tests.fakes.engine --help`.
"""

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from tests.fakes.connection import NEVER, Connection, Seen
from tests.fakes.dialects import Dialect, Job, encode, error_body, messages_error, whole
from tests.fakes.dialects import events as events_of
from tests.fakes.load import Generation, Load
from tests.fakes.routes import (
    FREE,
    GENERATING,
    LEAKS,
    POOLING,
    Model,
    RefusedError,
    no_response,
    not_cancelled,
    understand,
)  # fmt: skip
from tests.fakes.script import BEFORE_HEAD, Behaviour, Kind, Script
from tests.fakes.tokens import Tokenizer
from tests.fakes.transport import MemoryEnd, Transport, reset
from tests.fakes.wire import Answer

#: Beginnings of the paths that vLLM's `--api-key` guards.
GUARDED = ("/v1", "/v2", "/inference", "/cohere")

#: The name of the model that a fake engine serves unless told otherwise.
MODEL = "fake-model"


class FakeEngine:
    """See the module. Make one with `open_engine`. Attributes may be changed at any time:

    `script` says how requests are served; `model` "" means that none is loaded; `healthy` False makes /health
    a 503; `refusing` True refuses connections (a dial raises, an accepted socket is reset); `max_num_seqs` bounds
    `running`; `keep_alive_s` closes idle connections that were accepted after it was set; `api_key` is what it asks
    for, as `--api-key` does; `root` is what /v1/models tells of where the model came from. `responses` holds those that
    were asked for, by id.
    """

    def __init__(
        self, nursery: trio.Nursery, *, model: str = MODEL, max_num_seqs: int | None = None, max_model_len: int = 2048
    ) -> None:
        self._nursery = nursery
        self._load = Load(max_num_seqs)
        self._tokenizer = Tokenizer()
        self._connections: set[Connection] = set()
        self.model = model
        self.max_model_len = max_model_len
        self.root = model
        self.responses: dict[str, Job] = {}
        self.script = Script()
        self.seen: list[Seen] = []
        self.aborted = 0
        self.accepted = 0
        self.healthy = True
        self.refusing = False
        self.api_key = ""
        self.keep_alive_s = NEVER

    def __repr__(self) -> str:
        return (
            f"FakeEngine(running={self.running}, waiting={self.waiting}, aborted={self.aborted}, "
            f"connections={self.connections} of {self.accepted}, seen={len(self.seen)}, refusing={self.refusing})"
        )

    @property
    def running(self) -> int:
        """Requests that the engine is computing: `vllm:num_requests_running`."""
        return self._load.running

    @property
    def most_running(self) -> int:
        """The largest value that `running` has had so far."""
        return self._load.most_running

    @property
    def waiting(self) -> int:
        """Requests that wait for one of `max_num_seqs`: `vllm:num_requests_waiting`."""
        return self._load.waiting

    @property
    def connections(self) -> int:
        """Connections open now. `accepted` counts all there have been."""
        return len(self._connections)

    @property
    def prompt_tokens(self) -> int:
        """`vllm:prompt_tokens_total`."""
        return self._load.prompt_tokens

    @property
    def generation_tokens(self) -> int:
        """`vllm:generation_tokens_total`."""
        return self._load.generation_tokens

    @property
    def max_num_seqs(self) -> int | None:
        """How many requests run at a time; None: all."""
        return self._load.max_num_seqs

    @max_num_seqs.setter
    def max_num_seqs(self, value: int | None) -> None:
        self._load.max_num_seqs = value

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Wait until `predicate` holds; it is asked whenever something about the engine changes."""
        await self._load.until(predicate)

    def posts(self) -> list[Seen]:
        """What has been received, without the probes."""
        return [request for request in self.seen if request.method == "POST"]

    # Ways in

    def dial(self, *, lockstep: bool = False) -> MemoryEnd:
        """The client's end of a new connection in memory. Raises ConnectionRefusedError if `refusing`.

        `lockstep`: neither side can send more than the other takes, as with full socket buffers.
        """
        if self.refusing:
            raise ConnectionRefusedError("the fake engine refuses connections")
        ours, theirs = MemoryEnd.pair(lockstep=lockstep)
        self._nursery.start_soon(self._serve, ours)
        return theirs

    async def listen_tcp(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Serve on a TCP port in the background; returns the base URL (http://host:port)."""
        bound: int = await self._nursery.start(self.serve_tcp, host, port)
        return f"http://{host}:{bound}"

    async def listen_unix(self, path: str) -> None:
        """Serve on a Unix socket in the background."""
        await self._nursery.start(self.serve_unix, path)

    async def serve_tcp(
        self, host: str = "127.0.0.1", port: int = 0, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve on a TCP port until cancelled; reports the port. Cancelling it also ends its connections."""
        (listener,) = await trio.open_tcp_listeners(port, host=host)
        task_status.started(listener.socket.getsockname()[1])
        await trio.serve_listeners(self._serve, [listener])

    async def serve_unix(self, path: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve on a Unix socket until cancelled. Like vLLM, it does not remove a stale one before."""
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        await sock.bind(path)
        sock.listen(2048)
        try:
            task_status.started()
            await trio.serve_listeners(self._serve, [trio.SocketListener(sock)])
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    # Ways down

    def close_idle(self) -> None:
        """Close every connection on which nothing is going on, as an idle timeout does."""
        for connection in list(self._connections):
            connection.close_if_idle()

    def kill(self) -> None:
        """Die: reset every connection, refuse new ones."""
        self.refusing = True
        for connection in list(self._connections):
            connection.kill()

    def revive(self) -> None:
        """Be there again after `kill`, as a new process: counters start at zero."""
        self.refusing = False
        self._load.restart()

    # One connection, one request

    async def _serve(self, stream: Transport) -> None:
        self.accepted += 1
        fault = self.script.take_accept_fault()
        if self.refusing or fault is not None:
            if fault is None or fault.kind is Kind.RESET:
                reset(stream)
            self._load.changed()
            if fault is not None and fault.kind is Kind.STALL:
                await trio.sleep_forever()
            await trio.aclose_forcefully(stream)
            return
        connection = Connection(stream, self.accepted, self._take, self._handle, self.keep_alive_s)
        self._connections.add(connection)
        self._load.changed()
        try:
            await connection.serve(self._left_early)
        finally:
            self._connections.remove(connection)
            self._load.changed()

    def _left_early(self) -> None:
        self.aborted += 1

    def _take(self, request: Seen) -> Behaviour:
        self.seen.append(request)
        self._load.changed()
        return self.script.take(request.body) if request.method == "POST" else self.script.probes

    async def _handle(self, request: Seen, answer: Answer, nursery: trio.Nursery) -> None:
        try:
            await self._route(request, answer, nursery)
        except RefusedError as refused:
            await answer.whole(refused.status, refused.on(request.path))

    async def _route(self, request: Seen, answer: Answer, nursery: trio.Nursery) -> None:
        path, behaviour = request.path, answer.behaviour
        await trio.sleep(behaviour.delay_s)
        if self.api_key and path.startswith(GUARDED) and request.header("authorization") != f"Bearer {self.api_key}":
            raise RefusedError(401, {"error": "Unauthorized"})
        if behaviour.fault is not None and behaviour.fault.kind is Kind.STATUS:
            await answer.whole(behaviour.fault.status, _failure(path, behaviour.fault.status))
        elif path in LEAKS:
            await answer.whole(200, encode({"leaked": path}))
        elif path in GENERATING:
            _only("POST", request)
            await self._generate(request, answer, nursery)
        elif path in FREE or path in POOLING:
            _only("POST", request)
            await self._compute(request, answer)
        elif path in ("/health", "/v1/models", "/metrics", "/version"):
            _only("GET", request)
            await self._probe(path, answer)
        elif path.startswith("/v1/responses/"):
            await self._stored(request, answer, nursery)
        else:
            raise RefusedError(404, {"detail": "Not Found"})

    async def _generate(self, request: Seen, answer: Answer, nursery: trio.Nursery) -> None:
        behaviour = answer.behaviour
        job = understand(request, GENERATING[request.path], self._loaded(), behaviour)
        generation = Generation(self._load, job, behaviour)
        nursery.start_soon(generation.run)
        if job.dialect is Dialect.RESPONSES:
            self.responses[job.id] = job
        if job.stream:
            await answer.stream(job.dialect, events_of(job, done=behaviour.done), generation)
            return
        fault = behaviour.fault
        if fault is None or fault.kind is not Kind.STALL or fault.at > BEFORE_HEAD:
            await generation.reached(len(job.texts))
        await answer.whole(200, encode(whole(job)))

    async def _compute(self, request: Seen, answer: Answer) -> None:
        small = FREE.get(request.path) or POOLING[request.path]
        body = encode(small(request, self._loaded()))
        async with self._load.slot() if request.path in POOLING else contextlib.nullcontext():
            await trio.sleep(answer.behaviour.prefill_s)
            if answer.behaviour.hold is not None:
                await answer.behaviour.hold.wait()
            await answer.whole(200, body)

    async def _stored(self, request: Seen, answer: Answer, nursery: trio.Nursery) -> None:
        """One of `responses`, or why it cannot be cancelled."""
        _, _, _, response_id, *more = request.path.split("/")
        _only("POST" if more == ["cancel"] else "GET", request)
        job = self.responses.get(response_id)
        if job is None:
            raise no_response(response_id)
        if more:
            raise not_cancelled()
        if "stream=true" not in request.target:
            await answer.whole(200, encode(whole(job)))
            return
        replay = Generation(Load(None), job, Behaviour())
        nursery.start_soon(replay.run)
        await answer.stream(job.dialect, events_of(job), replay)

    async def _probe(self, path: str, answer: Answer) -> None:
        if path == "/health":
            await answer.whole(200 if self.healthy else 503, b"")
        elif path == "/version":
            await answer.whole(200, encode({"version": "0.32.0"}))
        elif path == "/metrics":
            await answer.whole(200, self._load.exposition(self.model), "text/plain; version=1.0.0; charset=utf-8")
        else:
            await answer.whole(200, encode(self._loaded().card()))

    def _loaded(self) -> Model:
        return Model(self.model, self.max_model_len, self._tokenizer, self.root)


def _only(method: str, request: Seen) -> None:
    if request.method != method:
        raise RefusedError(405, {"detail": "Method Not Allowed"})


def _failure(path: str, status: int) -> bytes:
    kind = "ServiceUnavailableError" if status == 503 else "InternalServerError"
    if path == "/v1/messages":
        return encode(messages_error(kind, "EngineCore encountered an issue."))
    return encode(error_body("EngineCore encountered an issue.", kind, status))


@asynccontextmanager
async def open_engine(
    *, model: str = MODEL, max_num_seqs: int | None = None, max_model_len: int = 2048
) -> AsyncIterator[FakeEngine]:
    """A fake engine; leaving the block closes its listeners and connections and ends all its tasks."""
    async with trio.open_nursery() as nursery:
        yield FakeEngine(nursery, model=model, max_num_seqs=max_num_seqs, max_model_len=max_model_len)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    from tests.fakes.process import main

    main()
