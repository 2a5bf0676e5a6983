"""Every panel of every dashboard leads to a graph of Prometheus' own."""

import html
import json
import re
from collections import Counter
from urllib.parse import parse_qs, urlsplit

import httpx2

from grafana.sluicegate_dashboards.expressions import DASHBOARDS, expressions
from tests.deploy import panels

PROMETHEUS = "http://127.0.0.1:9"


def asked(url: str) -> list[str]:
    """The expressions that Prometheus' page is given with this URL."""
    assert url.startswith(f"{PROMETHEUS}/graph?")
    fields = parse_qs(urlsplit(url).query)
    return [fields[f"g{number}.expr"][0] for number in range(sum(name.endswith(".expr") for name in fields))]


def test_every_expression_of_a_panel_is_in_a_graph() -> None:
    wanted: Counter[tuple[str, str]] = Counter()
    for path in DASHBOARDS.glob("*.json"):
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            wanted[board["uid"], panel["title"]] += len(panel.get("targets", ()))
    assert wanted
    found = {
        (f"sluicegate-{board}", title): texts
        for board, shown in panels.dashboards().items()
        for title, texts in shown.items()
    }
    assert {where: len(texts) for where, texts in found.items()} == {
        where: number for where, number in wanted.items() if number
    }
    texts = {text for each in found.values() for text in each}
    assert texts <= {each.text for each in expressions()}


def test_page_leads_to_every_dashboard() -> None:
    """The page lists every dashboard, and each path leads to the dashboard's graphs."""
    with panels.served(("127.0.0.1", 0), PROMETHEUS) as url, httpx2.Client(base_url=url) as client:
        links = [html.unescape(link) for link in re.findall('href="([^"]+)"', client.get("/").text)]
        boards = panels.dashboards()
        for board, shown in boards.items():
            assert f"/{board}" in links
            assert asked(client.get(f"/{board}").headers["location"]) == [
                text for texts in shown.values() for text in texts
            ]
            for number, texts in enumerate(shown.values(), 1):
                assert asked(client.get(f"/{board}/{number}").headers["location"]) == texts
                assert panels.graphs(PROMETHEUS, texts) in links
        missed = client.get("/nowhere")
        assert missed.status_code == 404
        assert "/overview" in missed.text
