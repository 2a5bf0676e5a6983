"""A move: the state of one host, saved by backup.yml and brought to another one by restore.yml.

Both are built by site.yml without vLLM; in its place a program answers the gateway's probes. The tests stand in the
order of the move and run in it: each finds the hosts as the one before has left them.
"""

import base64
import hashlib
import io
import json
import shutil
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy import playbooks
from tests.deploy.deployment import PASSWORD, Deployment, prepared
from tests.deploy.eventually import eventually
from tests.deploy.host import Host, booted_host
from tests.deploy.prometheus import Prometheus

pytestmark = pytest.mark.deploy

STATE = yaml.safe_load((playbooks.ANSIBLE / "playbooks/vars/state.yml").read_text())

CREDENTIALS = "/etc/grafana/credentials"
DIAGNOSTICS = "/var/lib/sluicegate/diagnostics/a-failure-of-the-first-host"

#: What the gateway asks of an engine before it is ready, and no more.
ENGINE = """\
import http.server

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"object": "list", "data": [{"id": "m", "object": "model"}]}' if self.path == "/v1/models" else b""
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""

#: Whether Grafana accepts the credentials on standard input, given as an Authorization header.
ASK_GRAFANA = """\
import sys, urllib.error, urllib.request

request = urllib.request.Request("http://127.0.0.1:9091/api/user")
request.add_header("Authorization", "Basic " + sys.stdin.read())
try:
    print(urllib.request.urlopen(request).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""

#: A scrape comes every 5 s (seconds).
SCRAPES_S = 60.0


def without_vllm(host: Host, deployment: Deployment, kept: Path, instance: str) -> Deployment:
    """The inventory of a host without an engine of its own, which leaves Grafana's password to the playbook."""
    for name in ("vllm_instances", "vllm_hf_token", "vllm_device", "grafana_admin_password"):
        del deployment.variables[name]
    deployment.variables.update(
        vllm_manage=False,
        gateway_engine="http://127.0.0.1:8000",
        # The program in its place does not chat.
        gateway_verify_chat=False,
        dcgm_exporter_manage=False,
        firewall_manage=False,
        prometheus_instance=instance,
        prometheus_jobs=["sluicegate", "prometheus", "node", "grafana"],
        backup_directory=str(kept),
    )
    host.run("systemd-run", "--unit=engine", "python3", "-c", ENGINE)
    return deployment


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the archives are kept on this machine."""
    return tmp_path_factory.mktemp("kept") / "backups"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """The host that is moved."""
    with booted_host() as host:
        yield host


@pytest.fixture(scope="module")
def first(host: Host, kept: Path) -> Iterator[Deployment]:
    """It, built."""
    with prepared(host) as deployment:
        without_vllm(host, deployment, kept, "first").play("site", log="backup-1-site").succeeded()
        yield deployment


@pytest.fixture(scope="module")
def archive(first: Deployment, kept: Path) -> Path:
    """Its archive, made after it has worked for a while and its data has changed."""
    host = first.host
    host.run("mkdir", "--parents", "/var/lib/grafana/plugins/a-plugin")
    host.run("install", "--directory", "--owner=sluicegate", "--group=sluicegate", str(Path(DIAGNOSTICS).parent))
    host.run("runuser", "-u", "sluicegate", "--", "sh", "-c", f"echo saved >{DIAGNOSTICS}")
    eventually(lambda: scraped(host, "first", time.time()), SCRAPES_S)
    first.play("backup", log="backup-2-backup").succeeded()
    [path] = kept.glob("*.tar")
    return path


@pytest.fixture(scope="module")
def second(archive: Path, kept: Path) -> Iterator[Deployment]:
    """The host that is moved to, built when the first had been saved."""
    with booted_host() as host, prepared(host) as deployment:
        without_vllm(host, deployment, kept, "second").play("site", log="backup-4-site").succeeded()
        yield deployment


@pytest.fixture(scope="module")
def moved(second: Deployment, archive: Path) -> Deployment:
    """The same, with the first host's state."""
    second.play("restore", "--extra-vars", f"backup_archive={archive}", log="backup-5-restore").succeeded()
    return second


def scraped(host: Host, instance: str, at: float) -> None:
    """Look whether Prometheus has a sample of this host's gateway at that time."""
    query = f'count(up{{job="sluicegate",instance="{instance}"}} == 1)'
    assert Prometheus(host).get("query", query=query, time=str(at))["result"], f"nothing of {instance} at {at}"


def password_of(host: Host) -> str:
    """What the file with the administrator's password says."""
    return host.output("cat", f"{CREDENTIALS}/admin-password").strip()


def admitted(host: Host, password: str) -> bool:
    """Whether Grafana lets its administrator in with this password."""
    answer = host.run(
        "python3", "-c", ASK_GRAFANA, stdin=base64.b64encode(f"admin:{password}".encode()).decode(), check=False
    )
    assert answer.stdout.strip() in ("200", "401"), answer
    return answer.stdout.strip() == "200"


def said(run: playbooks.Run) -> str:
    """Everything that the tasks of a run said, in one line."""
    return " ".join(" ".join(task.message for task in run.tasks).split())


def made_at(archive: Path) -> float:
    """When an archive was made (Unix time)."""
    with tarfile.open(archive) as opened:
        manifest = opened.extractfile(STATE["state_manifest"])
        assert manifest is not None
        return float(json.load(manifest)["made_at_s"])


def test_password_is_generated_and_not_shown(first: Deployment) -> None:
    """The play generates a password and shows only where it is stored."""
    password = password_of(first.host)
    assert len(password) >= 32
    assert admitted(first.host, password)
    assert first.host.output("stat", "--format=%U:%G %a", f"{CREDENTIALS}/admin-password") == "root:grafana 640\n"
    log = (playbooks.LOGS / "backup-1-site.jsonl").read_text()
    assert f"sudo cat {CREDENTIALS}/admin-password" in log
    assert password not in log
    assert base64.b64encode(password.encode()).decode() not in log


def test_an_archive_is_whole_and_nobody_elses(archive: Path, first: Deployment) -> None:
    assert archive.stat().st_mode & 0o777 == 0o600
    assert archive.parent.stat().st_mode & 0o777 == 0o700
    checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert archive.with_name(f"{archive.name}.sha256").read_text() == f"{checksum}  {archive.name}\n"
    with tarfile.open(archive) as opened:
        names = set(opened.getnames())
    for path in (DIAGNOSTICS, f"{CREDENTIALS}/secret-key", "/etc/sluicegate/sluicegate.toml"):
        assert path.removeprefix("/") in names


def test_a_backup_leaves_the_host_as_it_was(archive: Path, first: Deployment) -> None:
    for unit in ("sluicegate.service", "prometheus.service", "grafana-server.service"):
        assert first.host.show(unit, "ActiveState")["ActiveState"] == "active"
    assert first.host.output("find", "/var/tmp", "-name", "sluicegate-*") == ""


def test_check_mode_saves_nothing(archive: Path, first: Deployment, kept: Path) -> None:
    run = first.play("backup", "--check", log="backup-3-check").succeeded()
    assert [str(task) for task in run.changed] == []
    assert list(kept.glob("*.tar")) == [archive]


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ("no archive", 'backup_archive is "/nowhere.tar", and must be the absolute path of an archive of backup.yml'),
        ("damaged", "is not what backup.yml has fetched: its checksum is"),
        ("not of backup.yml", "its layout is unknown with no parts, and it must be 1 with parts of"),
        ("newer data", "was written after the archive was made"),
    ],
)
def test_restore_that_would_lose_data_stops(
    mistake: str, sentence: str, archive: Path, first: Deployment, tmp_path: Path
) -> None:
    """The restore stops before any change if it would lose something."""
    given = {
        "no archive": lambda: Path("/nowhere.tar"),
        "damaged": lambda: _damaged(archive, tmp_path),
        "not of backup.yml": lambda: _written(tmp_path / "foreign.tar", {"something-else": ""}),
        # The host that it was made of has gone on since.
        "newer data": lambda: archive,
    }[mistake]()
    log = f"backup-3-{mistake.replace(' ', '-')}"
    run = first.play("restore", "--extra-vars", f"backup_archive={given}", log=log)
    assert run.status != 0
    assert [sentence in " ".join(task.message.split()) for task in run.failed] == [True], run.report
    assert run.changed == []


