"""TOML and environment → Config: precedence, every kind of fault, and files."""

import os
from pathlib import Path

import pytest

from sluicegate.config import load as load_module
from sluicegate.config.load import ConfigError, Fault, Origin, load, load_file, resolve, resolve_file
from sluicegate.config.schema import (
    AdmissionConfig,
    Config,
    EngineConfig,
    LogConfig,
    QueueMode,
    TcpAddress,
    TimeoutConfig,
    UnixAddress,
)
from tests.unit.config.broken import BROKEN, Broken


@pytest.mark.parametrize("text", [None, "", "# nothing\n", "[admission]\n"])
def test_nothing_set_is_the_default(text: str | None) -> None:
    assert load(text, "f.toml", {}) == Config()


def test_each_kind_of_value_in_a_file() -> None:
    text = """
        listen = "unix:/run/gate.sock"
        [engine]
        base_url = "http://gpu1:8000/v1"
        model_name = "Qwen/Qwen3-8B"
        [admission]
        max_active = 16
        queue_mode = "reject"
        [timeouts]
        idle_s = 0.5
        drain_s = 45
        [log]
        level = "WARNING"
    """
    config = load(text, "f.toml", {})
    assert config == Config(
        listen=(UnixAddress("/run/gate.sock"),),
        engine=EngineConfig(base_url=TcpAddress("gpu1", 8000), model_name="Qwen/Qwen3-8B"),
        admission=AdmissionConfig(max_active=16, queue_mode=QueueMode.REJECT),
        timeouts=TimeoutConfig(idle_s=0.5, drain_s=45.0),
        log=LogConfig(level="warning"),
    )
    assert type(config.timeouts.drain_s) is float
    assert type(config.admission.queue_mode) is QueueMode


def test_every_variable() -> None:
    environ = {
        "VLLM_BASE_URL": "unix:/run/vllm.sock",
        "MODEL_NAME": "m",
        "MAX_ACTIVE": "+7",
        "QUEUE_MODE": "Reject",
        "QUEUE_MAX": "0",
        "QUEUE_TIMEOUT_S": "1e1",
        "REQUEST_TIMEOUT_S": ".5",
        "LOG_FORMAT": "json",
        "LOG_LEVEL": "DEBUG",
        "LISTEN": "[::1]:9",
    }
    assert load(None, "f.toml", environ) == Config(
        listen=(TcpAddress("::1", 9),),
        engine=EngineConfig(base_url=UnixAddress("/run/vllm.sock"), model_name="m"),
        admission=AdmissionConfig(max_active=7, queue_mode=QueueMode.REJECT, queue_max=0, queue_timeout_s=10.0),
        timeouts=TimeoutConfig(request_s=0.5),
        log=LogConfig(format="json", level="debug"),
    )


@pytest.mark.parametrize(
    "environ",
    [{"REQUEST_TIMEOUT_S": "0.01"}, {"MAX_ACTIVE": "65536"}, {"QUEUE_TIMEOUT_S": "86400"}, {"QUEUE_MAX": "0"}],
)
def test_one_variable_alone_never_contradicts_a_default(environ: dict[str, str]) -> None:
    assert load(None, "f.toml", environ) != Config()


def test_environment_wins() -> None:
    """The environment wins over the file, and an empty variable counts as unset."""
    text = "[admission]\nmax_active = 3\nqueue_max = 4"
    resolved = resolve(text, "f.toml", {"MAX_ACTIVE": "5", "QUEUE_MAX": "", "UNRELATED": "x"})
    assert resolved.config.admission == AdmissionConfig(max_active=5, queue_max=4)
    assert resolved.origins == {
        "admission.max_active": Origin("environment", "MAX_ACTIVE"),
        "admission.queue_max": Origin("f.toml", "admission.queue_max"),
    }
    assert list(map(str, resolved.origins.values())) == ["environment MAX_ACTIVE", "f.toml"]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_one_fault_is_named(broken: Broken) -> None:
    with pytest.raises(ConfigError) as caught:
        load(broken.text, "f.toml", broken.environ)
    (fault,) = caught.value.faults
    assert isinstance(fault.key, str)
    # startswith: the list of what is known at the top of the file is checked once and not in every case.
    assert str(caught.value).startswith(broken.expected("f.toml"))
    assert "sesame" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_all_faults_are_found_at_once() -> None:
    text = "listen = 1\nnope = 2\nlog = 3\n[admission]\nmax_active = 0\n[timeouts]\nidle_s = 'x'\nidle = 3"
    with pytest.raises(ConfigError) as caught:
        load(text, "f.toml", {"MAX_ACTIVE": "x", "LOG_LEVEL": "loud"})
    assert [(fault.where, fault.key, fault.value) for fault in caught.value.faults] == [
        ("f.toml", "listen", "1"),
        ("f.toml", "nope", None),
        ("f.toml", "log", "3"),
        ("f.toml", "admission.max_active", "0"),
        ("f.toml", "timeouts.idle_s", '"x"'),
        ("f.toml", "timeouts.idle", None),
        ("environment", "MAX_ACTIVE", '"x"'),
        ("environment", "LOG_LEVEL", '"loud"'),
    ]


