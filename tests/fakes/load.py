"""The fake engine's scheduler and counters: what /metrics shows, and when tokens are made."""

import math
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from tests.fakes.dialects import Job
from tests.fakes.script import Behaviour, Kind

_GAUGE, _COUNTER = "gauge", "counter"


class Load:
    """Running and waiting requests, and the counters of vLLM. `max_num_seqs` may change while running."""

    def __init__(self, max_num_seqs: int | None = None) -> None:
        self.max_num_seqs = max_num_seqs
        self.running = self.most_running = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.finished: Counter[str] = Counter()
        self._line: deque[trio.Event] = deque()
        self._observers = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return f"Load(running={self.running}, waiting={self.waiting}, finished={dict(self.finished)})"

    @property
    def waiting(self) -> int:
        """Requests that found `max_num_seqs` others running."""
        return len(self._line)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Run among at most `max_num_seqs`; before that, wait in the queue."""
        turn = trio.Event()
        self._line.append(turn)
        self._advance()
        try:
            await turn.wait()
            yield
        finally:
            if turn.is_set():
                self.running -= 1
            else:
                self._line.remove(turn)
            self._advance()

    def _advance(self) -> None:
        while self._line and (self.max_num_seqs is None or self.running < self.max_num_seqs):
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            self._line.popleft().set()
        self.changed()

    def changed(self) -> None:
        """Something that `until` may wait for has changed."""
        self._observers.unpark_all()

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Wait until `predicate` holds; looked at whenever the engine's state changes."""
        await trio.lowlevel.checkpoint()
        while not predicate():
            await self._observers.park()

    def restart(self) -> None:
        """Counters at zero, as those of an engine that was started again."""
        self.prompt_tokens = self.generation_tokens = 0
        self.finished.clear()
        self.changed()

    def exposition(self, model: str) -> bytes:
        """/metrics, as far as a gateway reads it."""
        labels = f'engine="0",model_name="{model}"'
        rows = [
            ("num_requests_running", _GAUGE, "", self.running),
            ("num_requests_waiting", _GAUGE, "", self.waiting),
            ("kv_cache_usage_perc", _GAUGE, "", min(1.0, self.running / 100)),
            ("prompt_tokens_total", _COUNTER, "", self.prompt_tokens),
            ("generation_tokens_total", _COUNTER, "", self.generation_tokens),
            ("num_preemptions_total", _COUNTER, "", 0),
        ]
        rows += [
            ("request_success_total", _COUNTER, f',finished_reason="{reason}"', self.finished[reason])
            for reason in ("stop", "length", "abort", "error")
        ]
        lines = []
        described = set()
        for name, kind, more, value in rows:
            if name not in described:
                described.add(name)
                lines += [f"# HELP vllm:{name} See vLLM's documentation.", f"# TYPE vllm:{name} {kind}"]
            lines.append(f"vllm:{name}{{{labels}{more}}} {float(value)}")
        return "\n".join([*lines, ""]).encode()


class Generation:
    """The tokens of one job as they are made. `run` is a task of its own; the task that sends them awaits `reached`."""

    def __init__(self, load: Load, job: Job, behaviour: Behaviour) -> None:
        self._load = load
        self._job = job
        self._behaviour = behaviour
        # An engine that stalls does not generate behind the scenes: no token more than was asked for.
        stalls = behaviour.fault is not None and behaviour.fault.kind is Kind.STALL
        self._limit = 0.0 if stalls else math.inf
        self._progress = trio.lowlevel.ParkingLot()
        self.produced = 0

    def __repr__(self) -> str:
        return f"Generation({self._job.id}, {self.produced} of {len(self._job.texts)} tokens)"

    async def run(self) -> None:
        """Generate all tokens, in a slot, at the pace of the behaviour."""
        behaviour = self._behaviour
        async with self._load.slot():
            await trio.sleep(behaviour.prefill_s)
            for rank in range(len(self._job.texts)):
                if behaviour.hold is not None and rank == behaviour.hold_at:
                    await behaviour.hold.wait()
                if rank and behaviour.token_interval_s:
                    await trio.sleep(behaviour.token_interval_s)
                while self.produced >= self._limit:
                    await self._progress.park()
                self._count()
            self._load.finished[self._job.finish] += 1

    def _count(self) -> None:
        if not self.produced:
            self._load.prompt_tokens += self._job.prompt_tokens
        self.produced += 1
        self._load.generation_tokens += 1
        self._progress.unpark_all()
        self._load.changed()

    def has(self, count: int) -> bool:
        """Whether `count` tokens exist."""
        return self.produced >= count

    async def reached(self, count: int) -> None:
        """Wait until `count` tokens exist."""
        if self._limit < count:
            self._limit = count
            self._progress.unpark_all()
        while self.produced < count:
            await self._progress.park()
