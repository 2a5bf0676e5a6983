import io
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from sluicegate.config.address import TcpAddress
from sluicegate_run.failure import RunError
from sluicegate_run.prepare import Outside
from sluicegate_run.run import Machine, main, reached_at, require_free
from tests.unit.sluicegate_run.world import PATIENCE_S, World

ANSWER = (
    {"choices": [{"delta": {"content": "It is "}}]},
    {"choices": [{"delta": {"content": "Paris."}}]},
    {"choices": [], "usage": {"completion_tokens": 3}},
)


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(autouse=True)
def gateway(world: World, port: int) -> None:
    world.variables = {"LISTEN": f"127.0.0.1:{port}"}
    world.answer(*ANSWER)


@pytest.fixture
def prepared(world: World, prepared_cache: Path) -> None:
    """The engine is there already."""
    world.use_cache(prepared_cache)


class Result:
    """What a run in this process said and did."""

    def __init__(self, world: World, *arguments: str) -> None:
        out, err = io.StringIO(), io.StringIO()
        self.status = main(arguments, Machine(world.outside, [str(world.python), "serve"], out, err))
        self.out = out.getvalue()
        self.err = err.getvalue()
        # The sentence comes last; before it stands the progress.
        self.last = self.err.splitlines()[-1] if self.err else ""


def test_asks_once_and_leaves_nothing(world: World, port: int) -> None:
    result = Result(world, "--once")
    assert result.status == 0
    world.wait_until_all_are_gone()
    question, answer, _, numbers = result.out.strip().splitlines()
    assert (question, answer) == ("> What is the capital of France?", "It is Paris.")
    assert numbers.startswith("3 tokens, the first after 0.")
    assert "Ctrl-C" not in result.out
    assert os.listdir(world.runtime.name) == []
    assert not (world.cache / "downloads").exists()


@pytest.mark.usefixtures("prepared")
def test_gateway_gets_the_users_settings(world: World, port: int) -> None:
    """The gateway gets the address of the engine and the user's settings."""
    world.variables |= {"QUEUE_MAX": "7", "VLLM_BASE_URL": "http://elsewhere:1"}
    assert Result(world, "--once", "--question", "Who?").status == 0
    environ = world.read("gateway.json")
    assert environ["VLLM_BASE_URL"].startswith(f"unix:{world.runtime.name}/sluicegate-")
    assert environ["VLLM_BASE_URL"].endswith("/engine.sock")
    assert environ["MODEL_NAME"] == "SmolLM2-135M-Instruct"
    assert (environ["MAX_ACTIVE"], environ["QUEUE_MAX"]) == ("16", "7")
    assert environ["LISTEN"] == f"127.0.0.1:{port}"
    assert world.read("request.json")["messages"] == [{"role": "user", "content": "Who?"}]


@pytest.mark.usefixtures("prepared")
def test_the_number_of_slots_may_be_chosen(world: World) -> None:
    world.variables |= {"MAX_ACTIVE": "3"}
    assert Result(world, "--once").status == 0
    assert world.read("gateway.json")["MAX_ACTIVE"] == "3"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("prepared")
def test_serves_until_a_signal_and_leaves_nothing(world: World, port: int, number: signal.Signals) -> None:
    with world.spawn("run") as run:
        assert run.stdout is not None
        while "until Ctrl-C" not in (line := run.stdout.readline()):
            assert line, "it ended"
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S):
            pass
        run.send_signal(number)
        run.send_signal(number)
        assert run.wait(PATIENCE_S) == 0
    world.wait_until_all_are_gone()
    assert os.listdir(world.runtime.name) == []


@pytest.mark.parametrize("step", ["install", "engine", "gateway", "question"])
def test_killed_at_any_time_it_leaves_no_process(world: World, step: str) -> None:
    world.script(**{step: "hold"})
    with world.spawn("run") as run:
        world.wait_for(step)
        run.kill()
    world.wait_until_all_are_gone()


@pytest.mark.parametrize("step", ["engine", "gateway", "question"])
@pytest.mark.usefixtures("prepared")
def test_interrupted_before_it_serves(world: World, step: str) -> None:
    """An interrupted start leaves no process."""
    world.script(**{step: "hold"})
    with world.spawn("run") as run:
        world.wait_for(step)
        run.send_signal(signal.SIGINT)
        assert run.wait(PATIENCE_S) == 130
    world.wait_until_all_are_gone()


@pytest.mark.usefixtures("prepared")
def test_a_killed_run_does_not_hinder_the_next(world: World) -> None:
    world.script(question="hold")
    with world.spawn("run") as run:
        world.wait_for("question")
        run.kill()
    world.wait_until_all_are_gone()
    world.script()
    assert Result(world, "--once").status == 0


