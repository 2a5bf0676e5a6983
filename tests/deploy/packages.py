"""The stand-ins as Debian packages, in two signed repositories that are laid out and served as the real ones.

What they stand in for needs an NVIDIA GPU, or comes from a repository of Grafana's on which a test should not depend.
Their names, users, files, units and ports are those of the real packages (NVIDIA's CUDA repository, apt.grafana.com).
"""

import contextlib
import functools
import http.server
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.deploy.serving import running

HERE = Path(__file__).parent / "standins"

GRAFANA_DEFAULTS = """\
GRAFANA_USER=grafana
GRAFANA_GROUP=grafana
GRAFANA_HOME=/usr/share/grafana
LOG_DIR=/var/log/grafana
DATA_DIR=/var/lib/grafana
MAX_OPEN_FILES=10000
CONF_DIR=/etc/grafana
CONF_FILE=/etc/grafana/grafana.ini
RESTART_ON_UPGRADE=true
PLUGINS_DIR=/var/lib/grafana/plugins
PROVISIONING_CFG_DIR=/etc/grafana/provisioning
PID_FILE_DIR=/run/grafana
"""

#: Installed, not started: what the real package does and says.
GRAFANA_POSTINST = """\
#!/bin/sh
set -e
[ "$1" = configure ] || exit 0
getent group grafana >/dev/null || addgroup --system --quiet grafana
id grafana >/dev/null 2>&1 || adduser --system --quiet --home /usr/share/grafana --no-create-home \
  --ingroup grafana --disabled-password --shell /bin/false grafana
mkdir -p /var/log/grafana /var/lib/grafana /etc/grafana/provisioning/dashboards /etc/grafana/provisioning/datasources
[ -e /etc/grafana/grafana.ini ] || cp /usr/share/grafana/conf/sample.ini /etc/grafana/grafana.ini
chown -R grafana:grafana /var/log/grafana /var/lib/grafana
chmod 755 /var/log/grafana /var/lib/grafana
chown -Rh root:grafana /etc/grafana/*
find /etc/grafana -type f -exec chmod 640 {} ';'
find /etc/grafana -type d -exec chmod 755 {} ';'
"""

#: DCGM's packages make an account and a directory, and neither enable nor start their services, nor stop them when they
#: go (tests/deploy/vendor/dcgm_packages.yml).
DCGM_POSTINST = """\
#!/bin/sh
set -u
useradd --user-group --system --shell /usr/sbin/nologin nvidia-dcgm
status=$?
set -e
[ $status -eq 0 ] || [ $status -eq 9 ] || exit $status
mkdir -p /var/log/nvidia-dcgm
chown nvidia-dcgm:nvidia-dcgm /var/log/nvidia-dcgm
chmod 755 /var/log/nvidia-dcgm
"""

STOP_PRERM = """\
#!/bin/sh
set -e
[ "$1" = remove ] && systemctl disable --quiet --now {unit} || true
"""

RELOAD_POSTRM = "#!/bin/sh\nset -e\nsystemctl daemon-reload || true\n"


