"""What a failing step leaves behind for whoever looks for the reason: the host's journal, in build/deploy."""

from collections.abc import Generator

import pytest

from tests.deploy.host import Host
from tests.deploy.playbooks import LOGS


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Save the journal of the host that a failed test used."""
    report = yield
    host = item.funcargs.get("host")
    if report.failed and isinstance(host, Host):
        path = LOGS / f"{item.name}.journal"
        host.save_journal(path)
        report.sections.append(("Host", f"The host's journal is in {path}."))
    return report