@pytest.mark.usefixtures("prepared")
def test_a_signal_that_is_ignored_stays_ignored(world: World) -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with world.spawn("run") as run:
            world.wait_for("question")
            run.send_signal(signal.SIGHUP)
            assert run.stdout is not None
            while "until Ctrl-C" not in (line := run.stdout.readline()):
                assert line, "it ended"
            run.send_signal(signal.SIGINT)
            assert run.wait(PATIENCE_S) == 0
    finally:
        signal.signal(signal.SIGHUP, previous)


@pytest.mark.usefixtures("prepared")
def test_the_handlers_of_signals_are_put_back(world: World) -> None:
    before = signal.getsignal(signal.SIGTERM)
    Result(world, "--once")
    assert signal.getsignal(signal.SIGTERM) is before


def test_occupied_port_is_reported_first(world: World, port: int) -> None:
    """An occupied port is reported before anything is done."""
    with socket.create_server(("127.0.0.1", port)):
        result = Result(world)
    assert result.status == 1
    assert result.err == (
        f"sluicegate: Cannot listen on 127.0.0.1:{port} (Address already in use): free it, or set another address "
        "(LISTEN=127.0.0.1:8081), and run it again.\n"
    )
    assert not world.cache.exists()


def test_invalid_settings_are_reported_first(world: World) -> None:
    """Invalid settings are reported before anything is done."""
    world.variables |= {"QUEUE_MODE": "maybe", "MAX_ACTIVE": "-1"}
    result = Result(world)
    assert result.status == 2
    assert "QUEUE_MODE" in result.err
    assert "MAX_ACTIVE" in result.err
    assert not world.cache.exists()


@pytest.mark.parametrize("listen", ["unix:/run/gate.sock", "127.0.0.1:0"])
def test_listens_where_it_can_tell(world: World, listen: str) -> None:
    world.variables |= {"LISTEN": listen}
    result = Result(world)
    assert result.status == 1
    assert f"and LISTEN is {listen}: set it to an address such as 127.0.0.1:8080" in result.err


def test_no_disk_is_one_sentence(world: World) -> None:
    world.free = 0
    result = Result(world)
    assert result.status == 1
    assert result.err.startswith(f"sluicegate: The disk of {world.cache} has 0.0 GB free")
    assert len(result.err.splitlines()) == 1


@pytest.mark.usefixtures("prepared")
def test_engine_dies_at_its_start(world: World, port: int) -> None:
    """The error is one sentence that quotes the engine's last line and names its log."""
    world.script(engine=[1, "ValueError: no memory"])
    result = Result(world)
    assert result.status == 1
    assert result.last == (
        "sluicegate: vLLM ended before it was ready (exit status 1, “ValueError: no memory”): read "
        f"{world.cache}/logs/engine-{port}.log and run it again."
    )
    assert "Traceback" not in result.err
    world.wait_until_all_are_gone()


@pytest.mark.usefixtures("prepared")
def test_gateway_dies_at_its_start(world: World, port: int) -> None:
    """If the gateway dies at its start, the engine ends too."""
    world.script(gateway=[3])
    result = Result(world)
    assert result.status == 1
    assert (
        f"The gateway ended before it was ready (exit status 3, its log is empty): read {world.cache}/logs/gateway-"
        in result.last
    )
    world.wait_until_all_are_gone()


@pytest.mark.usefixtures("prepared")
def test_a_question_without_an_answer_is_one_sentence(world: World) -> None:
    world.answer(*ANSWER, done=False)
    result = Result(world, "--once")
    assert result.status == 1
    assert result.last.startswith("sluicegate: The answer to the first question ended without [DONE]")
    world.wait_until_all_are_gone()


@pytest.mark.usefixtures("prepared")
def test_engine_dies_while_serving(world: World, port: int) -> None:
    """If the engine dies while it serves, everything ends."""
    with world.spawn("run") as run:
        assert run.stdout is not None
        assert run.stderr is not None
        while "until Ctrl-C" not in (line := run.stdout.readline()):
            assert line, "it ended"
        os.kill(world.read("engine.json")["pid"], signal.SIGKILL)
        assert run.wait(PATIENCE_S) == 1
        last = run.stderr.read().splitlines()[-1]
    assert last.startswith("sluicegate: The engine ended while serving (SIGKILL, perhaps for lack of memory, ")
    assert last.endswith(f"read {world.cache}/logs/engine-{port}.log and run it again.")
    world.wait_until_all_are_gone()


