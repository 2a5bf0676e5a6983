"""What a throwaway host takes over from this machine, so that apt and pip work in it as they work here.

Read from the programs themselves (`pip config list`, `apt-config dump`, `apt-get indextargets`), whatever they say: a
mirror, a proxy, a certificate, a directory of wheels. On a machine where nothing is configured, nothing is taken over.

A setting may name a file or a directory of this machine. Either the host gets what is named, under the same path, or it
does not get the setting: the lists below say which, and a setting that is in none of them is left out.
"""

import ast
import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: Where every distribution's programs look for trusted certificates, and where pip and uv are pointed at.
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"

#: pip's settings that say where packages come from, and name no file.
PIP_PLAIN = {
    "default-timeout", "no-binary", "no-index", "only-binary", "pre", "prefer-binary", "proxy", "retries", "timeout",
    "trusted-host",
}  # fmt: skip
#: pip's settings that name indexes, directories or pages with links: URLs, file: URLs or paths.
PIP_SOURCES = ("find-links", "index-url", "extra-index-url")
#: pip's settings that name files which the host needs too; a constraints file may name others.
PIP_FILES = ("constraint", "build-constraint", "client-cert")
#: Sections of pip's configuration that `pip install` reads, the strongest last.
PIP_SECTIONS = ("global", "install", ":env:")

#: apt's settings that name no file: proxies, and whether a mirror may be behind.
APT_PLAIN = re.compile(r"Acquire::(https?::Proxy(::[^ ]+)?|Check-Valid-Until)$", re.IGNORECASE)
#: apt's settings that name the files with which it authenticates itself.
APT_FILES = re.compile(r"Acquire::https(::[^ ]+)?::Ssl(Cert|Key)$", re.IGNORECASE)
#: apt's settings that name certificates to trust; they join those that the host trusts for everything.
APT_TRUSTED = re.compile(r"Acquire::https(::[^ ]+)?::CaInfo$", re.IGNORECASE)

#: A line of a constraints file that names another one.
NESTED = re.compile(r"(?:-c|--constraint|-r|--requirement)[ =]*(\S+)")

#: The file that systemd-resolved keeps for programs that cannot use its address on loopback.
RESOLVED = Path("/run/systemd/resolve/resolv.conf")


@dataclass(frozen=True)
class Outside:
    """This machine's configuration of its package tools, as far as a host inside it needs it.

    `debian`: the mirror; empty where none is configured, for debootstrap to take its own. `apt`, `pip`: settings by
    name, as the programs give them. `trusted`: files with certificates. `private`: path on the host → the file with
    passwords for package sources that goes there.
    """

    debian: str = ""
    apt: Mapping[str, str] = field(default_factory=dict)
    pip: Mapping[str, str] = field(default_factory=dict)
    trusted: tuple[Path, ...] = ()
    private: Mapping[str, Path] = field(default_factory=dict)
    resolv_conf: str = ""

    @property
    def binds(self) -> list[Path]:
        """Files and directories of this machine that the host must see under the same path."""
        local = (_local(word) for key in PIP_SOURCES for word in self._sources(key))
        named = [path.parent if path.name == "simple" else path for path in local if path]
        named += [each for key in PIP_FILES for path in self._files(key) for each in _with_nested(path)]
        named += [Path(value) for name, value in self.apt.items() if APT_FILES.match(name)]
        if mirror := _local(self.debian):
            named.append(mirror)
        return sorted({path for path in named if path.exists()})

    @property
    def pip_conf(self) -> str:
        """pip's configuration for the host."""
        kept = {key: value for key, value in self.pip.items() if key in PIP_PLAIN}
        kept |= {key: " ".join(words) for key in PIP_SOURCES if (words := self._sources(key))}
        kept |= {key: " ".join(words) for key in PIP_FILES if (words := self._files(key))}
        return "[global]\n" + "".join(f"{key} = {value}\n" for key, value in {**kept, "cert": BUNDLE}.items())

    @property
    def uv_toml(self) -> str:
        """The same for uv, which does not read pip's configuration and whose own knows no file of constraints."""
        lines = ["system-certs = true"]
        if links := self._sources("find-links"):
            lines.append(f"find-links = {_toml_list(links)}")
        if index := self._sources("index-url"):
            lines.append(f'index-url = "{index[0]}"')
        if extra := self._sources("extra-index-url"):
            # pip looks at every index for the best version; uv stops at the first that has the name unless told so.
            lines += [f"extra-index-url = {_toml_list(extra)}", 'index-strategy = "unsafe-best-match"']
        return "\n".join(lines) + "\n"

    @property
    def apt_conf(self) -> str:
        """apt's configuration for the host."""
        kept = {
            name: value
            for name, value in self.apt.items()
            if APT_PLAIN.match(name) or (APT_FILES.match(name) and Path(value).exists())
        }
        return "".join(f'{name} "{value}";\n' for name, value in kept.items())

    def write(self, root: Path) -> None:
        """Put all of it into the file system of a host that does not run yet; its caller mounts `binds`."""
        resolv = root / "etc/resolv.conf"
        resolv.unlink(missing_ok=True)
        resolv.write_text(self.resolv_conf)
        for path, text in {
            "etc/apt/apt.conf.d/99outside": self.apt_conf,
            "etc/pip.conf": self.pip_conf,
            "etc/uv/uv.toml": self.uv_toml,
        }.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        for path, source in self.private.items():
            target = root / path.lstrip("/")
            shutil.copyfile(source, target)
            target.chmod(0o600)
        # update-ca-certificates takes whatever certificates are in a file, and keeps them when it runs again.
        for number, bundle in enumerate(self.trusted):
            shutil.copy(bundle, root / f"usr/local/share/ca-certificates/outside-{number}.crt")
        subprocess.run(["chroot", str(root), "update-ca-certificates"], check=True, capture_output=True)

    def _sources(self, key: str) -> list[str]:
        """The words of such a setting, without paths that lead nowhere: pip passes over them, uv stops at them."""
        words = self.pip.get(key, "").split()
        return [word for word in words if (path := _local(word)) is None or path.exists()]

    def _files(self, key: str) -> list[str]:
        """The words of such a setting; a file that is not there would stop pip on the host as it does here."""
        return self.pip.get(key, "").split()


