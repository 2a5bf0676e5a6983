"""The unit files: understood by every systemd from 249 to 256, sandboxed, and in agreement with what they start."""

import ast
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from sluicegate.config.schema import Config
from tests.systemd import units
from tests.systemd.programs import load

#: Directives that systemd 249 (Ubuntu 22.04) does not know, and the version that brought each (systemd's own manual).
TOO_NEW = {
    "ExecSearchPath": 250,
    "ExitType": 250,
    "LoadCredentialEncrypted": 250,
    "SetCredentialEncrypted": 250,
    "RestrictFileSystems": 250,
    "RestrictNetworkInterfaces": 250,
    "RuntimeRandomizedExtraSec": 250,
    "StartupAllowedCPUs": 252,
    "StartupAllowedMemoryNodes": 252,
    "TTYColumns": 250,
    "TTYRows": 250,
    "ConditionMemoryPressure": 250,
    "ConditionCPUPressure": 250,
    "ConditionIOPressure": 250,
    "ExtensionDirectories": 251,
    "ConditionCredential": 252,
    "LogFilterPatterns": 253,
    "MemoryZSwapMax": 253,
    "OpenFile": 253,
    "ReloadSignal": 253,
    "StartupMemoryHigh": 253,
    "StartupMemoryLow": 253,
    "StartupMemoryMax": 253,
    "StartupMemorySwapMax": 253,
    "DefaultStartupMemoryLow": 253,
    "DelegateSubgroup": 254,
    "FileDescriptorStorePreserve": 254,
    "ImportCredential": 254,
    "MemoryKSM": 254,
    "MemoryPressureThresholdSec": 254,
    "MemoryPressureWatch": 254,
    "PollLimitBurst": 254,
    "PollLimitIntervalSec": 254,
    "RestartMaxDelaySec": 254,
    "RestartMode": 254,
    "RestartSteps": 254,
    "RootEphemeral": 254,
    "CoredumpReceive": 255,
    "NFTSet": 255,
    "SetLoginEnvironment": 255,
    "SurviveFinalKillSignal": 255,
    "ExtensionImagePolicy": 254,
    "MountImagePolicy": 254,
    "RootImagePolicy": 254,
    "ManagedOOMMemoryPressureDurationSec": 257,
    "MemoryZSwapWriteback": 256,
    "PassFileDescriptorsToExec": 256,
    "DeferTrigger": 258,
    "PrivateBPF": 258,
    "PrivatePIDs": 257,
}
#: Values that are younger than their directive.
TOO_NEW_VALUES = {
    ("Type", "notify-reload"): 253,
    ("CPUWeight", "idle"): 252,
    ("PrivateUsers", "identity"): 257,
    ("PrivateTmp", "disconnected"): 257,
    ("ProtectControlGroups", "private"): 257,
    ("ProtectControlGroups", "strict"): 257,
    ("ProtectHostname", "private"): 257,
}

OWN = ["sluicegate.service", "sluicegate.socket", "sluicegate-diagnostics@vllm@main.service.service"]
OWN += ["vllm@main.service", "inference.slice", "open-webui.service"]
DROPPED_INTO = sorted(path.name.removesuffix(".d") for path in (units.SYSTEMD / "dropins").iterdir())

#: The most that `systemd-analyze security` may say, times ten.
EXPOSURE = {
    "sluicegate.service": 15,
    "sluicegate-diagnostics@vllm@main.service.service": 15,
    "vllm@main.service": 30,
    "open-webui.service": 30,
    **dict.fromkeys(DROPPED_INTO, 30),
}


@pytest.mark.parametrize(
    "path", units.files(), ids=lambda path: path.name if path.suffix != ".conf" else path.parent.name
)
def test_nothing_is_too_new_for_systemd_249(path: Path) -> None:
    found = units.lines(path)
    assert found
    for line in found:
        assert line.key not in TOO_NEW, f"{line.key}= needs systemd {TOO_NEW.get(line.key)}"
        assert (line.key, line.value) not in TOO_NEW_VALUES, f"{line.key}={line.value} is too new"
        # %d, the directory of the credentials, came with systemd 250.
        assert not re.search(r"(?<!%)(?:%%)*%[^%nipIuhtSCLEN]", line.value), f"{line.value}: unknown specifier"


