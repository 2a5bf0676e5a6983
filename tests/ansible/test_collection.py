"""The collection is built and installed by Ansible's own tool, and its playbooks run from where they were installed."""

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
ANSIBLE = REPOSITORY / "ansible"
PLAYBOOKS = sorted(path.stem for path in ANSIBLE.glob("playbooks/*.yml"))


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("built")
    source = shutil.copytree(ANSIBLE, directory / "ansible")
    for private in ("inventories/private/hosts.yml", "inventories/example/backups/gpu1.tar"):
        (source / private).parent.mkdir(exist_ok=True)
        (source / private).write_text("secret")
    run("ansible-galaxy", "collection", "build", str(source), "--output-path", str(directory), cwd=directory)
    (path,) = directory.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def away(tarball: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory away from the repository, with the collection installed and an inventory of this machine."""
    directory = tmp_path_factory.mktemp("away")
    (directory / "ansible.cfg").write_text("[defaults]\ninject_facts_as_vars = False\n")
    host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    hosts = {"gpu_hosts": {"hosts": {"gpu1": host}, "vars": {"ansible_become": False, "nvidia_driver_manage": False}}}
    (directory / "hosts.yml").write_text(yaml.safe_dump(hosts))
    run("ansible-galaxy", "collection", "install", "--offline", "-p", "collections", str(tarball), cwd=directory)
    return directory


def run(program: str, *args: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one of Ansible's programs in a directory: with its ansible.cfg, and with its collections alone."""
    settings = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    result = subprocess.run(
        [str(Path(sys.executable).with_name(program)), *args],
        cwd=cwd,
        env={**settings, "ANSIBLE_COLLECTIONS_PATH": "collections", "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0 or not check, result.stdout + result.stderr
    return result


def play(away: Path, *args: str, variables: Sequence[str] = (), check: bool = True) -> str:
    extra = [f"--extra-vars={each}" for each in variables]
    result = run("ansible-playbook", "--inventory=hosts.yml", *extra, *args, cwd=away, check=check)
    return result.stdout + result.stderr


def test_collection_has_roles_and_playbooks(tarball: Path) -> None:
    """The built collection holds every role and playbook and nothing private or hidden."""
    with tarfile.open(tarball) as built:
        names = {name for name in built.getnames() if not name.endswith("/")}
    roles = {path.name for path in (ANSIBLE / "roles").iterdir()}
    assert {f"roles/{role}/meta/main.yml" for role in roles} <= names
    assert {f"playbooks/{playbook}.yml" for playbook in PLAYBOOKS} <= names
    assert not [name for name in names if name.startswith((".", "inventories/private", "inventories/example/backups"))]


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_each_playbook_is_found_whole_by_its_name(away: Path, playbook: str) -> None:
    said = play(away, "--syntax-check", f"sluicegate.gpu_host.{playbook}", variables=[f"sluicegate_files={REPOSITORY}"])
    assert f"collections/ansible_collections/sluicegate/gpu_host/playbooks/{playbook}.yml" in said


PREFLIGHTS = [
    {
        "name": "Check",
        "hosts": "gpu_hosts",
        "tasks": [
            {
                "name": f"Check {role}",
                "ansible.builtin.import_role": {"name": f"sluicegate.gpu_host.{role}", "tasks_from": "preflight"},
            }
            for role in ("node_exporter", "prometheus")
        ],
    }
]


def test_roles_find_files_of_the_checkout(away: Path) -> None:
    """The roles read the checkout's files from the directory that sluicegate_files names."""
    (away / "preflights.yml").write_text(yaml.safe_dump(PREFLIGHTS))
    said = play(away, "preflights.yml", variables=[f"sluicegate_files={REPOSITORY}"])
    assert "sluicegate.gpu_host.common : Check sluicegate_files" in said


def test_preflight_asks_for_sluicegate_files(away: Path) -> None:
    """Without the files of the checkout, preflight fails and says which variable to set."""
    said = play(away, "sluicegate.gpu_host.site", "--tags=node_exporter", "--check", check=False)
    assert "where there is no systemd/dropins/prometheus-node-exporter.service.d: set it to a checkout of" in said
    # A later pass has not begun.
    assert "PLAY [Build]" not in said