def _local(word: str) -> Path | None:
    """The path of a word that is one, or a file: URL; None for every other URL."""
    if word.startswith("/"):
        return Path(word)
    return Path(unquote(urlsplit(word).path)) if word.startswith("file:") else None


def _with_nested(word: str) -> Iterator[Path]:
    """A file that pip's configuration names, and those that it names in turn, relative to itself."""
    pending, seen = [_local(word)], set()
    while pending:
        path = pending.pop()
        if path is None or path in seen or not path.is_file():
            continue
        seen.add(path)
        yield path
        for line in path.read_text(errors="replace").splitlines():
            if found := NESTED.match(line.strip()):
                named = _local(found[1])
                pending.append(named if named or ":" in found[1] else path.parent / found[1])


def _toml_list(words: Iterable[str]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"


def look() -> Outside:
    """Read this machine's configuration."""
    apt, pip = _apt(), parse_pip(_output(sys.executable, "-m", "pip", "config", "list"))
    named = [value for name, value in apt.items() if APT_TRUSTED.match(name)] + [pip.get("cert", "")]
    trusted = [_bundle(), *(Path(name) for name in named if name)]
    return Outside(
        _debian(),
        apt,
        pip,
        tuple(path for path in dict.fromkeys(trusted) if path.is_file()),
        _private(),
        _resolv_conf(Path("/etc/resolv.conf").read_text()),
    )


def _output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def _debian() -> str:
    """The mirror from which this machine takes Debian, if it is a Debian that says so."""
    return parse_mirror(
        _output("apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)", "Created-By: Packages")
    )


def parse_mirror(targets: str) -> str:
    """The first mirror of a release of Debian's in lines of origin, codename and URI: a mirror has every release."""
    for line in targets.splitlines():
        origin, _, rest = line.partition(" ")
        codename, _, uri = rest.partition(" ")
        # bookworm-security and its like are not releases. debootstrap reads no other kinds of URI, such as a list of
        # mirrors in a file or a disc.
        if origin == "Debian" and "-" not in codename and uri.startswith(("http:", "https:", "file:")):
            return uri.rstrip("/")
    return ""


def _apt() -> dict[str, str]:
    """apt's settings for how it reaches its sources."""
    lines = _output("apt-config", "dump").splitlines()
    found = (re.match(r'(\S+) "(.+)";$', line) for line in lines)
    settings = {match[1]: match[2] for match in found if match}
    return {n: v for n, v in settings.items() if any(kind.match(n) for kind in (APT_PLAIN, APT_FILES, APT_TRUSTED))}


def parse_pip(listed: str) -> dict[str, str]:
    """What `pip config list` prints, as name → value; words of a value are separated by one space.

    The environment wins over pip's files, and a command's own section over the common one, as with pip.
    """
    found: dict[str, str] = {}
    settings = [line.partition("=")[::2] for line in listed.splitlines()]
    for section in PIP_SECTIONS:
        for key, value in settings:
            scope, _, name = key.rpartition(".")
            if scope == section:
                found[name] = " ".join(str(ast.literal_eval(value)).split())
    return found


def _private() -> dict[str, Path]:
    """Files of this machine with passwords for package sources, by their path on the host."""
    found = {"/root/.netrc": Path(os.environ.get("NETRC") or Path.home() / ".netrc")}
    found |= {str(path): path for path in [Path("/etc/apt/auth.conf"), *Path("/etc/apt/auth.conf.d").glob("*.conf")]}
    return {path: source for path, source in found.items() if source.is_file()}


def _bundle() -> Path:
    """The certificates that programs on this machine trust."""
    named = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile or BUNDLE
    return Path(named)


def _resolv_conf(text: str) -> str:
    """This machine's resolver; one on loopback, which a host in a network of its own has not, as what is behind it."""
    servers = re.findall(r"^nameserver\s+(\S+)", text, re.MULTILINE)
    loopback = bool(servers) and all(server.startswith("127.") or server == "::1" for server in servers)
    return RESOLVED.read_text() if loopback and RESOLVED.is_file() else text
