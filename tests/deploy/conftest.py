"""What the sequences share: their fixtures, and what a failing step leaves behind to find its reason by.

A module says with its own fixture `host` what its sequence runs on, and with `built` how that is deployed.
"""

from collections.abc import Generator

import pytest

pytest.register_assert_rewrite("tests.deploy.checks")

from tests.deploy.deployment import Deployment  # noqa: E402 (what is rewritten must not be imported yet)
from tests.deploy.host import Host  # noqa: E402
from tests.deploy.playbooks import LOGS  # noqa: E402
from tests.deploy.prometheus import Prometheus  # noqa: E402
from tests.deploy.visitors import Gateway  # noqa: E402


@pytest.fixture(scope="module")
def gateway(built: Deployment) -> Gateway:
    """The gateway as clients see it."""
    return Gateway(f"http://{built.host.network.host}:8080")


@pytest.fixture(scope="module")
def prometheus(built: Deployment) -> Prometheus:
    """The live Prometheus."""
    return Prometheus(built.host)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Save the journal of the host that a failed test used."""
    report = yield
    host = item.funcargs.get("host")
    if report.failed and isinstance(host, Host):
        path = LOGS / f"{item.path.stem}-{item.name}.journal"
        host.save_journal(path)
        report.sections.append(("Host", f"The host's journal is in {path}."))
    return report