@pytest.mark.parametrize("unit", OWN + DROPPED_INTO)
def test_systemd_understands_it(root: Path, unit: str) -> None:
    done = units.analyze(root, "verify", "--man=no", unit)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_systemd_would_complain_about_a_mistake(tmp_path: Path) -> None:
    units.install(tmp_path)
    with (tmp_path / "etc/systemd/system/prometheus.service.d/10-sluicegate.conf").open("a") as dropin:
        dropin.write("ProtectClok=yes\n")
    (tmp_path / "usr/local/lib/sluicegate/vllm-start").unlink()
    assert "ProtectClok" in units.analyze(tmp_path, "verify", "--man=no", "prometheus.service").stderr
    assert "vllm-start is not executable" in units.analyze(tmp_path, "verify", "--man=no", "vllm@main.service").stderr


@pytest.mark.parametrize("unit", EXPOSURE)
def test_it_is_sandboxed(root: Path, unit: str) -> None:
    done = units.analyze(root, "security", "--offline=true", f"--threshold={EXPOSURE[unit]}", unit)
    assert done.returncode == 0, "\n".join(line for line in done.stdout.splitlines() if not line.startswith("✓"))
    assert "Overall exposure level" in done.stdout


def test_a_unit_without_its_drop_in_would_be_noticed(tmp_path: Path) -> None:
    units.install(tmp_path)
    for name in DROPPED_INTO:
        (tmp_path / f"etc/systemd/system/{name}.d/10-sluicegate.conf").unlink()
        assert units.analyze(tmp_path, "security", "--offline=true", "--threshold=30", name).returncode != 0


#: Retried without a limit: without it no alert reports a GPU's fault, and what it waits for may take long.
UNLIMITED = {"nvidia-dcgm-exporter.service.d"}


def test_every_service_has_a_limit_to_its_restarts() -> None:
    for path in units.files():
        keys = {line.key for line in units.lines(path)}
        if path.parent.name in UNLIMITED:
            assert [line.value for line in units.lines(path) if line.key == "StartLimitIntervalSec"] == ["0"]
            # A pause, so that it does no harm.
            assert units.seconds(f"dropins/{path.parent.name}/{path.name}", "RestartSec") >= 5
        elif "Restart" in keys or path.suffix == ".conf":
            assert {"StartLimitIntervalSec", "StartLimitBurst"} <= keys, path.name
        values = [line.value for line in units.lines(path) if line.key == "Restart"]
        assert values in ([], ["on-failure"]), path.name


def test_failing_service_reaches_its_limit() -> None:
    """A service that fails at every start reaches the limit of starts within its interval."""
    for name in ("sluicegate.service", "vllm@.service", "open-webui.service"):
        (written,) = units.values(name, "RestartSec")
        pause = float(written.removesuffix("ms")) / 1000 if written.endswith("ms") else float(written.removesuffix("s"))
        assert pause * units.seconds(name, "StartLimitBurst") < units.seconds(name, "StartLimitIntervalSec")


def test_the_gates_deadlines_fit_the_daemon() -> None:
    """After the drain, requests that are cut off still tell their clients."""
    assert units.seconds("sluicegate.service", "TimeoutStopSec") >= Config().timeouts.drain_s + 10


def test_the_engines_deadlines_fit_its_programs() -> None:
    start, ready, preflight = load("vllm-start"), load("vllm-wait-ready"), load("vllm-preflight")
    assert units.seconds("vllm@.service", "TimeoutStartSec") > ready.LARGEST_TIMEOUT_S + preflight.LARGEST_WAIT_S
    assert units.seconds("vllm@.service", "TimeoutStopSec") > start.LARGEST_SHUTDOWN_S
    assert start.SOCKET == ready.SOCKET == "engine.sock"


def test_the_diagnostics_deadline_fits_its_program() -> None:
    program = load("sluicegate-diagnostics")
    # All commands, and one of them that does not die.
    at_most = program.TOTAL_S + program.KILLED_S * len(program.commands("x.service"))
    assert units.seconds("sluicegate-diagnostics@.service", "TimeoutStartSec") > at_most


def test_a_failure_of_either_service_saves_diagnostics() -> None:
    for name in ("sluicegate.service", "vllm@.service"):
        assert units.values(name, "OnFailure") == ["sluicegate-diagnostics@%n.service"]


