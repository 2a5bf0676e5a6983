"""The proxies of docs/proxies.md, each run with the configuration that stands there."""

import os
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import trio

from tests.engine_contract.raw import RawClient
from tests.harness import Running

PAGE = Path(__file__).parents[2] / "docs" / "proxies.md"

#: What the page tells to put somewhere, by the language of the block; and what it says of a bare nginx.
_BLOCK = re.compile(r"^```(nginx|haproxy|caddyfile)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONFIGURATIONS = dict(_BLOCK.findall(PAGE.read_text()))
CONFIGURATIONS["bare nginx"] = "server { listen 80; location / { proxy_pass http://127.0.0.1:8080; } }"

#: How often it is tried whether a proxy listens (seconds).
POLL_S = 0.02

_DEBIAN = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


def _nginx(directory: Path, block: str) -> list[str]:
    """Debian's own nginx.conf around it, with a directory of its own."""
    text = Path("/etc/nginx/nginx.conf").read_text()
    (directory / "block.conf").write_text(block)
    text = re.sub(r"^(user|pid|error_log|include /etc/nginx/modules).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\s*(access_log|include /etc/nginx/(conf\.d|sites)).*$", "", text, flags=re.MULTILINE)
    kept = [f"{name}_temp_path {directory};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
    inside = " ".join(["access_log off;", *kept, f"include {directory}/block.conf;"])
    user = "" if os.geteuid() else "user root; "  # who may write there
    text = text.replace("http {", f"http {{ {inside}", 1)
    (directory / "nginx.conf").write_text(f"{user}daemon off; pid {directory}/pid; error_log stderr;\n{text}")
    return ["nginx", "-p", str(directory), "-c", str(directory / "nginx.conf")]


def _haproxy(directory: Path, block: str) -> list[str]:
    """Debian's own haproxy.cfg before it, without what needs a host."""
    text = Path("/etc/haproxy/haproxy.cfg").read_text()
    text = re.sub(r"^\s*(log\s|chroot|stats|user|group|daemon).*$", "", text, flags=re.MULTILINE)
    (directory / "haproxy.cfg").write_text(f"{text}\n{block}")
    return ["haproxy", "-db", "-f", str(directory / "haproxy.cfg")]


def _caddy(directory: Path, block: str) -> list[str]:
    """Without its admin API, whose port may be taken."""
    (directory / "Caddyfile").write_text("{\n\tadmin off\n}\n" + block)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(directory / "Caddyfile")]


_COMMANDS = {"nginx": _nginx, "bare nginx": _nginx, "haproxy": _haproxy, "caddyfile": _caddy}


class Proxy:
    """A proxy that listens on `port`, on loopback."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def dial(self, source: str = "127.0.0.1") -> RawClient:
        return RawClient(await trio.open_tcp_stream("127.0.0.1", self.port, local_address=source))


@asynccontextmanager
async def in_front(
    name: str, running: Running, directory: Path, *, changes: Sequence[tuple[str, str]] = ()
) -> AsyncIterator[Proxy]:
    """The proxy `name` before the gateway, on another port. `changes`: what else is replaced of what the page says."""
    gateway = urlsplit(running.base_url).port
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    block = CONFIGURATIONS[name]
    for old, new in changes:
        assert old in block
        block = block.replace(old, new)
    block, count = re.subn(r"127\.0\.0\.1:8080", f"127.0.0.1:{gateway}", block)
    block, more = re.subn(r"(listen |:)80\b", lambda match: f"{match[1]}{port}", block)
    assert (count, more) == (1, 1), block
    process = _start(_COMMANDS[name](directory, block), directory)
    try:
        while not await _listens(port):
            assert process.poll() is None, (directory / "log").read_text()
            await trio.sleep(POLL_S)
        yield Proxy(port)
    finally:
        process.terminate()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(process.wait)


def _start(command: list[str], directory: Path) -> subprocess.Popen[bytes]:
    environ = _DEBIAN | {"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
    with (directory / "log").open("wb") as log:
        return subprocess.Popen(command, env=environ, stdout=log, stderr=log)


async def _listens(port: int) -> bool:
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError:
        return False
    await stream.aclose()
    return True
