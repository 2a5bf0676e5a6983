"""Every panel of the dashboards as a graph of Prometheus' own, for a host on which no Grafana draws it.

A page lists the dashboards and their panels; each leads to Prometheus with the panel's expressions filled in.
"""

import contextlib
import html
import http.server
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from urllib.parse import urlencode

from grafana.sluicegate_dashboards.expressions import DASHBOARDS, expressions
from tests.deploy.serving import running

#: How far back a graph looks at first.
RANGE = "15m"

Panels = Mapping[str, list[str]]


def dashboards() -> Mapping[str, Panels]:
    """Dashboard, without the prefix of all → its panels that ask something, each with its expressions, in order."""
    asked: Counter[tuple[str, str]] = Counter()
    for path in DASHBOARDS.glob("*.json"):
        board = json.loads(path.read_text("utf-8"))
        for panel in board["panels"]:
            asked[board["uid"], panel["title"]] += len(panel.get("targets", ()))
    found: dict[str, dict[str, list[str]]] = {}
    for each in expressions():
        # A dashboard's panels come first. Annotations and variables follow, one of which is called as a panel is.
        if asked[each.dashboard, each.where]:
            asked[each.dashboard, each.where] -= 1
            panels = found.setdefault(each.dashboard.removeprefix("sluicegate-"), {})
            panels.setdefault(each.where, []).append(each.text)
    return found


def graphs(prometheus: str, texts: list[str]) -> str:
    """The URL of Prometheus' page with a graph for each of these expressions. `prometheus`: its URL."""
    fields = [
        (f"g{number}.{key}", value)
        for number, text in enumerate(texts)
        for key, value in (("expr", text), ("tab", "0"), ("range_input", RANGE))
    ]
    return f"{prometheus}/graph?{urlencode(fields)}"


def page(prometheus: str) -> str:
    """The list of all, in HTML."""
    lines = ["<!doctype html><meta charset=utf-8><title>Panels</title><h1>Panels, as graphs of Prometheus</h1>"]
    for board, panels in dashboards().items():
        lines.append(f'<h2><a href="/{board}">{board}</a></h2><ul>')
        for title, texts in panels.items():
            lines.append(f'<li><a href="{html.escape(graphs(prometheus, texts))}">{html.escape(title)}</a>')
        lines.append("</ul>")
    return "\n".join(lines)


def destinations(prometheus: str) -> dict[str, str]:
    """Path → the graphs that it leads to: /DASHBOARD to all of its panels, /DASHBOARD/NUMBER to one of them."""
    found = {}
    for board, panels in dashboards().items():
        found[f"/{board}"] = graphs(prometheus, [text for texts in panels.values() for text in texts])
        for number, texts in enumerate(panels.values(), 1):
            found[f"/{board}/{number}"] = graphs(prometheus, texts)
    return found


@contextlib.contextmanager
def served(listen: tuple[str, int], prometheus: str) -> Iterator[str]:
    """Serve the page and the destinations at `listen` until the end of the block; gives its URL."""
    there = destinations(prometheus)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """The page, or where to."""
            if self.path in there:
                self._answer(302, "text/plain", there[self.path], location=there[self.path])
            elif self.path == "/":
                self._answer(200, "text/html", page(prometheus))
            else:
                self._answer(404, "text/plain", f"There is / and what it lists: {', '.join(there)}.\n")

        def _answer(self, status: int, kind: str, text: str, location: str = "") -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            if location:
                self.send_header("Location", location)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class calls it so)
            """Nothing: the terminal is for the demo's own messages."""

    with http.server.ThreadingHTTPServer(listen, Handler) as server, running(server):
        yield f"http://{listen[0]}:{server.server_port}"
