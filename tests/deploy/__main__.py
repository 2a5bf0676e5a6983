"""Boot a host to look around in, with everything that the playbooks need, and keep it until Ctrl-C."""

import contextlib
import shlex
import signal

from tests.deploy.deployment import prepared
from tests.deploy.host import booted_host, inventory, ssh_command
from tests.deploy.playbooks import ANSIBLE


def main() -> None:
    """Boot it and say how to enter it and how to build on it."""
    with booted_host() as host, prepared(host) as deployment, contextlib.suppress(KeyboardInterrupt):
        path = host.directory / "inventory.yml"
        path.write_text(inventory(host, deployment.variables))
        print(f"{host.name} is up; Ctrl-C removes it.", flush=True)
        print(f"  enter:  nsenter --target {host.pid} --all bash -l")
        print(f"  SSH:    {shlex.join(ssh_command(host))}")
        print(f"  build:  cd {ANSIBLE} && ansible-playbook playbooks/site.yml --inventory {path}", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
