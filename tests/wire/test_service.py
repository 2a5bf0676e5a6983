"""The daemon under systemd, played by the test: notifications, a socket handed over, the watchdog, reloads."""

import json
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from tests.engine_contract.raw import RawClient, get, post
from tests.fakes.engine import FakeEngine
from tests.harness import CHAT, question
from tests.wire.daemons import TOML, Daemon, run, started, streaming

#: Of a daemon that has one slot.
ONE = TOML + "[admission]\nmax_active = 1\n"
TWO = TOML + "[admission]\nmax_active = 2\n"


class Manager:
    """systemd's end of the notification socket."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    async def __aenter__(self) -> "Manager":
        await self._sock.bind(self.path)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._sock.close()

    async def heard(self, start: str) -> dict[str, str]:
        """The next notification that begins with `start`; those before it are passed over."""
        while True:
            text = (await self._sock.recv(8192)).decode()
            if text.startswith(start):
                return dict(line.split("=", 1) for line in text.split("\n"))


@asynccontextmanager
async def service(
    config: Path, text: str = TOML, environ: dict[str, str] | None = None, sock: socket.socket | None = None
) -> AsyncIterator[tuple[FakeEngine, Daemon, Manager]]:
    """A daemon before a fake engine, which it has found, and the manager that it notifies."""
    async with Manager(config.parent / "notify") as manager:
        environ = {"NOTIFY_SOCKET": manager.path} | (environ or {})
        async with started(config, text, environ, sock=sock) as (engine, daemon):
            yield engine, daemon, manager


async def metric(daemon: Daemon, name: str) -> float:
    body = (await daemon.ask(get("/metrics"))).body.decode()
    (line,) = [line for line in body.splitlines() if line.startswith(f"{name} ")]
    return float(line.rpartition(" ")[2])


# --- notifications ---


async def test_systemd_is_told_the_state(config: Path) -> None:
    """systemd is told when the daemon is ready, what state it is in and when it stops."""
    async with service(config, ONE + "[timeouts]\ndrain_s = 7\n") as (engine, daemon, manager):
        ready = await manager.heard("READY=1")
        assert ready["STATUS"].startswith("Serving on 127.0.0.1:")
        assert "; 1 slots; engine " in ready["STATUS"]
        up = await manager.heard("STATUS=") if "engine ok" not in ready["STATUS"] else ready
        assert up["STATUS"].endswith("; engine ok: fake-model")
        engine.kill()
        down = await manager.heard("STATUS=")
        assert "; engine down: the engine at 127.0.0.1:" in down["STATUS"]
        daemon.terminate()
        stopping = await manager.heard("STOPPING=1")
        assert stopping["EXTEND_TIMEOUT_USEC"] == "14000000"
        assert stopping["STATUS"] == "Draining: 0 requests open, at most 7 s"
        assert await daemon.process.wait() == 0


async def test_watchdog_is_fed_in_every_state(config: Path) -> None:
    """The watchdog is fed while the daemon serves, idles and drains."""
    async with service(config, environ={"WATCHDOG_USEC": "200000"}) as (engine, daemon, manager):
        await manager.heard("WATCHDOG=1")
        client, hold = await streaming(engine, daemon)
        async with client:
            for _ in range(3):
                await manager.heard("WATCHDOG=1")
            daemon.terminate()
            await manager.heard("STOPPING=1")
            for _ in range(3):
                await manager.heard("WATCHDOG=1")
            hold.set()
            assert (await client.answer()).complete
        assert await daemon.process.wait() == 0
        assert daemon.lines("wedged") == []


async def test_without_a_watchdog_or_a_manager(config: Path) -> None:
    """Without a watchdog and a manager the daemon stops as usual."""
    async with service(config, environ={"NOTIFY_SOCKET": ""}) as (_, daemon, _manager):
        daemon.terminate()
        assert await daemon.process.wait() == 0


# --- a socket of systemd's ---


async def test_systemds_socket_outlives_the_daemon(config: Path) -> None:
    """A socket of systemd's outlives the daemon, and no connection is lost."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = f"127.0.0.1:{sock.getsockname()[1]}"
        async with service(config, environ={"LISTEN": address}, sock=sock) as (_, daemon, manager):
            (listening,) = daemon.lines("listening")
            assert listening["detail"].startswith(f"{address}, a socket of systemd's, engine at ")
            assert f"Serving on {address}, a socket of systemd's; " in (await manager.heard("READY=1"))["STATUS"]
            assert daemon.lines("listen_ignored") == []
            assert (await daemon.ask(post(CHAT, question()))).status == 200
            daemon.terminate()
            assert await daemon.process.wait() == 0
        await trio.Path(manager.path).unlink()
        async with RawClient(await trio.open_tcp_stream(*sock.getsockname())) as early:
            await early.stream.send_all(get("/metrics"))
            async with service(config, sock=sock):
                assert (await early.answer()).status == 200


