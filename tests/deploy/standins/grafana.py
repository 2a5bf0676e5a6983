#!/usr/bin/python3
"""Stands in for Grafana: reads its configuration and provisioning as it does, and answers what is used of its API.

Installed as /usr/share/grafana/bin/grafana by a package of the same name. It shows no dashboards; whether it was told
about them, by whom it may be asked and where it listens is what a deployment can get wrong.
"""

import base64
import configparser
import hashlib
import importlib
import json
import os
import re
import secrets
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

#: The host has the library (python3-yaml); the machine that checks the types of this file may lack it.
yaml: Any = importlib.import_module("yaml")

VERSION = "13.0.1"
DEFAULTS = {
    "server": {"http_addr": "", "http_port": "3000"},
    "security": {"admin_user": "admin", "admin_password": "admin"},
    "auth.anonymous": {"enabled": "false"},
    "paths": {"data": "/var/lib/grafana", "provisioning": "/etc/grafana/provisioning"},
}
#: Documented: a value $__file{PATH} is the content of that file, $__env{NAME} that of a variable.
REFERENCE = re.compile(r"\$__(file|env)\{([^}]+)\}")


class Settings:
    """The configuration: the file, then GF_SECTION_KEY in the environment, then cfg:default.* on the command line."""

    def __init__(self, arguments: list[str], environ: Mapping[str, str]) -> None:
        config = next(argument.partition("=")[2] for argument in arguments if argument.startswith("--config="))
        self._parser = configparser.ConfigParser(interpolation=None, strict=False)
        self._parser.read_dict(DEFAULTS)
        self._parser.read_string("[DEFAULT]\n" + Path(config).read_text())
        self._given = dict(
            argument.removeprefix("cfg:").removeprefix("default.").partition("=")[::2]
            for argument in arguments
            if argument.startswith("cfg:")
        )
        self._environ = environ

    def get(self, section: str, key: str) -> str:
        """One value, with its references resolved."""
        variable = "GF_" + f"{section}_{key}".upper().replace(".", "_").replace("-", "_")
        value = self._given.get(f"{section}.{key}", self._parser.get(section, key))
        return REFERENCE.sub(self._resolve, self._environ.get(variable, value))

    def _resolve(self, found: re.Match[str]) -> str:
        kind, name = found.groups()
        return Path(name).read_text().rstrip("\n") if kind == "file" else self._environ.get(name, "")


class Users:
    """The one user, seeded at the first start: what the configuration says later does not change the password."""

    def __init__(self, settings: Settings) -> None:
        self._path = Path(settings.get("paths", "data")) / "grafana.db"
        if not self._path.exists():
            self.set_password(settings.get("security", "admin_password"), settings.get("security", "admin_user"))

    def _stored(self) -> dict[str, str]:
        stored: dict[str, str] = json.loads(self._path.read_text())
        return stored

    def set_password(self, password: str, user: str | None = None) -> None:
        """Keep a new password."""
        salt = secrets.token_hex(8)
        stored = {"user": user or self._stored()["user"], "salt": salt, "hash": _hash(salt, password)}
        self._path.write_text(json.dumps(stored))
        self._path.chmod(0o640)

    def knows(self, authorization: str) -> bool:
        """Whether a request with this header comes from the administrator."""
        scheme, _, encoded = authorization.partition(" ")
        if scheme.lower() != "basic":
            return False
        user, _, password = base64.b64decode(encoded).decode().partition(":")
        stored = self._stored()
        return user == stored["user"] and _hash(stored["salt"], password) == stored["hash"]


def _hash(salt: str, password: str) -> str:
    return hashlib.sha256(f"{salt}{password}".encode()).hexdigest()


class Provisioning:
    """Data sources and dashboards, from the files that the configuration names."""

    def __init__(self, directory: Path) -> None:
        self.datasources = self._entries(directory / "datasources", "datasources")
        self._providers = self._entries(directory / "dashboards", "providers")
        uids = [source["uid"] for source in self.datasources]
        if len(set(uids)) != len(uids):
            sys.exit(f"Datasource provisioning error: duplicate uid in {uids}")

    @staticmethod
    def _entries(directory: Path, key: str) -> list[dict[str, Any]]:
        # Grafana reads both endings and nothing else.
        files = sorted(path for path in directory.glob("*") if path.suffix in (".yaml", ".yml"))
        return [entry for path in files for entry in (yaml.safe_load(path.read_text()) or {}).get(key) or []]

    def dashboards(self) -> dict[str, dict[str, Any]]:
        """The dashboards by uid, as they lie on the disk now: a provider looks again and again."""
        found = {}
        for provider in self._providers:
            for path in sorted(Path(provider["options"]["path"]).glob("**/*.json")):
                dashboard = json.loads(path.read_text())
                found[dashboard["uid"]] = dashboard
        return found


