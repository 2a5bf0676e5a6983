"""The commands: what they print, where, and with which exit code."""

import errno
import os
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import sluicegate
from sluicegate import cli
from sluicegate.config import load as load_module
from sluicegate.config.schema import AdmissionConfig, Config
from sluicegate.config.settings import SETTINGS
from sluicegate.service.systemd import HandoverError
from tests.unit.config.broken import BROKEN, Broken

NAMES = [setting.env for setting in SETTINGS.values() if setting.env]
Read = Callable[[], Config]
Serve = Callable[[Callable[[Config, Read], int]], None]


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither this machine's variables nor its default file reach a test."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(load_module, "DEFAULT_PATH", tmp_path / "default.toml")


@pytest.fixture
def lifecycle(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Puts a function in the place of lifecycle.serve; without one, to serve is a mistake."""

    def replace(serve: Callable[[Config, Read], int]) -> None:
        module = ModuleType("sluicegate.lifecycle")
        module.__dict__["serve"] = serve
        monkeypatch.setitem(sys.modules, "sluicegate.lifecycle", module)

    def must_not_start(config: Config, read: Read) -> int:
        raise AssertionError(f"started with {config}")

    replace(must_not_start)
    return replace


def run(*argv: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which sees no other configuration than `environ`."""
    source = str(Path(sluicegate.__file__).parents[1])
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    return subprocess.run(
        [sys.executable, "-m", "sluicegate", *argv],
        env=clean | {"PYTHONPATH": source} | environ,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", ["check", "serve"])
@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
@pytest.mark.usefixtures("lifecycle")
def test_a_broken_configuration_ends_with_its_fault(
    command: str,
    broken: Broken,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "f.toml"
    file.write_text(broken.text)
    for name, value in broken.environ.items():
        monkeypatch.setenv(name, value)
    assert cli.main([command, "--config", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(broken.expected(str(file)))
    assert err.count("\n") == 1
    assert "sesame" not in err


@pytest.mark.parametrize("command", ["check", "serve"])
@pytest.mark.parametrize("broken", [BROKEN[0], BROKEN[-1]], ids=lambda broken: broken.name)
def test_the_same_in_a_process(command: str, broken: Broken, tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text(broken.text)
    done = run(command, "--config", str(file), environ=broken.environ)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(broken.expected(str(file)))


def test_every_fault_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "f.toml"
    file.write_text("x = 1\n[admission]\nmax_active = 0\n")
    assert cli.main(["check", "--config", str(file)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize("command", ["check", "serve"])
@pytest.mark.usefixtures("lifecycle")
def test_a_named_file_must_exist(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "absent.toml"
    assert cli.main([command, "--config", str(file)]) == 2
    assert capsys.readouterr().err == f"{file}: cannot be read: No such file or directory\n"


def test_check_says_which_file_is_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "f.toml"
    file.write_text("")
    assert cli.main(["check", "--config", str(file)]) == 0
    assert capsys.readouterr() == (f"{file}: valid\n", "")


def test_check_without_any_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/default.toml: absent; the environment is valid\n"


@pytest.mark.parametrize("option", ["-v", "--show"])
def test_check_shows_the_configuration_and_its_origins(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "f.toml"
    file.write_text('[admission]\nmax_active = 5\n[engine]\nmodel_name = "a\\"b\\\\c"')
    monkeypatch.setenv("QUEUE_MODE", "reject")
    assert cli.main(["check", option, "--config", str(file)]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == f"# {file}: valid"
    assert f"max_active = 5  # from {file}" in lines
    assert 'queue_mode = "reject"  # from environment QUEUE_MODE' in lines
    assert "queue_max = 100" in lines
    document = tomllib.loads(out)
    assert document["engine"]["model_name"] == 'a"b\\c'
    assert document["listen"] == "127.0.0.1:8080"


def test_serve_hands_the_configuration_over(
    lifecycle: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[Config] = []

    def serve(config: Config, read: Read) -> int:
        served.append(config)
        monkeypatch.setenv("MAX_ACTIVE", "4")
        served.append(read())
        return 7

    lifecycle(serve)
    monkeypatch.setenv("MAX_ACTIVE", "3")
    assert cli.main(["serve"]) == 7
    assert served == [Config(admission=AdmissionConfig(max_active=slots)) for slots in (3, 4)]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("listen", "error", "sentence"),
    [
        (
            "127.0.0.1:80",
            OSError(errno.EADDRINUSE, "Address already in use"),
            "cannot listen on 127.0.0.1:80: Address already in use: another program listens there",
        ),
        (
            "127.0.0.1:80",
            PermissionError(errno.EACCES, "Permission denied"),
            "cannot listen on 127.0.0.1:80: Permission denied: ports below 1024 need CAP_NET_BIND_SERVICE",
        ),
        (
            "[2001:db8::1]:80",
            OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"),
            "cannot listen on [2001:db8::1]:80: Cannot assign requested address: this host has no such address",
        ),
        (
            "nowhere:80",
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "cannot listen on nowhere:80: Name or service not known: the host's name must have an address",
        ),
        (
            "unix:/run/gate.sock",
            OSError(errno.EADDRINUSE, "Address already in use"),
            "cannot listen on unix:/run/gate.sock: Address already in use: another program listens there, or left its",
        ),
        (
            "unix:/run/gate.sock",
            PermissionError(errno.EACCES, "Permission denied"),
            "cannot listen on unix:/run/gate.sock: Permission denied: this user may not create a file there",
        ),
        (
            "unix:/nowhere/gate.sock",
            FileNotFoundError(errno.ENOENT, "No such file or directory"),
            "cannot listen on unix:/nowhere/gate.sock: No such file or directory: its directory does not exist",
        ),
        (
            "127.0.0.1:80",
            OSError(errno.EMFILE, "Too many open files"),
            "cannot serve on 127.0.0.1:80: Too many open files\n",
        ),
        ("127.0.0.1:80", OSError("no address"), "cannot serve on 127.0.0.1:80: no address\n"),
    ],
)
def test_an_address_that_cannot_be_had_is_one_sentence(
    lifecycle: Serve,
    listen: str,
    error: OSError,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def serve(config: Config, read: Read) -> int:
        raise error

    lifecycle(serve)
    monkeypatch.setenv("LISTEN", listen)
    assert cli.main(["serve"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"sluicegate: {sentence}")
    assert err.count("\n") == 1


def test_unsuitable_systemd_socket_is_one_sentence(lifecycle: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """A socket that systemd should not have passed gives one sentence on stderr and exit status 1."""

    def serve(config: Config, read: Read) -> int:
        raise HandoverError("systemd's descriptor 3 (http) does not listen: the socket unit needs Accept=no")

    lifecycle(serve)
    assert cli.main(["serve"]) == 1
    sentence = "sluicegate: systemd's descriptor 3 (http) does not listen: the socket unit needs Accept=no\n"
    assert capsys.readouterr() == ("", sentence)


@pytest.mark.parametrize(
    ("new", "code", "verdict"),
    [
        ("", 0, "valid; nothing changes"),
        ("[admission]\nmax_active = 2\n", 0, "valid; nothing changes"),
        ("[admission]\nmax_active = 4\n", 0, "valid; a reload applies it: admission.max_active 2 → 4"),
        (
            'listen = "0.0.0.0:80"\n[admission]\nmax_active = 4\n[log]\nformat = "text"\n',
            3,
            'valid; a reload is refused: listen "127.0.0.1:8080" → "0.0.0.0:80", log.format "auto" → "text": this '
            "cannot change while the gateway runs; nothing of it is applied; "
            "systemctl restart sluicegate applies all of it",
        ),
    ],
)
def test_check_says_whether_a_reload_is_enough(
    new: str, code: int, verdict: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, running = tmp_path / "new.toml", tmp_path / "running.toml"
    file.write_text(new)
    running.write_text("")
    assert cli.main(["check", "--config", str(file), "--running", str(running)]) == code
    assert capsys.readouterr() == (f"{file}: {verdict}\n", "")
    assert cli.main(["check", "--show", "--config", str(file), "--running", str(running)]) == code
    shown = capsys.readouterr().out
    assert shown.startswith(f"# {file}: {verdict}\n")
    tomllib.loads(shown)


def test_check_against_a_file_that_is_at_fault_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text("")
    bad.write_text("x = 1\n")
    assert cli.main(["check", "--config", str(good), "--running", str(bad)]) == 1
    assert capsys.readouterr().err.startswith(f"{bad}: x: unknown key")
    assert cli.main(["check", "--config", str(good), "--running", str(tmp_path / "absent")]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert cli.main(["check", "--config", str(bad), "--running", str(good)]) == 2
    assert capsys.readouterr().err.startswith(f"{bad}: x: unknown key")


def test_check_weighs_the_environment_in_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, running = tmp_path / "new.toml", tmp_path / "running.toml"
    file.write_text('listen = "0.0.0.0:80"\n')
    running.write_text("")
    monkeypatch.setenv("LISTEN", "127.0.0.1:9000")
    assert cli.main(["check", "--config", str(file), "--running", str(running)]) == 0
    assert capsys.readouterr().out == f"{file}: valid; nothing changes\n"


def test_a_port_in_use_is_told_by_the_real_gateway() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("serve", "--config", os.devnull, environ={"LISTEN": address})
    assert done.returncode == 1
    assert done.stderr.startswith(f"sluicegate: cannot listen on {address}: Address already in use: ")
    assert done.stderr.count("\n") == 1


def test_run_hands_its_arguments_over_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[list[str]] = []

    def main(argv: list[str]) -> int:
        received.append(argv)
        return 5

    module = ModuleType("sluicegate_run.run")
    module.__dict__["main"] = main
    monkeypatch.setitem(sys.modules, "sluicegate_run.run", module)
    assert cli.main(["run", "--help", "--port", "1", "--", "x"]) == 5
    assert received == [["--help", "--port", "1", "--", "x"]]


class MissingModule:
    """A finder that behaves as if `name` were not installed once `sluicegate_run` is imported."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname.startswith("sluicegate_run"):
            raise ModuleNotFoundError(f"No module named {self.name!r}", name=self.name)


def without(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "sluicegate_run"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [MissingModule(module), *sys.meta_path])


def test_run_in_the_deployed_package_says_where_it_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without("sluicegate_run", monkeypatch)
    assert cli.main(["run"]) == 1
    error = capsys.readouterr().err
    assert (
        error
        == "sluicegate run is not in the deployed package: run `make run` in a checkout of Sluicegate's repository\n"
    )


def test_run_reports_another_missing_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """`run` does not hide that a module other than its own is missing."""
    without("trio", monkeypatch)
    with pytest.raises(ModuleNotFoundError, match="trio"):
        cli.main(["run"])


def test_version() -> None:
    done = run("--version", environ={})
    assert (done.returncode, done.stdout, done.stderr) == (0, f"sluicegate {sluicegate.__version__}\n", "")


def test_the_process_has_the_command_s_exit_code() -> None:
    done = run("check", "-v", "--config", os.devnull, environ={"MAX_ACTIVE": "3"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "max_active = 3  # from environment MAX_ACTIVE" in done.stdout


@pytest.mark.parametrize("argv", [[], ["frobnicate"], ["check", "--nope"], ["serve", "x"]])
@pytest.mark.usefixtures("lifecycle")
def test_a_wrong_command_line_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: sluicegate")


def test_arguments_come_from_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sluicegate", "check"])
    assert cli.main() == 0
    assert "valid" in capsys.readouterr().out
