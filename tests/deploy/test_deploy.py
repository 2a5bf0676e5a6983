"""The whole life of a deployment on one booted host: checked, built, used, disturbed, upgraded, rolled back, removed.

The tests stand in the order of that life and run in it: each finds the host as the one before has left it.
"""

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from grafana.sluicegate_dashboards.expressions import expressions
from tests.deploy import checks, leaks, leftovers, playbooks, snapshot, visitors, wheels
from tests.deploy.checks import LISTENERS, SCRAPES_S, UNITS
from tests.deploy.deployment import PASSWORD, TOKEN, Deployment, prepared
from tests.deploy.eventually import eventually
from tests.deploy.host import Host, booted_host
from tests.deploy.prometheus import Prometheus
from tests.deploy.visitors import Gateway
from tests.promql import metrics_in

pytestmark = pytest.mark.deploy

LATER_VERSION = "99.0.0"

#: One Ansible keeps one core busy.
AT_A_TIME = 2

BAD_INVENTORIES = sorted((Path(__file__).parent / "bad_inventories").glob("*.yml"))
SENTENCE = re.compile(r"# Stops with: (.+)")

#: Gauges that the gateway reads from NVML, of which it exports names alone on a host without a GPU. In every panel they
#: stand beside DCGM's.
NVML = re.compile("api_gpu_(?!available$)")

#: Has no sample on a host without TLS.
CERTIFICATE = "api_tls_certificate_expiry_timestamp_seconds"

#: What must not be read by others → what it holds, so that an empty or a missing file is not taken for a secret.
SECRETS = {
    "/etc/sluicegate/sluicegate.toml": "[admission]",
    "/etc/vllm/main.env": "ENGINE_MODEL=",
    "/etc/vllm/credentials/hf-token": TOKEN,
    "/etc/grafana/credentials/admin-password": PASSWORD,
}
#: Account → the directory of its own secrets.
OWN_SECRETS = {"sluicegate": "/etc/sluicegate/", "vllm": "/etc/vllm/", "grafana": "/etc/grafana/"}
ACCOUNTS = ("sluicegate", "vllm", "prometheus", "grafana")

#: vLLM on two cores needs a minute to start, and longer beside other work (seconds).
ENGINE_S = 300.0
#: The gateway starts in one second; its watchdog waits 20 s, and systemd 5 s more for the process to follow (seconds).
GATEWAY_S = 20.0
WATCHDOG_S = 60.0
#: Long enough for several scrapes while everything happens (seconds).
TRAFFIC_S = 40.0
#: As many as the gateway has slots: they come while it is stopped.
EARLY = 2
#: A stream of so many tokens is still under way when the host has reloaded the gateway.
LONG_STREAM = 200


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """The one host of this module."""
    with booted_host() as host:
        yield host


@pytest.fixture(scope="module")
def deployment(host: Host) -> Iterator[Deployment]:
    """A fresh host, and what the operator writes into the inventory."""
    with prepared(host) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def built(deployment: Deployment) -> Deployment:
    """The deployment after site.yml; if that fails, so does every test that needs it, at once."""
    run = deployment.play("site", log="2-converge").succeeded()
    assert run.changed
    return deployment


