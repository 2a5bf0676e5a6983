"""A host and the inventory with which it is built: what an operator has when the playbook is started."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tests.deploy import packages, playbooks, snapshot, wheels
from tests.deploy.host import Host

PASSWORD = "correct-horse-battery-staple"
TOKEN = "hf_a-token-that-nobody-else-may-read"


@dataclass
class Deployment:
    """`variables`: the inventory's. `fresh`: the host before anything was done to it, at `since` (Unix time).

    `logs`: what the names of its files in build/deploy begin with.
    """

    host: Host
    variables: dict[str, object]
    fresh: snapshot.Snapshot
    since: float
    logs: str = ""

    def play(
        self, playbook: str, *args: str, log: str, on_task: Callable[[str], None] = lambda _: None
    ) -> playbooks.Run:
        """Run a playbook with the inventory. `log`: the name of its file in build/deploy."""
        return playbooks.play(
            self.host, playbook, *args, variables=self.variables, log=self.logs + log, on_task=on_task
        )


@contextlib.contextmanager
def prepared(host: Host, logs: str = "", more: Mapping[str, object] | None = None) -> Iterator[Deployment]:
    """Build the wheel, serve the stand-ins' repositories until the end of the block, and write down the variables.

    `more`: variables in addition to those that every deployment here is given; they win.
    """
    wheel = wheels.build(host.directory / "wheel")
    with packages.repositories(host.directory / "repositories", host.network.here) as repositories:
        variables: dict[str, object] = {
            "gateway_wheel": str(wheel),
            # Small, so that a handful of clients is a crowd.
            "gateway_max_active": 2,
            "gateway_queue_max": 2,
            "gateway_queue_timeout_s": 4,
            "vllm_device": "cpu",
            "vllm_hf_token": TOKEN,
            "vllm_instances": [
                {"name": "main", "max_model_len": 2048, "max_num_seqs": 4, "tool_call_parser": "hermes"}
            ],
            "nvidia_driver_manage": False,
            "dcgm_exporter_manage": True,
            "dcgm_exporter_repository_url": repositories.nvidia,
            "dcgm_exporter_repository_key": repositories.key,
            "grafana_repository_url": repositories.grafana,
            "grafana_repository_key": repositories.key,
            "grafana_admin_password": PASSWORD,
            "firewall_manage": True,
            **(more or {}),
        }
        yield Deployment(host, variables, snapshot.take(host), time.time(), logs)