class Handler(BaseHTTPRequestHandler):
    """Grafana's HTTP API, as far as a deployment asks it."""

    server: "Grafana"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/api/health":
            self._answer(200, {"database": "ok", "version": VERSION, "commit": "standin"})
        elif path == "/metrics":
            self._send(200, "text/plain; version=0.0.4", self.server.metrics().encode())
        elif path == "/login":
            self._send(200, "text/html", b"<title>Grafana</title>")
        elif not self._admitted():
            self._answer(401, {"message": "Unauthorized"})
        else:
            self._get(path)

    def _get(self, path: str) -> None:
        sources = {source["uid"]: source for source in self.server.provisioning.datasources}
        dashboards = self.server.provisioning.dashboards()
        match path.strip("/").split("/"):
            case ["api", "user"]:
                self._answer(200, {"id": 1, "login": self.server.settings.get("security", "admin_user")})
            case ["api", "datasources"]:
                self._answer(200, list(sources.values()))
            case ["api", "datasources", "uid", uid] if uid in sources:
                self._answer(200, sources[uid])
            case ["api", "datasources", "uid", uid, "health"] if uid in sources:
                self._ask(sources[uid])
            case ["api", "search"]:
                found = [{"uid": uid, "title": board["title"], "type": "dash-db"} for uid, board in dashboards.items()]
                self._answer(200, found)
            case ["api", "dashboards", "uid", uid] if uid in dashboards:
                self._answer(200, {"dashboard": dashboards[uid], "meta": {"provisioned": True}})
            case _:
                self._answer(404, {"message": "Not found"})

    def _admitted(self) -> bool:
        anonymous = self.server.settings.get("auth.anonymous", "enabled").lower() == "true"
        return anonymous or self.server.users.knows(self.headers.get("Authorization", ""))

    def _ask(self, source: dict[str, Any]) -> None:
        try:
            with urllib.request.urlopen(f"{source['url']}/api/v1/query?query=1%2B1", timeout=5) as answer:
                json.load(answer)
        except (urllib.error.URLError, ValueError) as error:
            self._answer(400, {"status": "ERROR", "message": str(error)})
        else:
            self._answer(200, {"status": "OK", "message": "Successfully queried the Prometheus API."})

    def _answer(self, status: int, body: object) -> None:
        self._send(status, "application/json", json.dumps(body).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.server.requests[status] = self.server.requests.get(status, 0) + 1
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Grafana(ThreadingHTTPServer):
    """The server and what it knows."""

    daemon_threads = True

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.users = Users(settings)
        self.provisioning = Provisioning(Path(settings.get("paths", "provisioning")))
        self.requests: dict[int, int] = {}
        super().__init__((settings.get("server", "http_addr"), int(settings.get("server", "http_port"))), Handler)

    def metrics(self) -> str:
        """Real names of Grafana's own metrics."""
        lines = [f'grafana_build_info{{version="{VERSION}",edition="oss"}} 1']
        lines += [f"grafana_stat_totals_dashboard {len(self.provisioning.dashboards())}"]
        lines += [
            f'grafana_http_request_duration_seconds_count{{handler="/api",method="GET",status_code="{status}"}} {count}'
            for status, count in sorted(self.requests.items())
        ]
        return "\n".join(lines) + "\n"


def _notify(message: str) -> None:
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(message.encode(), "\0" + address[1:] if address[0] == "@" else address)


def main(arguments: list[str]) -> None:
    """`grafana server …`, or `grafana cli … admin reset-admin-password PASSWORD`."""
    command, *rest = arguments
    if command == "cli":
        options = [word for word in rest if word.startswith("--")]
        if [word for word in rest if word not in options][:2] != ["admin", "reset-admin-password"]:
            sys.exit(f"the stand-in knows only admin reset-admin-password, not {rest}")
        config = next((word for word in options if word.startswith("--config=")), "--config=/etc/grafana/grafana.ini")
        password = sys.stdin.readline().rstrip("\n") if "--password-from-stdin" in rest else rest[-1]
        Users(Settings([config], os.environ)).set_password(password)
        return
    grafana = Grafana(Settings(rest, os.environ))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _notify("READY=1")
    grafana.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
