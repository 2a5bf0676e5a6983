"""A stand-in for a collector of traces: takes OTLP over HTTP, and keeps the spans that it gets."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True)
class Got:
    """A span as it arrived: ids in hexadecimal, attributes and events by name."""

    raw: Span
    service: str

    @property
    def trace_id(self) -> str:
        return self.raw.trace_id.hex()

    @property
    def span_id(self) -> str:
        return self.raw.span_id.hex()

    @property
    def parent_id(self) -> str:
        return self.raw.parent_span_id.hex()

    @property
    def attributes(self) -> dict[str, object]:
        return values(self.raw.attributes)

    @property
    def events(self) -> list[str]:
        return [event.name for event in self.raw.events]


def values(attributes: Iterable[KeyValue]) -> dict[str, object]:
    """Attributes as Python has them."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in attributes}


class Collector:
    """`status` is what it answers. While `held`, it answers nothing; `asked` is set once something has come."""

    def __init__(self) -> None:
        self.spans: list[Got] = []
        self.paths: list[str] = []
        self.status = 200
        self.asked = threading.Event()
        self.released = threading.Event()
        self.released.set()
        self.url = ""

    def hold(self) -> None:
        self.released.clear()

    def take(self, path: str, body: bytes) -> int:
        """Take one message; the status to answer."""
        self.paths.append(path)
        self.asked.set()
        self.released.wait(60)
        if self.status == 200:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                service = str(values(resource.resource.attributes)["service.name"])
                for scope in resource.scope_spans:
                    self.spans += [Got(span, service) for span in scope.spans]
        return self.status


@contextmanager
def open_collector() -> Iterator[Collector]:
    """A collector in threads of its own: the gateway under test may block the event loop while it stops."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            status = collector.take(self.path, self.rfile.read(int(self.headers["content-length"])))
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        collector.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield collector
        finally:
            collector.released.set()
            server.shutdown()
            thread.join()