async def test_requests_in_the_socket_are_served_later(config: Path) -> None:
    """A restart costs no client a request: the engine is asked before the first of them is answered."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        async with AsyncExitStack() as stack:
            unnamed = {name: value for name, value in question().items() if name != "model"}
            early = [await waiting_in(sock, stack, post(CHAT, body)) for body in [question()] * 4 + [unnamed]]
            early.append(await waiting_in(sock, stack, get("/v1/models")))
            async with service(config, sock=sock) as (engine, daemon, _manager):
                assert [(await client.answer()).status for client in early] == [200] * 6
                assert [json.loads(asked.body)["model"] for asked in engine.posts()] == ["fake-model"] * 5
                assert {line["outcome"] for line in await daemon.logged("request", 5)} == {"served"}


async def waiting_in(sock: socket.socket, stack: AsyncExitStack, request: bytes) -> RawClient:
    """A client whose request waits in a socket from which no process accepts."""
    client = await stack.enter_async_context(RawClient(await trio.open_tcp_stream(*sock.getsockname())))
    await client.stream.send_all(request)
    return client


async def test_a_unix_socket_of_systemds_stays_where_it_is(config: Path) -> None:
    path = str(config.parent / "gate.sock")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        async with service(config, environ={"LISTEN": f"unix:{path}"}, sock=sock) as (_, daemon, _manager):
            async with RawClient(await trio.open_unix_socket(path)) as client:
                assert (await client.ask(post(CHAT, question()))).status == 200
            assert daemon.lines("listening")[0]["detail"].startswith(f"unix:{path}, a socket of systemd's")
            assert daemon.lines("listen_ignored") == []
            daemon.terminate()
            assert await daemon.process.wait() == 0
        assert await trio.Path(path).is_socket()


async def test_other_listen_address_is_reported(config: Path) -> None:
    """A configured address other than the socket's is logged with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        async with service(config, environ={"LISTEN": f"127.0.0.2:{port}"}, sock=sock) as (_, daemon, _manager):
            (line,) = daemon.lines("listen_ignored")
            assert line["level"] == "warning"
            assert line["detail"] == (
                f"systemd's socket listens on 127.0.0.1:{port}, so listen = 127.0.0.2:{port} has no effect: "
                "set it to the same address, or change ListenStream= in sluicegate.socket"
            )


