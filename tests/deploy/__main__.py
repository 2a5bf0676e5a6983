"""Boot a host to look around in, with everything that the playbooks need, and keep it until Ctrl-C.

python -m tests.deploy [SUITE]: bookworm, or trixie.
"""

import contextlib
import shlex
import signal
import sys

from tests.deploy.deployment import prepared
from tests.deploy.host import booted_host, enter_command, inventory, ssh_command
from tests.deploy.image import DEBIAN_12
from tests.deploy.playbooks import ANSIBLE


def main() -> None:
    """Boot it and say how to enter it and how to build on it."""
    suite = sys.argv[1] if len(sys.argv) > 1 else DEBIAN_12
    with booted_host(suite) as host, prepared(host) as deployment, contextlib.suppress(KeyboardInterrupt):
        path = host.directory / "inventory.yml"
        path.write_text(inventory(host, deployment.variables))
        print(f"{host.name} is up; Ctrl-C removes it.", flush=True)
        print(f"  enter:  {shlex.join(enter_command(host))}")
        print(f"  SSH:    {shlex.join(ssh_command(host))}")
        print(f"  build:  cd {ANSIBLE} && ansible-playbook playbooks/site.yml --inventory {path}", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
