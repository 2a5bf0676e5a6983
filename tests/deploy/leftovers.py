"""What an uninstall has left on a host, but for what belongs to Debian's packages: others may use those by now."""

import re

from tests.deploy import snapshot
from tests.deploy.deployment import Deployment

#: What an uninstall without the data may leave: databases, who owns them, and the key that Grafana's is encrypted with.
DATA = re.compile(
    r"new: /var/lib/(sluicegate|vllm|prometheus|grafana)(/|$)"
    r"|accounts: \+ (sluicegate|vllm):"
    r"|new: /etc/grafana(/credentials(/secret-key)?)?$"
    r"|packages: \+ rc +grafana$"
)

#: Packages make accounts and leave them when they go: Debian does not give their numbers to others.
PACKAGES_ACCOUNTS = ("+ grafana:", "+ prometheus:")

#: What scripts of Debian's packages made, of netbase and javascript-common, which belongs to no package.
BY_INSTALLATION = {
    "/etc/networks",
    "/etc/lighttpd",
    "/etc/lighttpd/conf-enabled",
    "/etc/lighttpd/conf-enabled/90-javascript-alias.conf",
}


def left(deployment: Deployment) -> list[str]:
    """What is on the host that was not there before, a line each."""
    now = snapshot.take(deployment.host)
    added = sorted(line.split()[-1] for line in now.packages - deployment.fresh.packages if line.startswith("ii"))
    owned = snapshot.files_of(deployment.host, added)
    return [line for line in now.changes(deployment.fresh) if not _of_a_package(line, owned)]


def without_data(lines: list[str]) -> list[str]:
    """The lines that are not about data, which an uninstall leaves unless it is told otherwise."""
    return [line for line in lines if not DATA.match(line)]


def _of_a_package(line: str, owned: set[str]) -> bool:
    """Whether a change is an installed package, a file of one or what its installation made of it."""
    kind, _, what = line.partition(": ")
    match kind:
        case "packages":
            return what.startswith("+ ii")
        case "accounts":
            return what.startswith(PACKAGES_ACCOUNTS)
        case "units":
            return f"/usr/lib/systemd/system/{what.split()[1]}" in owned
        case "new":
            return what in owned or "/__pycache__" in what or what in BY_INSTALLATION
    return False
