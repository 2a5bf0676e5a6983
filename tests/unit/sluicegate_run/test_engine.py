import io
import os
import re
import signal
import socket
from pathlib import Path

import pytest

from sluicegate_run.engine import EmbeddedEngine
from sluicegate_run.failure import RunError
from sluicegate_run.prepare import EnginePaths
from sluicegate_run.progress import Progress
from tests.unit.sluicegate_run.world import PATIENCE_S, World


def paths(world: World, device: str = "cpu") -> EnginePaths:
    return EnginePaths(world.python, Path("/models/small"), "small", "cpu" if device == "cpu" else "gpu")


def flags(argv: list[str]) -> list[str]:
    return argv[argv.index("--served-model-name") :]


def engine_of(world: World, paths: EnginePaths, *extra_args: str, address: Path | int | None = None) -> EmbeddedEngine:
    """An engine of this world, on a socket unless the test names another address."""
    chosen = Path(world.runtime.name) / "engine.sock" if address is None else address
    log = world.directory / "engine.log"
    return EmbeddedEngine(paths, chosen, log=log, environ=world.environ, extra_args=extra_args)


def test_serves_on_a_socket_and_leaves_nothing(world: World) -> None:
    socket_path = Path(world.runtime.name) / "engine.sock"
    with engine_of(world, paths(world)) as engine:
        engine.wait_ready(PATIENCE_S)
        assert engine.base_url == f"unix:{socket_path}"
        assert engine.served_name == "small"
        assert socket_path.is_socket()
    assert not socket_path.exists()
    world.wait_until_all_are_gone()


def test_serves_on_a_port(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with engine_of(world, paths(world), address=port) as engine:
        engine.wait_ready(PATIENCE_S)
        assert engine.base_url == f"http://127.0.0.1:{port}"
        assert world.read("engine.json")["argv"][1:5] == ["--host", "127.0.0.1", "--port", str(port)]


def test_the_flags_and_the_environment_of_the_cpu(world: World) -> None:
    world.variables = {"VLLM_BASE_URL": "x", "VLLM_VERSION": "x", "PYTHONPATH": "/x", "HF_TOKEN": "mine"}
    engine = engine_of(world, paths(world), "--max-num-seqs", "4")
    with engine:
        engine.wait_ready(PATIENCE_S)
    told = world.read("engine.json")
    assert told["argv"][:2] == ["/models/small", "--uds"]
    assert flags(told["argv"]) == [
        *("--served-model-name", "small"),
        "--enforce-eager",
        *("--max-model-len", "2048"),
        *("--max-num-seqs", "16"),
        *("--dtype", "bfloat16"),
        *("--max-num-seqs", "4"),
    ]
    environ = told["environ"]
    assert not {"VLLM_BASE_URL", "VLLM_VERSION", "PYTHONPATH"} & environ.keys()
    assert environ["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] == "3600"
    assert environ["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert environ["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))
    assert environ["HF_TOKEN"] == "mine"


def test_a_gpu_gets_vllms_own_defaults(world: World) -> None:
    with engine_of(world, paths(world, "gpu")) as engine:
        engine.wait_ready(PATIENCE_S)
    told = world.read("engine.json")
    assert flags(told["argv"]) == ["--served-model-name", "small"]
    assert not {name for name in told["environ"] if name.startswith("VLLM_CPU")}


def test_replaces_the_socket_that_a_dead_engine_left(world: World) -> None:
    path = Path(world.runtime.name) / "engine.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    log = world.directory / "engine.log"
    log.write_text("an earlier engine\n")
    with engine_of(world, paths(world), address=path) as engine:
        engine.wait_ready(PATIENCE_S)
        assert "an earlier engine" not in log.read_text()
    assert not path.exists()
    assert log.exists()


def test_killed_it_is_gone_with_its_core(world: World) -> None:
    with engine_of(world, paths(world)) as engine:
        engine.wait_ready(PATIENCE_S)
        world.wait_for("engine core")
        engine.program.kill()
        world.wait_until_all_are_gone()
        assert engine.program.wait(PATIENCE_S) == 128 + signal.SIGKILL


def test_frozen_it_does_not_answer_until_it_is_thawed(world: World) -> None:
    with engine_of(world, paths(world)) as engine:
        engine.wait_ready(PATIENCE_S)
        assert engine.program.pid is not None
        os.killpg(engine.program.pid, signal.SIGSTOP)
        with pytest.raises(
            RunError,
            match=r"vLLM was not ready after \d s \(TimeoutError: timed out\): read .*engine\.log and run it again",
        ):
            engine.wait_ready(0.0)
        os.killpg(engine.program.pid, signal.SIGCONT)
        engine.wait_ready(PATIENCE_S)
        assert engine.program.pid == os.getpgid(engine.program.pid)


def test_shows_how_long_it_takes(world: World) -> None:
    out = io.StringIO()
    with engine_of(world, paths(world)) as engine:
        engine.wait_ready(PATIENCE_S, Progress(out, every_s=0))
    first, *meanwhile, last = out.getvalue().splitlines()
    assert first == "Starting vLLM ..."
    for line in meanwhile:  # none if it is ready at the first look
        assert re.fullmatch(r"Starting vLLM: \d+% \(\d+ s of about 60 s\)", line)
    assert re.fullmatch(r"Starting vLLM: done in \d+ s", last)


def test_an_engine_that_ends_instead_gives_its_reason(world: World) -> None:
    world.script(engine=[1, "(EngineCore pid=7) ERROR 11-22 16:47:42 [core.py:402] ValueError: no memory", "bye"])
    log = world.directory / "engine.log"
    engine = engine_of(world, paths(world))
    with engine, pytest.raises(RunError) as caught:
        engine.wait_ready(PATIENCE_S)
    assert str(caught.value) == (
        f"vLLM ended before it was ready (exit status 1, “ValueError: no memory”): read {log} and run it again."
    )
    world.wait_until_all_are_gone()


def test_an_engine_that_is_not_there_gives_its_reason(world: World) -> None:
    world.python.unlink()
    engine = engine_of(world, paths(world))
    with engine, pytest.raises(RunError, match=r"exit status 127, “cannot start .*No such file"):
        engine.wait_ready(PATIENCE_S)


def test_refuses_a_path_that_no_socket_can_have(world: World) -> None:
    engine = engine_of(world, paths(world), address=Path("/tmp") / ("x" * 103))
    with pytest.raises(RunError, match="at most 107 bytes"):
        engine.start()


def test_an_engine_that_was_not_started_has_no_program(world: World) -> None:
    engine = engine_of(world, paths(world), address=1)
    with pytest.raises(RuntimeError, match="not been started"):
        engine.program  # noqa: B018 -- the property raises
    engine.stop()
