"""The published ports: every place that repeats one of them says the same."""

import json
from typing import Any

import pytest
import yaml

from sluicegate.config.settings import SETTINGS
from tests.ansible.plays import ANSIBLE

REPOSITORY = ANSIBLE.parent

GATEWAY, VLLM, PROMETHEUS, GRAFANA, NODE, DCGM, OPEN_WEBUI = 8080, 8000, 9090, 9091, 9100, 9400, 3000

#: The services beside the gateway on its host, as its role calls them.
BESIDE = {
    str(PROMETHEUS): "Prometheus",
    str(GRAFANA): "Grafana",
    str(NODE): "node_exporter",
    str(DCGM): "the DCGM exporter",
    str(OPEN_WEBUI): "Open WebUI",
}


def variables(role: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ANSIBLE / "roles" / role / "vars/main.yml").read_text()))


def default(role: str, variable: str) -> str:
    specs = yaml.safe_load((ANSIBLE / "roles" / role / "meta/argument_specs.yml").read_text())
    return str(specs["argument_specs"]["main"]["options"][variable]["default"])


def text(path: str) -> str:
    return (REPOSITORY / path).read_text()


def test_the_gateways_port() -> None:
    everywhere = f"0.0.0.0:{GATEWAY}"
    assert [address.port for address in SETTINGS["listen"].default] == [GATEWAY]
    assert SETTINGS["engine.base_url"].default.port == VLLM
    assert default("gateway", "gateway_listen") == variables("gateway")["__gateway_default_listen"] == everywhere
    assert f"\nListenStream={everywhere}\n" in text("systemd/sluicegate.socket")
    assert f"OPENAI_API_BASE_URL=http://127.0.0.1:{GATEWAY}/v1\n" in text("systemd/open-webui.service")
    assert f"default(['{GATEWAY}'], true)" in default("firewall", "firewall_gateway_port")
    for role, variable in (("prometheus", "prometheus_gateway_target"), ("open_webui", "open_webui_api_url")):
        assert f"default('{everywhere}')" in default(role, variable)


def test_gateway_spares_the_services_ports() -> None:
    """The gateway's role refuses exactly the ports of the other services."""
    assert variables("gateway")["__gateway_ports_taken"] == BESIDE


@pytest.mark.parametrize(
    ("role", "variable", "address"),
    [
        ("prometheus", "__prometheus_listen", f"127.0.0.1:{PROMETHEUS}"),
        ("grafana", "__grafana_url", f"http://127.0.0.1:{GRAFANA}"),
        ("node_exporter", "__node_exporter_listen", f"127.0.0.1:{NODE}"),
        ("dcgm_exporter", "__dcgm_exporter_listen", f"127.0.0.1:{DCGM}"),
        ("open_webui", "__open_webui_url", f"http://127.0.0.1:{OPEN_WEBUI}"),
    ],
)
def test_a_service_listens_on_its_port(role: str, variable: str, address: str) -> None:
    assert variables(role)[variable] == address


def test_grafanas_own_settings_have_its_port() -> None:
    assert variables("grafana")["__grafana_settings"]["server"]["http_port"] == GRAFANA
    assert default("grafana", "grafana_root_url") == f"http://localhost:{GRAFANA}/"
    assert f"http_port = {GRAFANA}\n" in text("systemd/dropins/grafana-server.service.d/10-sluicegate.conf")
    sources = yaml.safe_load(text("grafana/provisioning/datasources/sluicegate.yaml"))["datasources"]
    assert [source["url"] for source in sources] == [f"http://127.0.0.1:{PROMETHEUS}"]


def test_units_have_the_ports_of_what_they_start() -> None:
    dropins = "systemd/dropins/{}.service.d/10-sluicegate.conf"
    assert f" -a 127.0.0.1:{DCGM} " in text(dropins.format("nvidia-dcgm-exporter"))
    assert f": 127.0.0.1:{NODE}.\n" in text(dropins.format("prometheus-node-exporter"))
    assert f": 127.0.0.1:{PROMETHEUS}.\n" in text(dropins.format("prometheus"))
    assert f" --port {OPEN_WEBUI}\n" in text("systemd/open-webui.service")


def test_prometheus_scrapes_these_ports() -> None:
    expected = {
        "sluicegate": GATEWAY,
        "vllm": GATEWAY,
        "dcgm": DCGM,
        "node": NODE,
        "prometheus": PROMETHEUS,
        "grafana": GRAFANA,
    }
    groups = yaml.safe_load(text("prometheus/targets.yml"))
    assert {group["labels"]["job"]: group["targets"] for group in groups} == {
        job: [f"127.0.0.1:{port}"] for job, port in expected.items()
    }
    known = json.dumps(variables("prometheus")["__prometheus_all_targets"])
    for job in ("dcgm", "node", "grafana"):
        assert f'"{job}": "127.0.0.1:{expected[job]}"' in known
    assert set(json.loads(known)) == set(expected)
