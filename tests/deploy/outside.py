"""What a throwaway host takes over from this machine, so that apt and pip work in it as they work here.

Read from the programs themselves (`pip config list`, `apt-config dump`, `apt-get indextargets`), whatever they say: a
mirror, a proxy, a certificate, a directory of wheels. On a machine where nothing is configured, nothing is taken over.
"""

import ast
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: Where every distribution's programs look for trusted certificates, and where pip and uv are pointed at.
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class Outside:
    """This machine's configuration of its package tools, as far as a host inside it needs it.

    `debian`: the mirror; empty where none is configured, for debootstrap to take its own.
    """

    debian: str
    apt: str
    pip: Mapping[str, str]
    bundle: Path
    resolv_conf: str

    @property
    def directories(self) -> list[Path]:
        """Directories of this machine that pip's configuration names: the host must see them under the same path."""
        words = [word for key in ("find-links", "index-url", "extra-index-url") for word in self._words(key)]
        paths = (Path(unquote(urlsplit(word).path)) for word in words if word.startswith(("/", "file:")))
        found = (path.parent if path.name == "simple" else path for path in paths)
        return sorted({path for path in found if path.is_dir()})

    @property
    def pip_conf(self) -> str:
        """pip's configuration for the host."""
        kept = {key: value for key, value in self.pip.items() if key != "cert"}
        return "[global]\n" + "".join(f"{key} = {value}\n" for key, value in {**kept, "cert": BUNDLE}.items())

    @property
    def uv_toml(self) -> str:
        """The same for uv, which does not read pip's configuration."""
        lines = ["system-certs = true"]
        if links := self._words("find-links"):
            lines.append(f"find-links = {_toml_list(links)}")
        if index := self.pip.get("index-url"):
            lines.append(f'index-url = "{index}"')
        if extra := self._words("extra-index-url"):
            # pip looks at every index for the best version; uv stops at the first that has the name unless told so.
            lines += [f"extra-index-url = {_toml_list(extra)}", 'index-strategy = "unsafe-best-match"']
        return "\n".join(lines) + "\n"

    def _words(self, key: str) -> list[str]:
        return self.pip.get(key, "").split()


def _toml_list(words: list[str]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"


def look() -> Outside:
    """Read this machine's configuration."""
    return Outside(_debian(), _apt(), _pip(), _bundle(), Path("/etc/resolv.conf").read_text())


def _output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def _debian() -> str:
    """The mirror from which this machine takes Debian, if it is a Debian that says so."""
    targets = _output(
        "apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)", "Created-By: Packages"
    )
    for line in targets.splitlines():
        origin, _, rest = line.partition(" ")
        codename, _, uri = rest.partition(" ")
        if origin == "Debian" and codename == "bookworm":
            return uri.rstrip("/")
    return ""


def _apt() -> str:
    """apt's proxies, as lines of its configuration."""
    lines = _output("apt-config", "dump").splitlines()
    return "".join(f"{line}\n" for line in lines if re.match(r'Acquire::https?::[Pp]roxy.* "[^"]', line))


def _pip() -> dict[str, str]:
    """pip's settings from its files and the environment; the environment comes later and wins, as with pip."""
    listed = _output(sys.executable, "-m", "pip", "config", "list").splitlines()
    settings = dict(line.partition("=")[::2] for line in listed)
    ordered = sorted(settings.items(), key=lambda item: item[0].startswith(":env:"))
    found = {}
    for key, value in ordered:
        scope, _, name = key.rpartition(".")
        if scope in ("global", "install", ":env:"):
            found[name] = " ".join(str(ast.literal_eval(value)).split())
    return found


def _bundle() -> Path:
    """The certificates that programs on this machine trust."""
    named = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile or BUNDLE
    return Path(named)