@pytest.mark.parametrize("playbook", sorted(path.stem for path in (playbooks.ANSIBLE / "playbooks").glob("*.yml")))
def test_syntax(playbook: str) -> None:
    command = [
        str(Path(sys.executable).with_name("ansible-playbook")), "--syntax-check", f"playbooks/{playbook}.yml",
        "--inventory", "inventories/example",
    ]  # fmt: skip
    result = subprocess.run(command, cwd=playbooks.ANSIBLE, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "WARNING" not in result.stderr


def test_there_are_twelve_bad_inventories() -> None:
    assert len(BAD_INVENTORIES) >= 12


@pytest.fixture(scope="module")
def stopped(deployment: Deployment) -> dict[Path, playbooks.Run]:
    """What site.yml says to each of them: one run each, for the first mistake ends a run for all of its hosts."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        runs = pool.map(
            lambda path: deployment.play("site", "--inventory", str(path), log=f"0-bad-{path.stem}"), BAD_INVENTORIES
        )
        return dict(zip(BAD_INVENTORIES, runs, strict=True))


@pytest.mark.parametrize("path", BAD_INVENTORIES, ids=lambda path: path.stem)
def test_bad_inventory_stops_in_preflight(stopped: dict[Path, playbooks.Run], path: Path) -> None:
    """Each is an inventory with one mistake; its first line is the sentence that the play must print."""
    sentence = SENTENCE.match(path.read_text())
    assert sentence, f"{path.name} does not say what it stops with"
    run = stopped[path]
    assert run.status != 0
    assert [sentence[1] in " ".join(task.message.split()) for task in run.failed] == [True], run.report
    assert run.changed == []


def test_bad_inventories_have_changed_nothing(deployment: Deployment, stopped: dict[Path, playbooks.Run]) -> None:
    assert snapshot.take(deployment.host).changes(deployment.fresh) == []


def test_check_mode_changes_nothing(deployment: Deployment) -> None:
    """Check mode works on a fresh host and leaves it as it is."""
    run = deployment.play("site", "--check", "--diff", log="1-check-fresh").succeeded()
    assert run.changed, "check mode predicts nothing for a host on which everything is to be built"
    assert snapshot.take(deployment.host).changes(deployment.fresh) == []


def test_converge_and_a_chat_is_answered(built: Deployment, gateway: Gateway) -> None:
    answer = gateway.chat("What is the capital of France?")
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] > 0


def test_second_run_changes_nothing(built: Deployment) -> None:
    run = built.play("site", log="3-idempotence").succeeded()
    assert [str(task) for task in run.changed] == []


def test_check_mode_predicts_nothing_for_a_built_host(built: Deployment) -> None:
    run = built.play("site", "--check", "--diff", log="4-check-built").succeeded()
    assert [str(task) for task in run.changed] == []


@pytest.mark.parametrize("unit", [*UNITS, "sluicegate.socket", "nvidia-dcgm.service"])
def test_unit_is_active_and_enabled(built: Deployment, unit: str) -> None:
    checks.active_and_enabled(built.host, unit)


def test_no_unit_has_failed(built: Deployment) -> None:
    checks.no_unit_has_failed(built.host)


@pytest.mark.parametrize(("unit", "limit"), UNITS.items())
def test_unit_is_sandboxed(built: Deployment, unit: str, limit: float) -> None:
    checks.sandboxed(built.host, unit, limit)


def test_listeners_are_exactly_as_intended(built: Deployment) -> None:
    checks.listeners_are_as_intended(built.host)


def test_only_gateway_and_ssh_are_reachable(built: Deployment) -> None:
    """From outside, only the ports of SSH and the gateway accept a connection."""
    reachable = []
    for port in sorted({int(address.rpartition(":")[2]) for address in LISTENERS}):
        probe = ["curl", "--silent", "--max-time", "1", f"telnet://{built.host.network.host}:{port}"]
        # 28: connected, and nothing came within the second. 7: refused; 28 without a connection: dropped.
        result = subprocess.run([*probe, "--write-out", "%{num_connects}"], capture_output=True, text=True, input="")
        if result.stdout.endswith("1"):
            reachable.append(port)
    assert reachable == [22, 8080]


@pytest.mark.parametrize("account", ACCOUNTS)
def test_account_has_no_shell_and_no_password(built: Deployment, account: str) -> None:
    shell = built.host.output("getent", "passwd", account).strip().rpartition(":")[2]
    assert shell in ("/usr/sbin/nologin", "/bin/false")
    assert built.host.output("getent", "shadow", account).split(":")[1][:1] in ("!", "*")


@pytest.mark.parametrize("path", SECRETS)
def test_secret_is_readable_by_nobody_else(built: Deployment, path: str) -> None:
    assert SECRETS[path] in built.host.output("cat", path)
    for account in ("nobody", *ACCOUNTS):
        as_account = ("runuser", "-u", account, "--", "cat")
        built.host.run(*as_account, "/etc/hostname")  # it can read what every user may read
        result = built.host.run(*as_account, path, check=False)
        refused = result.returncode != 0 and "Permission denied" in result.stderr
        assert refused or path.startswith(OWN_SECRETS.get(account, "nowhere")), f"{account} can read {path}"


def test_no_secret_leaks(built: Deployment) -> None:
    """No secret is in an environment, a command line or the journal."""
    assert leaks.search_finds_a_planted_text(built.host)
    for path in ("/etc/vllm/credentials/hf-token", "/etc/grafana/credentials/admin-password"):
        secret = built.host.output("cat", path).strip()
        assert secret == SECRETS[path]
        assert leaks.found(built.host, secret) == {}


def test_all_targets_are_up_and_all_rules_loaded(prometheus: Prometheus) -> None:
    checks.all_targets_are_up(prometheus)
    checks.all_rules_are_loaded(prometheus)


def test_grafana_has_its_data_source_and_dashboards(built: Deployment) -> None:
    def ask(path: str) -> list[dict[str, str]]:
        answer = built.host.curl("--user", f"admin:{PASSWORD}", f"http://127.0.0.1:9091{path}")
        found: list[dict[str, str]] = json.loads(answer)
        return found

    assert [source["uid"] for source in ask("/api/datasources")] == ["sluicegate-prometheus"]
    boards = {f"sluicegate-{name}" for name in ("overview", "gateway", "capacity", "llm", "infra")}
    assert {board["uid"] for board in ask("/api/search")} == boards
    built.host.curl(
        "--user", f"admin:{PASSWORD}", "http://127.0.0.1:9091/api/datasources/uid/sluicegate-prometheus/health"
    )
    with pytest.raises(AssertionError, match="401"):
        built.host.curl("http://127.0.0.1:9091/api/search")


def test_one_request_is_found_in_the_journal(built: Deployment, gateway: Gateway) -> None:
    gateway.chat("What is the capital of Italy?", request_id="find-me-again")

    def logged() -> list[dict[str, str]]:
        text = built.host.output("journalctl", "--output=json", "SLUICEGATE_REQUEST_ID=find-me-again")
        assert text, "no line with this request id"
        return [json.loads(line) for line in text.splitlines()]

    [line] = eventually(logged, GATEWAY_S)
    assert line["_SYSTEMD_UNIT"] == "sluicegate.service"
    assert line["SLUICEGATE_OUTCOME"] == "served"


def test_reload_applies_a_new_limit_and_drops_no_stream(built: Deployment, gateway: Gateway) -> None:
    stream = gateway.stream("Tell me a long story of a river.", LONG_STREAM)
    for _ in stream.read():
        if len(stream.events) == 3:
            _configure(built.host, "max_active = 2", "max_active = 3")
            built.host.run("systemctl", "reload", "sluicegate.service")
            eventually(lambda: _has(gateway, "api_max_active", 3), GATEWAY_S)
            assert gateway.metrics()["api_active_requests"] == 1, "the stream ended before the reload"
    *_, last, end = stream.events
    assert end == "[DONE]"
    assert json.loads(last)["choices"][0]["finish_reason"] == "length"
    assert built.host.show("sluicegate.service", "NRestarts")["NRestarts"] == "0"


def test_refused_configuration_keeps_the_old_one(built: Deployment, gateway: Gateway) -> None:
    """A reload with an invalid configuration fails, names the error and keeps the old configuration."""
    host = built.host
    _configure(host, "max_active = 3", "max_active = 0")
    result = host.run("systemctl", "reload", "sluicegate.service", check=False)
    assert result.returncode != 0
    assert "admission.max_active = 0" in host.output("journalctl", "--no-pager", "--unit=sluicegate.service")
    _has(gateway, "api_max_active", 3)
    gateway.chat("Are you still there?")
    _configure(host, "max_active = 0", "max_active = 2")
    host.run("systemctl", "reload", "sluicegate.service")
    eventually(lambda: _has(gateway, "api_max_active", 2), GATEWAY_S)


def test_early_requests_are_served(built: Deployment, gateway: Gateway) -> None:
    """Their connections wait in systemd's socket, which starts the gateway, and the engine has not been probed yet."""
    built.host.run("systemctl", "stop", "sluicegate.service")
    with ThreadPoolExecutor(EARLY) as pool:
        for answer in pool.map(gateway.chat, ["Who is there?"] * EARLY):
            assert answer["usage"]["completion_tokens"] > 0


def test_killed_gateway_is_back(built: Deployment, gateway: Gateway) -> None:
    built.host.run("systemctl", "kill", "--signal=KILL", "sluicegate.service")
    eventually(lambda: _restarted(built.host, "sluicegate.service", 1), GATEWAY_S)
    eventually(lambda: _ready(gateway), GATEWAY_S)
    gateway.chat("Are you back?")


def test_wedged_gateway_is_restarted_by_the_watchdog(built: Deployment, gateway: Gateway) -> None:
    built.host.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "sluicegate.service")
    eventually(lambda: _restarted(built.host, "sluicegate.service", 2), WATCHDOG_S)
    eventually(lambda: _ready(gateway), GATEWAY_S)
    assert "Watchdog timeout" in built.host.output("journalctl", "--no-pager", "--unit=sluicegate.service")