def test_host_keeps_its_data_on_a_bad_archive(first: Deployment, tmp_path: Path) -> None:
    """If the archive cannot be unpacked, the host keeps the data it had."""
    before = time.time()
    scraped(first.host, "first", before)
    manifest = {"format": STATE["state_format"], "host": "gpu1", "parts": ["prometheus"]}
    manifest |= {"made_at": "now", "made_at_s": int(before)}
    # A file where another member needs a directory.
    path = "var/lib/prometheus/metrics2"
    contents = {STATE["state_manifest"]: json.dumps(manifest), path: "", f"{path}/wal": ""}
    archive = _written(tmp_path / "broken.tar", contents)
    wanted = f"backup_archive={archive} restore_overwrite=true"
    run = first.play("restore", "--extra-vars", wanted, log="backup-3-broken")
    assert run.status != 0
    assert "which has its own data again" in said(run)
    assert first.host.show("prometheus.service", "ActiveState")["ActiveState"] == "active"
    eventually(lambda: scraped(first.host, "first", before), SCRAPES_S)
    assert first.host.output("find", "/var/lib", "/var/tmp", "-name", "*-restore*") == ""


def _damaged(archive: Path, directory: Path) -> Path:
    path = directory / archive.name
    shutil.copy(f"{archive}.sha256", f"{path}.sha256")
    path.write_bytes(archive.read_bytes()[:-1] + b"x")
    return path


