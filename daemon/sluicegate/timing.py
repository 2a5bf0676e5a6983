"""The field Server-Timing: how long a request was queued, how long the engine took, and both with all the rest."""

import trio


def server_timing(received_at: float, queued_at: float | None = None, started_at: float | None = None) -> bytes:
    """Its value at this moment, at which the head of the answer is made; times on trio's clock.

    `queued_at`: when it joined the queue. `started_at`: when it was at an engine's disposal; None: it was never.
    `engine` counts from then to the first event of a stream, or to the end of a whole answer.
    """
    now = trio.current_time()
    if started_at is not None:
        queue_ms = 0.0 if queued_at is None else (started_at - queued_at) * 1e3
        times = (queue_ms, (now - started_at) * 1e3, (now - received_at) * 1e3)
        return b"queue;dur=%.1f, engine;dur=%.1f, total;dur=%.1f" % times
    total_ms = (now - received_at) * 1e3
    if queued_at is not None:
        return b"queue;dur=%.1f, total;dur=%.1f" % ((now - queued_at) * 1e3, total_ms)
    return b"total;dur=%.1f" % total_ms
