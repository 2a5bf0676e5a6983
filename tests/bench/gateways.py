"""The gateways that are measured: how each is started in front of an engine at 127.0.0.1:19000, on one core."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

ENGINE_PORT = 19000

_NGINX = """worker_processes 1; daemon off; master_process off; pid {d}/nginx.pid; error_log stderr error;
events {{ worker_connections 8192; }}
http {{ access_log off; client_body_temp_path {d}/b; proxy_temp_path {d}/p; fastcgi_temp_path {d}/f;
 uwsgi_temp_path {d}/u; scgi_temp_path {d}/s;
 upstream u {{ server 127.0.0.1:19000; keepalive 512; }}
 server {{ listen 127.0.0.1:19104 backlog=4096; location / {{
  proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }} }}
"""


@dataclass(frozen=True)
class Gateway:
    """One of them. `version`: a command that prints it."""

    name: str
    port: int
    command: list[str]
    environment: dict[str, str]
    version: list[str]


def ours() -> Gateway:
    settings = {
        "LISTEN": "127.0.0.1:19100",
        "VLLM_BASE_URL": f"http://127.0.0.1:{ENGINE_PORT}",
        "MAX_ACTIVE": "4096",
        "QUEUE_MAX": "4096",
    }
    program = [sys.executable, "-m", "sluicegate"]
    return Gateway("sluicegate", 19100, [*program, "serve"], settings, [*program, "--version"])


def peers(directory: Path, programs: Path | None) -> list[Gateway]:
    """Those that are installed: nginx on the PATH; smg and vllm-router in `programs` (a virtual environment's bin)."""
    found = []
    if nginx := shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"):
        configuration = directory / "nginx.conf"
        configuration.write_text(_NGINX.format(d=directory))
        found.append(Gateway("nginx", 19104, [nginx, "-c", str(configuration)], {}, [nginx, "-v"]))
    one_thread = {"TOKIO_WORKER_THREADS": "1", "GOMAXPROCS": "1"}
    worker = ["--worker-urls", f"http://127.0.0.1:{ENGINE_PORT}", "--policy", "round_robin", "--log-level", "error"]
    if programs and (smg := programs / "smg").exists():
        command = [str(smg), "launch", "--host", "127.0.0.1", "--port", "19107", *worker, "--prometheus-port", "19207"]
        command += ["--backend", "vllm", "--max-concurrent-requests", "4096"]
        found.append(Gateway("smg", 19107, command, one_thread, _version(programs, "smg")))
    if programs and (router := programs / "vllm-router").exists():
        command = [str(router), "--host", "127.0.0.1", "--port", "19103", *worker, "--prometheus-port", "19203"]
        found.append(Gateway("vllm-router", 19103, command, one_thread, _version(programs, "vllm-router")))
    return found


def _version(programs: Path, package: str) -> list[str]:
    return [
        str(programs / "python"),
        "-c",
        f"import importlib.metadata as m; print({package!r}, m.version({package!r}))",
    ]