def test_a_syntax_error_does_not_hide_the_environment() -> None:
    with pytest.raises(ConfigError) as caught:
        load("x", "f.toml", {"MAX_ACTIVE": "x"})
    assert [fault.where for fault in caught.value.faults] == ["f.toml", "environment"]


def test_a_valid_variable_does_not_excuse_the_file() -> None:
    with pytest.raises(ConfigError) as caught:
        load("[admission]\nmax_active = 0", "f.toml", {"MAX_ACTIVE": "4"})
    assert [fault.key for fault in caught.value.faults] == ["admission.max_active"]


@pytest.mark.parametrize(
    ("text", "environ", "fault"),
    [
        # The engine's address is blamed wherever it was set, else the gateway's.
        (
            'listen = "127.0.0.1:1"',
            {"VLLM_BASE_URL": "http://127.0.0.1:1"},
            ("environment", "VLLM_BASE_URL", '"http://127.0.0.1:1"'),
        ),
        ('listen = "127.0.0.1:8000"', {}, ("f.toml", "listen", '"127.0.0.1:8000"')),
    ],
)
def test_a_collision_is_blamed_on_what_was_set(
    text: str, environ: dict[str, str], fault: tuple[str, str, str | None]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text, "f.toml", environ)
    assert [(f.where, f.key, f.value) for f in caught.value.faults] == [fault]


def test_no_collision_with_a_refused_address() -> None:
    """A refused listen address is the only error; no collision with it is reported."""
    # The default of `listen`, port 8080, stands in for the refused one and must not be held against the engine.
    with pytest.raises(ConfigError) as caught:
        load('listen = "8081"', "f.toml", {"VLLM_BASE_URL": "http://127.0.0.1:8080"})
    assert [fault.key for fault in caught.value.faults] == ["listen"]


def test_a_named_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(b"\xef\xbb\xbf[admission]\r\nmax_active = 9\r\n")
    assert load_file(file, {"QUEUE_MAX": "1"}).admission == AdmissionConfig(max_active=9, queue_max=1)
    resolved = resolve_file(file, {})
    assert (resolved.source, resolved.absent) == (str(file), False)


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    with pytest.raises(ConfigError) as caught:
        load_file(file, {})
    assert caught.value.faults == [Fault(str(file), "", None, "cannot be read: No such file or directory")]


def test_a_file_called_environment_is_still_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("environment").write_text("[admission]\nmax_active = '4'")
    with pytest.raises(ConfigError, match="must be a whole number"):
        load_file(Path("environment"), {})


def test_the_default_file_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "DEFAULT_PATH", tmp_path / "a.toml")
    resolved = resolve_file(None, {"MAX_ACTIVE": "9"})
    assert resolved.absent
    assert resolved.config.admission.max_active == 9


def test_the_default_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.toml"
    file.write_text("listen = '127.0.0.1:1'")
    monkeypatch.setattr(load_module, "DEFAULT_PATH", file)
    assert load_file(None, {}).listen == (TcpAddress("127.0.0.1", 1),)


def test_an_unreadable_default_file_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "DEFAULT_PATH", tmp_path)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_file(None, {})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"# one\n# caf\xe9\n", ":2: not TOML: the text is not UTF-8"),
        (b"\n\xe9", ":2: not TOML: the text is not UTF-8"),
        (b"#" * (load_module.FILE_MAX_BYTES + 1), ": longer than 1048576 bytes: not a configuration"),
    ],
)
def test_a_file_that_is_no_text_of_ours(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_file(file, {})
    assert str(caught.value) == f"{file}{message}"
    assert [fault.key for fault in caught.value.faults] == [""]


def test_the_largest_file(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(b"#" * load_module.FILE_MAX_BYTES)
    assert load_file(file, {}) == Config()


def test_huge_file_is_refused_unread(tmp_path: Path) -> None:
    """A file that does not fit into memory is refused before it is read."""
    file = tmp_path / "a.toml"
    file.touch()
    os.truncate(file, 1 << 42)
    with pytest.raises(ConfigError, match="longer than 1048576 bytes"):
        load_file(file, {})


TRACED = '[tracing]\nendpoint = "http://otel"\n'


@pytest.mark.parametrize(
    ("present", "accepted"),
    [({"trio", "opentelemetry.exporter.otlp.proto.http"}, True), ({"trio"}, False), (set(), True)],
    ids=["extra", "no extra", "bare wheel"],
)
def test_tracing_needs_its_extra(monkeypatch: pytest.MonkeyPatch, present: set[str], accepted: bool) -> None:
    """Out of a wheel that is not installed a configuration is checked for a host with what nobody knows."""

    def find(name: str) -> object:
        if name in present:
            return object()
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(load_module, "find_spec", find)
    assert load("[tracing]\nsample_ratio = 0.5\n", "f.toml", {}).tracing.endpoint == ""
    if accepted:
        assert load(TRACED, "f.toml", {}).tracing.endpoint == "http://otel"
        return
    with pytest.raises(ConfigError) as caught:
        load(TRACED, "f.toml", {})
    message = "needs OpenTelemetry: pip install 'sluicegate[tracing]' in the gateway's environment"
    assert list(map(str, caught.value.faults)) == [f'f.toml: tracing.endpoint = "http://otel": {message}']
