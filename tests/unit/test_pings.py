"""How often a stream that waits is pinged."""

import pytest

from sluicegate.pings import ping_s
from tests.harness import chat, sim_request


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        (None, 7.0),
        (b"15", 15.0),
        (b" 2.5\t", 2.5),
        (b"0", 0.0),
        (b"0.0", 0.0),
        (b"0.01", 1.0),
        (b"999999", 3600.0),
        (b"", 7.0),
        (b"-1", 7.0),
        (b"1e3", 7.0),
        (b"nan", 7.0),
        (b"soon", 7.0),
        (b"1, 2", 7.0),
        ("٣".encode(), 7.0),
    ],
)
async def test_ping_s(asked: bytes | None, seconds: float) -> None:
    headers = [] if asked is None else [(b"x-sluicegate-ping-s", asked)]
    assert ping_s(sim_request(chat(stream=True), headers=headers), 7.0) == seconds