def test_refused_configuration_stays_outside() -> None:
    """A reload checks the configuration first, so that the daemon never reads an invalid one."""
    check, signal = units.values("sluicegate.service", "ExecReload")
    (serve,) = units.values("sluicegate.service", "ExecStart")
    assert check == serve.replace(" serve ", " check ")
    assert signal == "/bin/kill -HUP $MAINPID"


def test_only_the_gate_listens_outside() -> None:
    assert units.values("sluicegate.socket", "ListenStream") == ["0.0.0.0:8080"]
    (exporter,) = filter(None, units.values("dropins/nvidia-dcgm-exporter.service.d/10-sluicegate.conf", "ExecStart"))
    assert "-a 127.0.0.1:9400" in exporter
    assert "-r localhost:5555" in exporter
    assert "--host 127.0.0.1 --port 3000" in units.values("open-webui.service", "ExecStart")[0]


def test_gpu_units_may_use_the_gpu() -> None:
    """A single PrivateDevices= in a unit or drop-in would hide it."""
    for name in ("sluicegate.service", "vllm@.service", "sluicegate-diagnostics@.service"):
        assert units.values(name, "PrivateDevices") == []
        assert {"char-nvidia rw", "char-nvidiactl rw"} <= set(units.values(name, "DeviceAllow"))
    assert "char-nvidia-uvm rw" in units.values("vllm@.service", "DeviceAllow")
    assert units.values("vllm@.service", "MemoryDenyWriteExecute") == []


def test_open_webui_writes_to_its_state_only() -> None:
    """ProtectSystem=strict makes everything else read-only, its installation first: it logs an error for each file."""
    environment = dict(line.partition("=")[::2] for line in units.values("open-webui.service", "Environment"))
    (state,) = units.values("open-webui.service", "StateDirectory")
    for name in ("DATA_DIR", "HOME", "STATIC_DIR"):
        assert Path(environment[name]).is_relative_to(f"/var/lib/{state}"), name


def test_open_webui_asks_for_little() -> None:
    """Nobody can sign up, a task's answer is short, and the gateway can tell tasks and users from each other."""
    values = units.values("open-webui.service", "Environment")
    environment = dict(each.partition("=")[::2] for value in values for each in shlex.split(value))
    assert environment["ENABLE_SIGNUP"] == "false"
    assert json.loads(environment["TASK_MODEL_PARAMS"]) == {"max_tokens": 64}
    assert json.loads(environment["OPENAI_API_CONFIGS"]) == {"0": {"headers": {"X-Task": "{{TASK}}"}}}
    assert environment["ENABLE_FORWARD_USER_INFO_HEADERS"] == "true"
    # What the role and its user write comes last and wins.
    files = units.values("open-webui.service", "EnvironmentFile")
    assert files == ["-/etc/open-webui/admin-password", "-/etc/open-webui/environment"]


def test_engines_keep_their_shared_memory() -> None:
    """RemoveIPC= removes all of the user's when one unit stops, and all instances share a user."""
    assert units.values("vllm@.service", "RemoveIPC") == []


@pytest.mark.parametrize("path", sorted(units.LIBEXEC.iterdir()), ids=lambda path: path.name)
def test_a_program_runs_on_the_hosts_own_python(path: Path) -> None:
    """Ubuntu 22.04 has Python 3.10; -I keeps an environment file from changing what is imported."""
    text = path.read_text()
    assert text.startswith("#!/usr/bin/python3 -I\n")
    assert path.stat().st_mode & 0o111 == 0o111
    ast.parse(text, feature_version=(3, 10))
    imported = re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE)
    assert set(imported) <= sys.stdlib_module_names


def test_the_node_exporter_may_see_what_it_measures() -> None:
    """Each of these would take a metric away: all mounts read-only, /home missing, no state of the clock."""
    found = units.lines(units.SYSTEMD / "dropins/prometheus-node-exporter.service.d/10-sluicegate.conf")
    keys = {line.key: line.value for line in found}
    assert "ProtectProc" not in keys
    assert "ProtectClock" not in keys
    assert "ProcSubset" not in keys
    assert keys["ProtectHome"] == "read-only"
    assert keys["SystemCallFilter"] == "adjtimex clock_adjtime"