@pytest.mark.usefixtures("prepared")
def test_gateway_dies_while_serving(world: World, port: int) -> None:
    """If the gateway dies while it serves, everything ends."""
    world.script(after_question="crash")
    result = Result(world)
    assert result.status == 1
    assert result.last == (
        "sluicegate: The gateway ended while serving (exit status 3, its log is empty): read "
        f"{world.cache}/logs/gateway-{port}.log and run it again."
    )
    assert "curl http://127.0.0.1:" in result.out
    world.wait_until_all_are_gone()


@pytest.mark.parametrize("runtime", ["relative", "/nowhere", ""])
@pytest.mark.usefixtures("prepared")
def test_socket_without_a_runtime_directory(world: World, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a runtime directory the socket is among the temporary files."""
    monkeypatch.setattr("tempfile.tempdir", world.runtime.name)
    world.variables |= {"XDG_RUNTIME_DIR": runtime}
    assert Result(world, "--once").status == 0
    assert world.read("gateway.json")["VLLM_BASE_URL"].startswith(f"unix:{world.runtime.name}/sluicegate-")
    assert os.listdir(world.runtime.name) == []


@pytest.mark.usefixtures("prepared")
def test_only_this_user_may_enter_the_socket_s_directory(world: World) -> None:
    world.script(question="hold")
    with world.spawn("run") as run:
        world.wait_for("question")
        (directory,) = Path(world.runtime.name).iterdir()
        assert directory.stat().st_mode & 0o777 == 0o700
        assert (directory / "engine.sock").is_socket()
        run.send_signal(signal.SIGINT)
        assert run.wait(PATIENCE_S) == 130
    assert os.listdir(world.runtime.name) == []


def test_prepare_only_starts_nothing(world: World) -> None:
    """--prepare-only prints where everything is and starts no process."""
    results = [Result(world, "--prepare-only"), Result(world, "--prepare-only")]
    assert [result.status for result in results] == [0, 0]
    first, second = (json.loads(result.out) for result in results)
    assert Path(first["python"]).parents[2] == world.cache / "engines"
    assert Path(first["model"]).parent == world.cache / "models"
    assert (first["served_name"], first["version"], first["device"]) == ("SmolLM2-135M-Instruct", "0.32.0", "cpu")
    assert world.whole_parts() == ["engines", "models"]
    assert first["made"] is True
    assert second == first | {"made": False}
    assert not (world.directory / "engine.json").exists()
    assert not (world.directory / "gateway.json").exists()


def test_prepare_only_fails_with_one_sentence(world: World) -> None:
    """A failed --prepare-only prints no object."""
    world.free = 0
    result = Result(world, "--prepare-only")
    assert (result.status, result.out) == (1, "")
    assert result.last.startswith(f"sluicegate: The disk of {world.cache} has 0.0 GB free")


@pytest.mark.usefixtures("prepared")
def test_prepare_only_needs_no_port(world: World) -> None:
    world.variables |= {"LISTEN": "unix:/run/gate.sock"}
    assert Result(world, "--prepare-only").status == 0


def test_prepare_only_and_once_exclude_each_other(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        Result(world, "--prepare-only", "--once")
    assert done.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err


def test_by_default_it_runs_on_this_machine() -> None:
    machine = Machine()
    assert machine.outside == Outside(os.environ, Path(sys.executable))
    assert machine.gateway == (sys.executable, "-m", "sluicegate", "serve")


def test_help_names_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert all(
        name in text
        for name in ("--once", "--prepare-only", "--question", "--cpu", "SLUICEGATE_CACHE", "LISTEN", "MODEL_NAME")
    )


def test_a_free_address_stays_free(port: int) -> None:
    require_free(TcpAddress("127.0.0.1", port))
    require_free(TcpAddress("127.0.0.1", port))


@pytest.mark.parametrize("listening", ["127.0.0.1", "0.0.0.0"])
def test_an_occupied_port_is_refused(listening: str) -> None:
    with socket.create_server((listening, 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(RunError, match=f"^Cannot listen on 127.0.0.1:{port} .Address already in use.: free it"):
            require_free(TcpAddress("127.0.0.1", port))


def test_bound_port_is_refused_once_it_listens(port: int) -> None:
    """A port that is only bound counts as free until a program listens on it."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        require_free(TcpAddress("127.0.0.1", port))
        other.listen()
        with pytest.raises(RunError, match="already in use"):
            require_free(TcpAddress("127.0.0.1", port))


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(RunError, match=rf"Cannot listen on {host}:8080 \(.+\): "):
        require_free(TcpAddress(host, 8080))


@pytest.mark.parametrize(
    ("host", "address"),
    [("0.0.0.0", "127.0.0.1:80"), ("::", "[::1]:80"), ("192.0.2.1", "192.0.2.1:80")],
)
def test_where_a_client_here_reaches_the_gateway(host: str, address: str) -> None:
    assert reached_at(TcpAddress(host, 80)) == address
