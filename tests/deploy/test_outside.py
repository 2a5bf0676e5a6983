"""Nothing that this machine's package tools are told to read is missing on the host that is told the same."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.outside import PIP_FILES, PIP_PLAIN, PIP_SOURCES, Outside, look, parse_mirror, parse_pip

#: What `pip install --help` says of an option whose value is a file or a directory of this machine, or may be one.
PATHS = re.compile(r"--([a-z-]+) <(?:file|path|dir|path/url|url|python)>")


def covered(path: Path, outside: Outside) -> bool:
    """Whether the host sees this path."""
    return any(path == bound or bound in path.parents for bound in outside.binds)


def settings(text: str) -> dict[str, str]:
    """A configuration of pip's as name → value."""
    return {name: value for name, _, value in (line.partition(" = ") for line in text.splitlines()[1:])}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Something of each kind that a setting of pip's may name: kind → its path, or URL."""
    wheels, index = tmp_path / "wheels", tmp_path / "index/simple"
    wheels.mkdir()
    index.mkdir(parents=True)
    (tmp_path / "links.html").write_text("<a href='wheels/a-1-py3-none-any.whl'>a</a>")
    (tmp_path / "more.txt").write_text("requests<3\n")
    (tmp_path / "constraints.txt").write_text("# a comment\n-c more.txt\ntorch<=2.14.1\n")
    (tmp_path / "client.pem").write_text("a key\n")
    return {
        "directory": str(wheels),
        "page": f"file://{tmp_path}/links.html",
        "index": f"file://{index}",
        "constraints": str(tmp_path / "constraints.txt"),
        "client": str(tmp_path / "client.pem"),
    }


@pytest.mark.parametrize(
    ("setting", "kind"),
    [
        ("find-links", "directory"),
        ("find-links", "page"),
        ("index-url", "index"),
        ("extra-index-url", "index"),
        ("constraint", "constraints"),
        ("build-constraint", "constraints"),
        ("client-cert", "client"),
    ],
)
def test_what_a_setting_of_pip_names_comes_along(files: dict[str, str], setting: str, kind: str) -> None:
    named = files[kind]
    outside = Outside(pip={setting: named})
    assert settings(outside.pip_conf)[setting] == named
    assert covered(Path(named.removeprefix("file://")), outside)


def test_a_constraints_file_brings_those_that_it_names(files: dict[str, str]) -> None:
    outside = Outside(pip={"constraint": files["constraints"]})
    assert covered(Path(files["constraints"]).with_name("more.txt"), outside)


@pytest.mark.parametrize(
    "setting", ["requirement", "editable", "target", "prefix", "root", "src", "cache-dir", "log", "report", "python"]
)
def test_setting_that_does_not_apply_is_left_out(setting: str, tmp_path: Path) -> None:
    """A setting that the host cannot follow does not reach its pip.conf."""
    outside = Outside(pip={setting: str(tmp_path), "timeout": "180"})
    assert set(settings(outside.pip_conf)) == {"timeout", "cert"}
    assert outside.binds == []


def test_settings_that_name_files_are_handled() -> None:
    """A later pip may have more of them: they are left out until a list here names them."""
    text = subprocess.run([sys.executable, "-m", "pip", "install", "--help"], capture_output=True, text=True).stdout
    paths = set(PATHS.findall(text))
    assert {"constraint", "requirement", "cert", "client-cert", "find-links", "cache-dir"} <= paths
    # pip's proxy is a URL, and its indexes are among the sources.
    assert paths & PIP_PLAIN == set()
    assert paths - set(PIP_FILES) - set(PIP_SOURCES) >= {"requirement", "cert"}


def test_certificates_are_the_hosts_own(tmp_path: Path) -> None:
    assert settings(Outside(pip={"cert": str(tmp_path / "ca.pem")}).pip_conf) == {
        "cert": "/etc/ssl/certs/ca-certificates.crt"
    }


def test_uv_gets_the_sources_of_pip(files: dict[str, str], tmp_path: Path) -> None:
    """uv gets pip's sources, except paths that do not exist."""
    nowhere = tmp_path / "nowhere"
    pip = {
        "find-links": f"{files['directory']} {nowhere} https://example.org/links",
        "extra-index-url": files["index"],
        "constraint": files["constraints"],
    }
    text = Outside(pip=pip).uv_toml
    assert f'find-links = ["{files["directory"]}", "https://example.org/links"]' in text
    assert f'extra-index-url = ["{files["index"]}"]' in text
    assert "nowhere" not in text
    assert files["constraints"] not in text


def test_apt_shows_who_it_is_with_files_that_come_along(tmp_path: Path) -> None:
    key = tmp_path / "client.key"
    key.write_text("a key\n")
    apt = {
        "Acquire::https::mirror.example.org::SslKey": str(key),
        "Acquire::https::SslCert": str(tmp_path / "missing.pem"),
        "Acquire::http::Proxy": "http://proxy.example.org:3128/",
        "Acquire::http::Proxy-Auto-Detect": "/usr/local/bin/find-proxy",
        "Acquire::https::CaInfo": "/etc/ssl/ours.pem",
    }
    outside = Outside(apt=apt)
    assert outside.apt_conf.splitlines() == [
        f'Acquire::https::mirror.example.org::SslKey "{key}";',
        'Acquire::http::Proxy "http://proxy.example.org:3128/";',
    ]
    assert outside.binds == [key]


def test_a_mirror_on_the_disk_comes_along(tmp_path: Path) -> None:
    assert Outside(debian=f"file://{tmp_path}").binds == [tmp_path]


def test_precedence_of_pip_settings() -> None:
    """The environment wins over the files, and install over global."""
    listed = """\
:env:.find-links='/from/the/environment'
global.constraint='/etc/constraints.txt'
global.find-links='/from/a/file'
global.extra-index-url='\\nhttps://one.example.org/simple\\nhttps://two.example.org/simple'
install.constraint='/etc/install.txt'
freeze.timeout='10'
"""
    assert parse_pip(listed) == {
        "constraint": "/etc/install.txt",
        "find-links": "/from/the/environment",
        "extra-index-url": "https://one.example.org/simple https://two.example.org/simple",
    }


def test_configuration_of_this_machine_is_shared() -> None:
    """Whatever this machine's configuration names that is there, the host sees."""
    outside = look()
    words = [word for value in settings(outside.pip_conf).values() for word in value.split()]
    paths = [Path(word.removeprefix("file://")) for word in words if word.startswith(("/", "file://"))]
    missing = [path for path in paths if path.exists() and str(path) != settings(outside.pip_conf)["cert"]]
    assert [path for path in missing if not covered(path, outside)] == []
    assert outside.trusted
    assert outside.resolv_conf


@pytest.mark.parametrize("release", ["bookworm", "trixie"])
def test_mirror_is_found_for_any_release(release: str) -> None:
    """The mirror is found whatever release this machine runs."""
    targets = (
        f"Grafana stable https://apt.example/\nDebian {release}-security http://security.example/debian-security/\n"
        f"Debian {release} file:/srv/debian/\nDebian {release} cdrom:[Debian]/\n"
    )
    assert parse_mirror(targets) == "file:/srv/debian"
    assert parse_mirror(f"Ubuntu noble http://archive.example/\nDebian {release} cdrom:[Debian]/\n") == ""