def _written(path: Path, contents: dict[str, str]) -> Path:
    """An archive with a checksum beside it, as backup.yml leaves them."""
    with tarfile.open(path, "w") as written:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            written.addfile(member, io.BytesIO(content.encode()))
    path.with_name(f"{path.name}.sha256").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    return path


def test_grafana_has_the_first_hosts_password_and_key(moved: Deployment, first: Deployment) -> None:
    password = password_of(first.host)
    assert password_of(moved.host) == password
    assert admitted(moved.host, password)
    key = f"{CREDENTIALS}/secret-key"
    assert moved.host.output("cat", key) == first.host.output("cat", key)
    assert moved.host.output("stat", "--format=%U:%G %a", key) == "root:grafana 640\n"
    assert moved.host.output("ls", "/var/lib/grafana/plugins") == "a-plugin\n"


def test_prometheus_has_the_old_series_and_goes_on(moved: Deployment, archive: Path) -> None:
    """Prometheus has the first host's series and goes on scraping."""
    scraped(moved.host, "first", made_at(archive) - 1)
    eventually(lambda: scraped(moved.host, "second", time.time()), SCRAPES_S)


def test_the_gateways_files_are_there_and_belong_to_it(moved: Deployment) -> None:
    assert moved.host.output("cat", DIAGNOSTICS) == "saved\n"
    assert moved.host.output("stat", "--format=%U", DIAGNOSTICS) == "sluicegate\n"


def test_restore_leaves_no_leftovers(moved: Deployment) -> None:
    """The restore leaves nothing of the replaced data and none of its temporary files."""
    assert moved.host.output("find", "/var/lib", "/etc", "/var/tmp", "-name", "*.before-restore") == ""
    assert moved.host.output("find", "/var/tmp", "-name", "sluicegate-*") == ""


def test_second_restore_asks_first(moved: Deployment, archive: Path) -> None:
    """A second restore asks before it replaces data written since the archive was made."""
    run = moved.play("restore", "--extra-vars", f"backup_archive={archive}", log="backup-6-again")
    assert run.status != 0
    assert "was written after the archive was made" in said(run)
    assert run.changed == []


def test_site_keeps_what_was_restored(moved: Deployment) -> None:
    """The site playbook changes only the password, which the inventory sets."""
    variables = json.dumps({"grafana_admin_password": PASSWORD})
    tags = "gateway,prometheus,grafana"
    run = moved.play("site", "--tags", tags, "--extra-vars", variables, log="backup-7-site").succeeded()
    assert [task.name for task in run.changed] == [
        "grafana : Write the administrator's password",
        "grafana : Set the administrator's password",
    ]
    assert "sudo cat" not in said(run)
    assert password_of(moved.host) == PASSWORD
    assert admitted(moved.host, PASSWORD)