def test_killed_engine_is_restarted(built: Deployment, gateway: Gateway) -> None:
    """systemd restarts a killed engine, and the gateway answers 503 in the meantime."""
    built.host.run("systemctl", "kill", "--signal=KILL", "vllm@main.service")

    def down() -> None:
        assert gateway.status("/ready") == 503

    eventually(down, GATEWAY_S)
    eventually(lambda: _ready(gateway), ENGINE_S)
    gateway.chat("Are you back?")
    assert built.host.show("vllm@main.service", "NRestarts")["NRestarts"] == "1"


def test_a_final_failure_saves_diagnostics(built: Deployment, gateway: Gateway) -> None:
    """With a faulty configuration the daemon does not start, and systemd does not try again."""
    host = built.host
    _configure(host, "max_active = 2", "max_active = 0")
    assert host.run("systemctl", "restart", "sluicegate.service", check=False).returncode != 0

    def saved() -> str:
        # In this order: a file that is still being written has another name.
        assert (
            host.show("sluicegate-diagnostics@sluicegate.service.service", "ActiveState")["ActiveState"] == "inactive"
        )
        found = host.output("find", "/var/lib/sluicegate/diagnostics", "-type", "f").split()
        assert found, "no diagnostics"
        return found[-1]

    path = eventually(saved, GATEWAY_S)
    assert host.output("stat", "--format=%U %a", path).split()[0] == "sluicegate"
    _configure(host, "max_active = 0", "max_active = 2")
    host.run("systemctl", "reset-failed", "sluicegate.service")
    host.run("systemctl", "start", "sluicegate.socket", "sluicegate.service")
    eventually(lambda: _ready(gateway), GATEWAY_S)


