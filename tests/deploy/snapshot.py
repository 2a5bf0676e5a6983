"""What is on a host: its files, users, packages and units, to tell what a playbook has changed and what it has left."""

from dataclasses import dataclass

from tests.deploy.host import ADMIN, Host

#: Where the system itself keeps changing things, and where Ansible and apt leave their caches and logs.
IGNORED = (
    "/dev", "/proc", "/run", "/sys", "/tmp", "/var/cache", "/var/lib/apt", "/var/lib/dpkg", "/var/log", "/var/tmp",
    "/var/lib/systemd", "/root/.ansible", f"/home/{ADMIN}", "/etc/ld.so.cache", "/usr/lib/locale",
    # Accounts are compared one by one.
    "/etc/group", "/etc/group-", "/etc/gshadow", "/etc/gshadow-", "/etc/passwd", "/etc/passwd-", "/etc/shadow",
    "/etc/shadow-", "/etc/subuid", "/etc/subuid-", "/etc/subgid", "/etc/subgid-",
)  # fmt: skip

#: Path, type, mode, owner, group and what tells one content from another cheaply: size and time of the last change.
FORMAT = r"%p|%y %m %u:%g %s %T@ %l\n"


@dataclass(frozen=True)
class Snapshot:
    """A host at one moment. `files`: path → what it is."""

    files: dict[str, str]
    accounts: frozenset[str]
    packages: frozenset[str]
    units: frozenset[str]

    def changes(self, before: "Snapshot") -> list[str]:
        """What is not as it was `before`, one line each; directories count by being there alone."""
        lines = [f"gone: {path}" for path in before.files.keys() - self.files.keys()]
        lines += [f"new: {path}" for path in self.files.keys() - before.files.keys()]
        lines += [
            f"changed: {path} ({before.files[path]} -> {what})"
            for path, what in self.files.items()
            if path in before.files and not what.startswith("d") and what != before.files[path]
        ]
        for kind in ("accounts", "packages", "units"):
            was, now = getattr(before, kind), getattr(self, kind)
            lines += [f"{kind}: {sign} {each}" for sign, some in (("+", now - was), ("-", was - now)) for each in some]
        return sorted(lines)


def take(host: Host) -> Snapshot:
    """Look at everything; about a second."""
    prunes = [word for path in IGNORED for word in ("-path", path, "-o")]
    listing = host.output("find", "/", "-xdev", "(", *prunes[:-1], ")", "-prune", "-o", "-printf", FORMAT)
    units = host.output("systemctl", "list-unit-files", "--no-legend", "--plain")
    return Snapshot(
        dict(line.split("|", 1) for line in listing.splitlines()),
        frozenset(host.output("getent", "passwd").splitlines() + host.output("getent", "group").splitlines()),
        frozenset(host.output("dpkg-query", "--show", "--showformat=${db:Status-Abbrev} ${Package}\n").splitlines()),
        # Sessions of users come and go; theirs are transient.
        frozenset(line for line in units.splitlines() if "transient" not in line.split()),
    )


def files_of(host: Host, packages: list[str]) -> set[str]:
    """All files of these packages, as they are named since /bin, /lib and /sbin are links into /usr."""
    if not packages:
        return set()
    listed = host.output("dpkg", "--listfiles", *packages).splitlines()
    return {f"/usr{path}" if path.startswith(("/bin/", "/lib/", "/sbin/")) else path for path in listed}
