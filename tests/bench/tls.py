"""What TLS costs: CPU per event and per JSON request, plain and over TLS, of our gateway and of nginx.

    python -m tests.bench.tls [--rounds N] [--streams N]

The load is a program in Python on CPU 1, which must only keep up: what is measured is the gateway, on CPU 0. Both
gateways serve one certificate (ECDSA P-256) over TLS 1.3. Rounds alternate, and medians are reported.
"""

import argparse
import dataclasses
import os
import select
import socket
import ssl
import statistics
import tempfile
import time
from pathlib import Path

from tests.bench.gateways import Gateway, ours, peers
from tests.bench.measure import Engine, build_tools, cpu_s, ready, started
from tests.certificates import Files, issue, trusting

_BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":8%s}'
_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_EVENTS, _INTERVAL_US = 200, 20_000

#: JSON requests on each of so many connections.
_REQUESTS, _CONNECTIONS = 60, 32

#: Of the port that speaks TLS from the plain one.
_APART = 50


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=64)
    options = parser.parse_args()
    os.sched_setaffinity(0, {1})
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        files, tools = issue(directory), build_tools(directory)
        gateways = [_ours(files, directory), *(_nginx(each, files, directory) for each in peers(directory, None))]
        found: dict[tuple[str, str, str], list[float]] = {}
        for _ in range(options.rounds):
            for gateway in gateways:
                engine = Engine(tools)
                engine.start(events=_EVENTS, interval_us=_INTERVAL_US)
                with tempfile.TemporaryFile("w+") as log, started(gateway, log) as pid:
                    try:
                        ready(gateway.port, log)
                        for kind, context in (("plain", None), ("TLS", trusting())):
                            port = gateway.port + (_APART if context else 0)
                            run = (pid, port, context)
                            found.setdefault((gateway.name, kind, "event"), []).append(_streams(*run, options.streams))
                            found.setdefault((gateway.name, kind, "JSON request"), []).append(_requests(*run))
                    finally:
                        engine.stop()
    for (gateway_name, kind, what), values in sorted(found.items(), key=lambda item: item[0][2]):
        print(
            f"{what}: {gateway_name} {kind} {statistics.median(values):.1f} µs", [round(value, 1) for value in values]
        )
    return 0


def _ours(files: Files, directory: Path) -> Gateway:
    gateway = ours()
    config = directory / "sluicegate.toml"
    addresses = f'listen = ["127.0.0.1:{gateway.port}", "0.0.0.0:{gateway.port + _APART}"]\n'
    config.write_text(addresses + files.toml)
    environment = {**gateway.environment, "LISTEN": "", "LOG_LEVEL": "warning"}
    command = [*gateway.command, "--config", str(config)]
    return dataclasses.replace(gateway, environment=environment, command=command)


def _nginx(gateway: Gateway, files: Files, directory: Path) -> Gateway:
    config = directory / "nginx.conf"
    secure = (
        f"listen 127.0.0.1:{gateway.port + _APART} ssl backlog=4096; ssl_protocols TLSv1.3; keepalive_requests 1000000;"
    )
    secure += f" ssl_certificate {files.certificate}; ssl_certificate_key {files.key};"
    config.write_text(config.read_text().replace("backlog=4096;", f"backlog=4096; {secure}", 1))
    return gateway


def _connect(port: int, context: ssl.SSLContext | None) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    return context.wrap_socket(sock, server_hostname="127.0.0.1") if context else sock


def _streams(pid: int, port: int, context: ssl.SSLContext | None, count: int) -> float:
    """CPU per event of so many streams at one time, connections and handshakes not counted (µs)."""
    socks = [_connect(port, context) for _ in range(count)]
    body = _BODY % b',"stream":true'
    before = cpu_s(pid)
    for sock in socks:
        sock.sendall(_HEAD % len(body) + body)
        time.sleep(_INTERVAL_US * 1e-6 / count)
    events, tails = 0, dict.fromkeys(socks, b"")
    while tails:
        for sock in select.select(list(tails), [], [])[0]:
            while data := sock.recv(65536):
                events += data.count(b"data: ")
                tails[sock] = (tails[sock] + data)[-5:]
                if not (isinstance(sock, ssl.SSLSocket) and sock.pending()):
                    break
            if not data or tails[sock] == b"0\r\n\r\n":
                del tails[sock]
    spent = cpu_s(pid) - before
    for sock in socks:
        sock.close()
    assert events >= count * _EVENTS, events
    return spent * 1e6 / events


def _requests(pid: int, port: int, context: ssl.SSLContext | None) -> float:
    """CPU per request that is answered as a whole, on connections that are kept (µs)."""
    socks = [_connect(port, context) for _ in range(_CONNECTIONS)]
    body = _BODY % b""
    before = cpu_s(pid)
    for _ in range(_REQUESTS):
        for sock in socks:
            sock.sendall(_HEAD % len(body) + body)
        for sock in socks:
            received = b""
            while b"\r\n\r\n" not in received or not received.endswith((b"}", b"0\r\n\r\n")):
                data = sock.recv(65536)
                assert data, received
                received += data
    spent = cpu_s(pid) - before
    for sock in socks:
        sock.close()
    return spent * 1e6 / (_REQUESTS * _CONNECTIONS)


if __name__ == "__main__":
    raise SystemExit(main())