def test_traffic_is_served_queued_shed_and_cancelled(gateway: Gateway) -> None:
    before = gateway.metrics()
    seen = visitors.crowd(gateway, TRAFFIC_S)
    assert {"200", "left", "400"} <= set(seen)
    assert seen["429"] + seen["503"] > 0
    after = gateway.metrics()
    grown = Counter({key: after[key] - before.get(key, 0) for key in after if key.startswith("api_outcomes_total")})
    for outcomes in (("served",), ("client_gone_active",), ("invalid",), ("shed_queue_full", "shed_queue_timeout")):
        assert any(grown[f'api_outcomes_total{{outcome="{outcome}"}}'] > 0 for outcome in outcomes), grown
    waited = "api_queue_wait_seconds_count"
    assert after[waited] > before[waited]


def test_every_panel_has_data(built: Deployment, prometheus: Prometheus) -> None:
    """Every expression of every dashboard, over the time since the host was built, as a panel draws it.

    But the one about the certificate, which this host has not.
    """
    drawn = [each for each in expressions() if CERTIFICATE not in each.text]
    wanted = [each for each in drawn if not all(map(NVML.match, metrics_in(each.text)))]
    assert len(wanted) > 50

    def all_drawn() -> None:
        now = time.time()
        empty = [each for each in wanted if prometheus.samples(each.text, built.since, now, step=5) == 0]
        assert empty == [], "no data:\n" + "\n".join(f"{each.dashboard}, {each.where}: {each.text}" for each in empty)

    eventually(all_drawn, SCRAPES_S, poll=10)
    assert {each.where for each in drawn} == {each.where for each in wanted}