async def test_socket_that_does_not_listen(config: Path) -> None:
    """The daemon prints one sentence and exits with 1."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        async with run("http://127.0.0.1:1", config, sock=sock) as daemon:
            assert await daemon.process.wait() == 1
            await daemon.says(b"\n")
        expected = b"sluicegate: systemd's descriptor 3 (http) does not listen: the socket unit needs Accept=no\n"
        assert daemon.output == expected


# --- reload ---


async def test_reload_grants_new_slots(config: Path) -> None:
    """A reload leaves streams alone and grants new slots to queued requests."""
    async with service(config, ONE) as (engine, daemon, manager):
        client, hold = await streaming(engine, daemon)
        async with client, await daemon.dial() as waiter:
            await waiter.stream.send_all(post(CHAT, question()))
            while await metric(daemon, "api_queue_depth") != 1:
                await trio.lowlevel.checkpoint()
            await daemon.reload(config, TWO)
            assert (await waiter.answer()).status == 200, "while the other one still holds its slot"
            (reloaded,) = await daemon.logged("reloaded")
            assert reloaded["detail"] == "admission.max_active 1 → 2"
            reloading = await manager.heard("RELOADING=1")
            assert reloading["MONOTONIC_USEC"].isdigit()
            assert "; 2 slots; engine ok" in (await manager.heard("READY=1"))["STATUS"]
            assert await metric(daemon, "api_max_active") == 2
            hold.set()
            answer = await client.answer()
            assert answer.complete
            assert b"data: [DONE]" in answer.events()
        assert await metric(daemon, 'api_config_reloads_total{result="applied"}') == 1
        assert await metric(daemon, "api_config_last_reload_successful") == 1


async def test_invalid_reload_is_refused(config: Path) -> None:
    """A refused reload logs all configuration errors, and the old configuration stays."""
    async with service(config, ONE) as (_, daemon, manager):
        await daemon.reload(config, "[admission]\nmax_active = 0\nqueue_mx = 3\n")
        refused = await daemon.logged("reload_refused", 2)
        assert [line["level"] for line in refused] == ["error"] * 2
        assert refused[0]["detail"] == f"{config}: admission.max_active = 0: must be a whole number from 1 to 65536"
        assert "queue_mx: unknown key" in refused[1]["detail"]
        await manager.heard("RELOADING=1")
        assert (await manager.heard("READY=1"))["STATUS"].endswith("; the last reload was refused, the log says why")
        assert await metric(daemon, "api_max_active") == 1
        assert await metric(daemon, "api_config_last_reload_successful") == 0
        assert await metric(daemon, 'api_config_reloads_total{result="refused"}') == 1
        assert (await daemon.ask(post(CHAT, question()))).status == 200
        await daemon.reload(config, TWO)
        await daemon.logged("reloaded")
        assert "refused" not in (await manager.heard("READY=1"))["STATUS"]
        assert await metric(daemon, "api_config_last_reload_successful") == 1


async def test_restart_setting_refuses_the_reload(config: Path) -> None:
    """A change that needs a restart refuses the whole reload."""
    async with service(config, ONE) as (_, daemon, _manager):
        await daemon.reload(config, TWO + '[log]\nformat = "text"\n')
        (refused,) = await daemon.logged("reload_refused")
        assert refused["detail"] == (
            'log.format "auto" → "text": this cannot change while the gateway runs; nothing of it is applied; '
            "systemctl restart sluicegate applies all of it"
        )
        assert await metric(daemon, "api_max_active") == 1


async def test_a_reload_without_a_file_is_refused(config: Path) -> None:
    async with service(config, ONE) as (_, daemon, _manager):
        await trio.Path(config).unlink()
        daemon.process.send_signal(signal.SIGHUP)
        (refused,) = await daemon.logged("reload_refused")
        assert refused["detail"] == f"{config}: cannot be read: No such file or directory"


async def test_the_environment_still_wins(config: Path) -> None:
    async with service(config, ONE, {"MAX_ACTIVE": "3"}) as (_, daemon, _manager):
        await daemon.reload(config, TWO + '[log]\nlevel = "debug"\n')
        (reloaded,) = await daemon.logged("reloaded")
        assert reloaded["detail"] == 'log.level "info" → "debug"'
        await daemon.reload(config, TWO + '[log]\nlevel = "debug"\n')
        assert (await daemon.logged("reloaded", 2))[1]["detail"] == "nothing changes"
        assert await metric(daemon, "api_max_active") == 3


async def test_reload_while_stopping_is_refused(config: Path) -> None:
    """The reload is refused, and the stop goes on."""
    async with service(config, ONE) as (engine, daemon, _manager):
        client, hold = await streaming(engine, daemon)
        async with client:
            daemon.terminate()
            await daemon.logged("draining")
            await daemon.reload(config, TWO)
            (refused,) = await daemon.logged("reload_refused")
            assert refused["detail"] == "the gateway is stopping; the next one reads the file"
            hold.set()
            assert (await client.answer()).complete
        assert await daemon.process.wait() == 0
