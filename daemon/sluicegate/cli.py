"""argv → command. Exit codes: 0 done, 1 it could not be done, 2 the command line or the configuration is at fault,
3 the configuration is valid, but a gateway that runs needs a restart to take it over.

Every command imports what it needs when it is chosen: `check` must not load an HTTP server to read a file.
"""

import argparse
import errno
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .accept.certificate import load_certificate
from .config.load import ConfigError, Resolved, resolve_file
from .config.schema import Address

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_FAULTS = 2
EXIT_RESTART = 3

#: What to do about an address that cannot be listened on, where the error's name alone does not say it.
_TCP_ADVICE = {
    errno.EADDRINUSE: "another program listens there; stop it, or set another address (listen, LISTEN)",
    errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE; set a higher port (listen, LISTEN)",
    errno.EADDRNOTAVAIL: "this host has no such address; set one of its own (listen, LISTEN)",
}
_UNIX_ADVICE = {
    errno.EADDRINUSE: "another program listens there, or left its socket behind; stop it, or remove the file",
    errno.EACCES: "this user may not create a file there; set another path (listen, LISTEN)",
    errno.ENOENT: "its directory does not exist; create it, or set another path (listen, LISTEN)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Raises SystemExit as argparse does (usage errors, help, version)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["run"]:
        # Its options, --help included, are its own: they never pass through this parser.
        return _run(arguments[1:])
    options = _parser().parse_args(arguments)
    try:
        resolved = resolve_file(options.config, os.environ)
        if options.command == "check":
            load_certificate(resolved.config.tls, os.environ)
    except ConfigError as error:
        _print_faults(error)
        return EXIT_FAULTS
    if options.command == "check":
        return _check(resolved, options.running, show=options.show)
    return _serve(resolved, options.config)


def _serve(resolved: Resolved, file: Path | None) -> int:
    from .config.secret import with_secrets
    from .lifecycle import serve
    from .service.systemd import HandoverError

    try:
        config = with_secrets(resolved.config, os.environ)
        return serve(config, lambda: with_secrets(resolve_file(file, os.environ).config, os.environ))
    except ConfigError as error:
        _print_faults(error)
        return EXIT_FAULTS
    except HandoverError as error:
        print(f"sluicegate: {error}", file=sys.stderr)
        return EXIT_FAILED
    except OSError as error:
        print(f"sluicegate: {_why_not_listening(resolved.config.listen, error)}", file=sys.stderr)
        return EXIT_FAILED


def _check(resolved: Resolved, running: Path | None, *, show: bool) -> int:
    from .config.show import to_toml

    status = EXIT_OK
    verdict = f"{resolved.source}: " + ("absent; the environment is valid" if resolved.absent else "valid")
    if running is not None:
        try:
            status, effect = _compare(resolved, running)
        except ConfigError as error:
            _print_faults(error)
            return EXIT_FAILED
        verdict += f"; {effect}"
    if show:
        # With the verdict as a comment, the output can be redirected to a file and is a configuration itself.
        print(f"# {verdict}")
        print(to_toml(resolved.config, resolved.origins), end="")
    else:
        print(verdict)
    return status


def _compare(resolved: Resolved, running: Path) -> tuple[int, str]:
    """Whether a gateway that runs with the file `running` takes the new one over by a reload, and what changes."""
    from .config.reload import changes, told, why_not

    changed = changes(resolve_file(running, os.environ).config, resolved.config)
    if refusal := why_not(changed):
        return EXIT_RESTART, f"a reload is refused: {refusal}"
    return EXIT_OK, f"a reload applies it: {told(changed)}" if changed else told(changed)


def _print_faults(error: ConfigError) -> None:
    for fault in error.faults:
        print(fault, file=sys.stderr)


def _run(argv: list[str]) -> int:
    try:
        from sluicegate_run.run import main as run
    except ModuleNotFoundError as error:
        if error.name != "sluicegate_run":
            raise
        missing = "is not in the deployed package: run `make run` in a checkout of Sluicegate's repository"
        print(f"sluicegate run {missing}", file=sys.stderr)
        return EXIT_FAILED
    return run(argv)


def _why_not_listening(addresses: Sequence[Address], error: OSError) -> str:
    """One sentence: the address (`filename` of the error, if it is about one), what is wrong with it, what to do."""
    listen = str(error.filename or " and ".join(map(str, addresses)))
    what = error.strerror or str(error)
    if isinstance(error, socket.gaierror):
        return f"cannot listen on {listen}: {what}: the host's name must have an address (listen, LISTEN)"
    advice = (_UNIX_ADVICE if listen.startswith("unix:") else _TCP_ADVICE).get(error.errno or 0)
    if advice is None:
        return f"cannot serve on {listen}: {what}"
    return f"cannot listen on {listen}: {what}: {advice}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sluicegate", description="The gate in front of a GPU.")
    parser.add_argument("--version", action="version", version=f"sluicegate {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="start the gateway")
    check = commands.add_parser("check", help="say whether the configuration is valid, and start nothing")
    check.add_argument("-v", "--show", action="store_true", help="print it whole, with where each value came from")
    check.add_argument(
        "--running",
        type=Path,
        metavar="FILE",
        help="the file that a gateway runs with: also say whether a reload takes the other one over (exit code 3: no)",
    )
    # Only for the list of commands; main() hands its arguments on.
    commands.add_parser("run", add_help=False, help="prepare a small model, start engine and gateway, and talk to it")
    for command in (serve, check):
        command.add_argument(
            "--config", type=Path, metavar="FILE", help="default: /etc/sluicegate/sluicegate.toml, which may be absent"
        )
    return parser