def test_every_rule_is_evaluated_and_has_data(built: Deployment, prometheus: Prometheus) -> None:
    """Recorded series exist. An alert has no data while it is silent, but all that it looks at has."""

    def evaluated() -> None:
        rules = prometheus.rules()
        assert [f"{rule['name']}: {rule['lastError']}" for rule in rules if rule["health"] != "ok"] == []
        now = time.time()
        recorded = [rule for rule in rules if rule["type"] == "recording"]
        assert recorded
        empty = [rule["name"] for rule in recorded if not prometheus.samples(rule["name"], built.since, now, step=5)]
        assert empty == []

    eventually(evaluated, SCRAPES_S)


def test_no_expression_uses_a_metric_that_nobody_exports(prometheus: Prometheus) -> None:
    exported = prometheus.metric_names()
    used = {(f"{each.dashboard}, {each.where}", name) for each in expressions() for name in metrics_in(each.text)}
    used |= {(rule["name"], name) for rule in prometheus.rules() for name in metrics_in(rule["query"])}
    assert len(used) > 50
    assert sorted((where, name) for where, name in used if name not in exported) == []


def test_verify(built: Deployment) -> None:
    run = built.play("verify", log="5-verify").succeeded()
    assert [str(task) for task in run.changed] == []
    for role in ("vllm", "gateway", "node_exporter", "dcgm_exporter", "prometheus", "grafana"):
        looked = [task for task in run.tasks if f"/roles/{role}/tasks/verify" in task.path and task.state == "ok"]
        assert looked, f"the role {role} looked at nothing"


def test_upgrade_is_one_command(built: Deployment, gateway: Gateway, tmp_path: Path) -> None:
    before = _version(gateway)
    built.variables["gateway_wheel"] = str(wheels.build(tmp_path, LATER_VERSION))
    built.play("upgrade", log="6-upgrade").succeeded()
    assert _version(gateway) == LATER_VERSION != before
    gateway.chat("Are you the new one?")


def test_rollback_is_one_command(built: Deployment, gateway: Gateway) -> None:
    assert _version(gateway) == LATER_VERSION
    built.play("rollback", log="7-rollback").succeeded()
    assert _version(gateway) != LATER_VERSION
    gateway.chat("Are you the old one?")


def test_uninstall_leaves_nothing_but_data(built: Deployment) -> None:
    built.play("uninstall", log="8-uninstall").succeeded()
    left = leftovers.left(built)
    assert leftovers.without_data(left) == []
    assert "new: /var/lib/prometheus" in left


def test_uninstall_with_the_data_leaves_nothing(built: Deployment) -> None:
    built.play("uninstall", "--extra-vars", "uninstall_data=true", log="9-uninstall-data").succeeded()
    assert leftovers.left(built) == []


def _configure(host: Host, old: str, new: str) -> None:
    """Change one line of the gateway's configuration on the host, as an operator would with an editor."""
    path = "/etc/sluicegate/sluicegate.toml"
    assert old in host.output("cat", path)
    host.run("sed", "--in-place", f"s/^{old}$/{new}/", path)
    assert new in host.output("cat", path)


def _has(gateway: Gateway, series: str, value: float) -> None:
    assert gateway.metrics()[series] == value


def _ready(gateway: Gateway) -> None:
    assert gateway.status("/ready") == 200


def _restarted(host: Host, unit: str, times: int) -> None:
    shown = host.show(unit, "NRestarts", "ActiveState")
    assert shown == {"NRestarts": str(times), "ActiveState": "active"}


def _version(gateway: Gateway) -> str:
    [series] = [series for series in gateway.metrics() if series.startswith("api_build_info")]
    found = re.search(r'version="([^"]+)"', series)
    assert found, series
    return found[1]
