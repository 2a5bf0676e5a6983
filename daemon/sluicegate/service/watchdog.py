"""The watchdog, fed by progress and not by a clock: what cannot serve must not look alive.

systemd restarts a service that gives no sign for WatchdogSec=. A sign is only given once every part without which no
request gets through has shown that it still goes round: the event loop by running this at all, and each other part by
answering what it is sent along the way that requests take.
"""

from collections.abc import Awaitable, Callable, Mapping

import trio

from ..observe.logs import Log

#: From one sign to the next, as a part of what systemd allows; sd_watchdog_enabled(3) recommends half.
PAUSE_PART = 0.4

#: How long a part may owe its proof, or the event loop be late, before the log names it; as a part of the same.
LATE_PART = 0.25

#: Returns when the part has proved that it goes round; a part that does not never returns.
Prove = Callable[[], Awaitable[None]]


async def feed(alive: Callable[[], None], within_s: float, parts: Mapping[str, Prove], log: Log) -> None:
    """Call `alive` at least every `within_s` seconds as long as all `parts` go round, until cancelled.

    What does not is logged once, by its name.
    """
    while True:
        await _all_proved(parts, within_s, log)
        alive()
        due = trio.current_time() + PAUSE_PART * within_s
        await trio.sleep_until(due)
        late_s = trio.current_time() - due
        if late_s > LATE_PART * within_s:
            log.error("wedged", detail="the event loop stood still", seconds=late_s)


async def _all_proved(parts: Mapping[str, Prove], within_s: float, log: Log) -> None:
    owing = list(parts)

    async def ask(name: str, prove: Prove) -> None:
        await prove()
        owing.remove(name)

    async def complain() -> None:
        await trio.sleep(LATE_PART * within_s)
        names = " and ".join(owing)
        log.error("wedged", detail=f"{names}: no progress, so systemd gets no sign until there is some")

    async with trio.open_nursery() as complaining:
        complaining.start_soon(complain)
        async with trio.open_nursery() as asking:
            for name, prove in parts.items():
                asking.start_soon(ask, name, prove)
        complaining.cancel_scope.cancel()
