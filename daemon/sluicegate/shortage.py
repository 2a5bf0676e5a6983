"""Our own shortage: what this process or its host may run out of. It must not be taken for the engine's death."""

import contextlib
import errno
import resource

from .config.schema import Config
from .outcome import Outcome, Refusal

#: Retry-After of a refusal for want of something (seconds). Connections come and go.
RETRY_AFTER_S = 1

#: Descriptors that are no client's: listening and signal sockets, log, probes, scrapes, epolls, files for a moment.
OWN = 64

#: An active stream takes its connection to the engine, and the pump's duplicates of both sockets.
PER_SLOT = 3

#: A client connection on the slow path is watched by a duplicate.
PER_CONNECTION = 2

#: What the kernel gives a process at most, unless told otherwise (fs.nr_open).
_UNLIMITED = 1 << 20

#: Errors of system calls by which the kernel says that there is no more, and of what.
_OF = {
    errno.EMFILE: "file descriptors",
    errno.EBUSY: "file descriptors",  # from getaddrinfo, on hosts that look up names over mDNS (libnss-mdns)
    errno.ENFILE: "file descriptors on this host",
    errno.ENOMEM: "memory",
    errno.ENOBUFS: "memory for sockets",
    errno.ENOSPC: "places in epoll",
    errno.EADDRNOTAVAIL: "local ports",
}


def shortage(error: BaseException) -> str:
    """What is used up, if that is why `error` or what led to it was raised; else ""."""
    seen: list[BaseException | None] = []
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is None or one in seen:
            continue
        if isinstance(one, OSError) and one.errno in _OF:
            return _OF[one.errno]
        seen.append(one)
        pending += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            pending += one.exceptions
    return ""


def exhausted(what: str) -> Refusal:
    """The refusal of whom we cannot serve for want of `what`."""
    message = f"The gateway has no {what} left. Retry after {RETRY_AFTER_S} s."
    return Refusal(Outcome.SHED_EXHAUSTED, 503, message, retry_after_s=RETRY_AFTER_S)


def raise_descriptors() -> None:
    """Let this process open as many files as it may: raise the soft limit to the hard one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):  # not worth failing for: `warning` says what it comes to
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def descriptors() -> int:
    """How many files this process may have open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _UNLIMITED if soft == resource.RLIM_INFINITY else soft


def reserved(limit: int, max_active: int) -> int:
    """Of `limit` descriptors, those that are for slots, probes and ourselves and not for client connections."""
    return min(limit // 2, OWN + PER_SLOT * max_active)


def warning(config: Config, limit: int) -> str:
    """What to tell the operator if `limit` descriptors are not enough for `config`; else ""."""
    slots, connections = config.admission.max_active, config.limits.connections_max
    needed = OWN + PER_SLOT * slots + PER_CONNECTION * connections
    if limit >= needed:
        return ""
    room = max(1, (limit - reserved(limit, slots)) // PER_CONNECTION)
    return (
        f"limits.connections_max = {connections} and {slots} slots may take {needed} file descriptors, but the limit "
        f"is {limit}: raise it (LimitNOFILE= of the unit, ulimit -n), or lower connections_max to {room}; connections "
        "for which there are none left are answered 503 (shed_exhausted)"
    )
