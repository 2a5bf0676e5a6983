"""Waiting for states: of the engine and of other processes by asking, of the gateway in this process by looking."""

from collections.abc import Callable

import httpx2
import trio

from tests.engine_contract.target import Numbers, Target
from tests.harness import Running

#: An engine's numbers are only to be had by asking for them. Each answer costs it 5 ms of the core on which it also
#: takes requests in, so they are not asked for back to back; a fifth of the shortest time that a test asserts.
POLL_S = 0.05


async def until(target: Target, predicate: Callable[[Numbers], bool]) -> Numbers:
    """Ask the engine for its numbers until `predicate` holds for them. Give it a deadline from outside."""
    async with target.client() as client:
        while not predicate(numbers := await target.numbers(client)):  # noqa: ASYNC110 (another process's state)
            await trio.sleep(POLL_S)
        return numbers


async def until_status(client: httpx2.AsyncClient, path: str, status: int) -> None:
    """Ask a process that is not ours until it answers so: it has no other way to say that it is ready."""
    while True:
        try:
            if (await client.get(path)).status_code == status:
                return
        except httpx2.TransportError:
            pass
        await trio.sleep(POLL_S)


def idle(numbers: Numbers) -> bool:
    """Nothing runs or waits in the engine."""
    return numbers.running == numbers.waiting == 0


async def entered(running: Running, *, active: int, waiting: int) -> None:
    """Wait until the gateway, which runs in this same loop, has so many active requests."""
    admission = running.gateway.admission
    while (admission.active, admission.queued) != (active, waiting):
        await trio.lowlevel.checkpoint()


async def refused(host: str, port: int) -> None:
    """Wait until connections to that address are refused."""
    while True:
        try:
            stream = await trio.open_tcp_stream(host, port)
        except OSError:
            return
        await stream.aclose()
        await trio.sleep(POLL_S)