@dataclass(frozen=True)
class Package:
    """One package: what is in it, and what it does when it comes and goes. Programs are recognised by their path.

    `fields`: more fields of its control file, such as Conflicts, or others than the usual ones.
    """

    name: str
    version: str
    depends: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    scripts: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)

    def build(self, directory: Path) -> None:
        """Write NAME_VERSION_amd64.deb into `directory`."""
        root = directory / self.name
        for path, text in self.files.items():
            target = root / path.removeprefix("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
            target.chmod(0o755 if "bin/" in path else 0o644)
        control = root / "DEBIAN"
        control.mkdir(parents=True)
        fields = {
            "Package": self.name,
            "Version": self.version,
            "Architecture": "amd64",
            "Maintainer": "Sluicegate <sluicegate@localhost>",
            "Description": "stand-in for tests of a deployment",
            **({"Depends": self.depends} if self.depends else {}),
            **self.fields,
        }
        (control / "control").write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
        if kept := [path for path in self.files if path.startswith("/etc/")]:
            (control / "conffiles").write_text("".join(f"{path}\n" for path in kept))
        for name, text in self.scripts.items():
            (control / name).write_text(text)
            (control / name).chmod(0o755)
        run("dpkg-deb", "--root-owner-group", "-Znone", "--build", str(root), str(directory))
        run("rm", "-r", str(root))


def _unit(name: str) -> dict[str, str]:
    return {f"/usr/lib/systemd/system/{name}": (HERE / name).read_text()}


def nvidia_packages() -> list[Package]:
    """What NVIDIA's repository has, as far as the roles take it."""
    return dcgm_packages()


def dcgm_packages() -> list[Package]:
    """DCGM 4 in its parts, its exporter, and DCGM 3, which is still offered. The stand-ins' programs need python3."""
    name, version, exporter = "datacenter-gpu-manager-4", "1:4.4.1-1", "4.6.0-1"
    core, same = f"{name}-core", f"{name}-core (= {version})"
    contact = {"Maintainer": "dcgm-support <dcgm-support@nvidia.com>"}
    engine = (HERE / "nv_hostengine.py").read_text()
    found = [
        Package(
            core, version, "libc6 (>= 2.27), lshw, python3",
            {"/usr/bin/nv-hostengine": engine, **_unit("nvidia-dcgm.service")}, {"postinst": DCGM_POSTINST},
            {
                **contact,
                "Pre-Depends": "passwd, login",
                "Recommends": f"{name}-proprietary",
                "Conflicts": "datacenter-gpu-manager",
            },
        ),
        Package(
            f"{name}-proprietary", version, same,
            {"/usr/lib/x86_64-linux-gnu/libdcgmmoduleprofiling.so.4": "the profiling module\n"}, fields=contact,
        ),
        Package(
            "datacenter-gpu-manager-exporter", exporter, f"{core}, python3",
            {
                "/usr/bin/dcgm-exporter": (HERE / "dcgm_exporter.py").read_text(),
                "/etc/dcgm-exporter/default-counters.csv": "DCGM_FI_DEV_GPU_UTIL, gauge, GPU utilization (in %).\n",
                **_unit("nvidia-dcgm-exporter.service"),
            },
            fields=contact,
        ),
        Package(
            "datacenter-gpu-manager", "1:3.3.9", "libc6 (>= 2.17), python3",
            {"/usr/bin/nv-hostengine": engine, **_unit("nvidia-dcgm.service")}, fields={"Maintainer": "dcgm-support"},
        ),
    ]  # fmt: skip
    for major in (12, 13):
        recommended = f"{name}-proprietary-cuda{major}"
        provided = {"Provides": f"{name} (= {version})", "Recommends": f"libnuma1, {recommended}"}
        found += [
            Package(f"{name}-cuda{major}", version, same, fields={**contact, **provided}),
            Package(recommended, version, f"{name}-proprietary (= {version})", fields=contact),
        ]
    return found


def grafana_packages() -> list[Package]:
    """What Grafana's repository has, as far as the role takes it."""
    files = {
        "/usr/share/grafana/bin/grafana": (HERE / "grafana.py").read_text(),
        "/usr/sbin/grafana-cli": '#!/bin/sh\nexec /usr/share/grafana/bin/grafana cli "$@"\n',
        "/usr/share/grafana/conf/sample.ini": "; nothing is set\n",
        "/etc/default/grafana-server": GRAFANA_DEFAULTS,
        **_unit("grafana-server.service"),
    }
    scripts = {
        "postinst": GRAFANA_POSTINST,
        "prerm": STOP_PRERM.format(unit="grafana-server.service"),
        "postrm": RELOAD_POSTRM,
    }
    return [Package("grafana", "13.0.1", "adduser, python3, python3-yaml", files, scripts)]


@dataclass(frozen=True)
class Repositories:
    """Where the host finds the stand-ins, and the key with which they are signed."""

    nvidia: str
    grafana: str
    key: str


@contextlib.contextmanager
def repositories(directory: Path, address: str) -> Iterator[Repositories]:
    """Build, sign and serve both repositories at `address` until the end of the block."""
    with signing(directory / "gnupg") as (gpg, key):
        # NVIDIA's is flat: packages and index in one directory. Grafana's has a suite and a component.
        nvidia, grafana = directory / "www/nvidia", directory / "www/grafana"
        index = grafana / "dists/stable/main/binary-amd64"
        for packages, pool in ((nvidia_packages(), nvidia), (grafana_packages(), grafana / "pool")):
            pool.mkdir(parents=True)
            for package in packages:
                package.build(pool)
        index.mkdir(parents=True)
        (nvidia / "Packages").write_text(run("apt-ftparchive", "packages", ".", cwd=nvidia))
        (index / "Packages").write_text(run("apt-ftparchive", "packages", "pool", cwd=grafana))
        suite = ("-o", "APT::FTPArchive::Release::Codename=stable", "-o", "APT::FTPArchive::Release::Components=main")
        for release, options in ((nvidia, ()), (grafana / "dists/stable", suite)):
            (release / "Release").write_text(run("apt-ftparchive", *options, "release", ".", cwd=release))
            run(*gpg, "--clearsign", "--output", str(release / "InRelease"), str(release / "Release"))
        for served in (nvidia, grafana):
            (served / "key.asc").write_text(key)
        with serving(directory / "www", address) as url:
            yield Repositories(f"{url}/nvidia", f"{url}/grafana", key)


@contextlib.contextmanager
def signing(home: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    """Make a key in `home`; gives gpg's command line to sign with it, and the public key, until the block ends."""
    home.mkdir(mode=0o700, parents=True)
    gpg = ("gpg", "--homedir", str(home), "--batch", "--quiet", "--yes")
    run(*gpg, "--passphrase", "", "--quick-generate-key", "stand-ins <sluicegate@localhost>", "rsa3072", "sign", "0")
    try:
        yield gpg, run(*gpg, "--armor", "--export")
    finally:
        run("gpgconf", "--homedir", str(home), "--kill", "all")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class calls it so)
        """Nothing: apt says itself what it could not get."""


@contextlib.contextmanager
def serving(directory: Path, address: str) -> Iterator[str]:
    """Serve a directory by HTTP until the end of the block; gives its URL."""
    handler = functools.partial(_Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer((address, 0), handler) as server, running(server):
        yield f"http://{address}:{server.server_port}"


def run(*argv: str, cwd: Path | None = None) -> str:
    """What a program of this machine prints; it must succeed."""
    result = subprocess.run(argv, capture_output=True, text=True, cwd=cwd)
    assert result.returncode == 0, f"{argv} failed: {result.stdout}{result.stderr}"
    return result.stdout
