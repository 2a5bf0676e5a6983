import socket

import pytest

from sluicegate.config.address import TcpAddress
from sluicegate_run import gateway
from sluicegate_run.errors import EmbeddedError
from tests.unit.sluicegate_run.world import World


@pytest.fixture
def free() -> TcpAddress:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return TcpAddress("127.0.0.1", listener.getsockname()[1])


def command(world: World) -> list[str]:
    return [str(world.python), "serve"]


def test_a_free_address_stays_free(free: TcpAddress) -> None:
    gateway.require_free(free)
    gateway.require_free(free)


@pytest.mark.parametrize("listening", ["127.0.0.1", "0.0.0.0"])
def test_an_occupied_port_is_said(listening: str) -> None:
    with socket.create_server((listening, 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(EmbeddedError, match=f"^The address 127.0.0.1:{port} is taken by another program: free it"):
            gateway.require_free(TcpAddress("127.0.0.1", port))


def test_a_port_that_another_program_has_bound_only_is_found_when_it_listens(free: TcpAddress) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((free.host, free.port))
        gateway.require_free(free)
        other.listen()
        with pytest.raises(EmbeddedError, match="is taken"):
            gateway.require_free(free)


@pytest.mark.parametrize(
    ("listen", "reason"),
    [
        (TcpAddress("192.0.2.1", 8080), "is on no interface of this machine"),
        (TcpAddress("no-such-host.invalid", 8080), r"cannot be listened on \(.+\)"),
    ],
)
def test_an_address_of_another_machine_is_said(listen: TcpAddress, reason: str) -> None:
    with pytest.raises(EmbeddedError, match=f"The address {listen} {reason}: "):
        gateway.require_free(listen)


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:80"), ("::", "http://[::1]:80"), ("192.0.2.1", "http://192.0.2.1:80")],
)
def test_where_a_client_here_finds_it(host: str, url: str) -> None:
    assert gateway.url_of(TcpAddress(host, 80)) == url


def test_starts_and_is_ready(world: World, free: TcpAddress) -> None:
    log = world.directory / "gateway.log"
    program = gateway.start(command(world), free, {**world.environ, "LISTEN": str(free)}, log)
    world.wait_for("gateway /ready")
    program.stop()
    world.wait_until_all_are_gone()
    assert program.poll() == 0


def test_a_gateway_that_ends_instead_gives_its_reason(world: World, free: TcpAddress) -> None:
    world.script(gateway=[2, "sluicegate: max_active must be from 1 to 65536"])
    log = world.directory / "gateway.log"
    with pytest.raises(EmbeddedError) as caught:
        gateway.start(command(world), free, {**world.environ, "LISTEN": str(free)}, log)
    assert str(caught.value) == (
        "The gateway ended before it was ready (exit status 2, “sluicegate: max_active must be from 1 to 65536”): "
        f"read {log} and run it again."
    )


def test_a_gateway_that_is_never_ready_is_ended(
    world: World, free: TcpAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.script(gateway="hold")
    monkeypatch.setattr(gateway, "START_DEADLINE_S", 0.1)
    with pytest.raises(EmbeddedError, match="The gateway was not ready after 0 s"):
        gateway.start(command(world), free, {**world.environ, "LISTEN": str(free)}, world.directory / "gateway.log")
    world.wait_until_all_are_gone()
