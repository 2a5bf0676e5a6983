"""Where a secret can be seen on a host by others than its owner: environments, command lines and the journal."""

from tests.deploy.eventually import eventually
from tests.deploy.host import Host

#: Shaped like a token, and in use nowhere.
PLANTED = "hf_planted-to-see-that-it-is-found"

#: journald writes at once; this is for a busy machine (seconds).
SOON_S = 20.0


def found(host: Host, secret: str) -> dict[str, str]:
    """The places that hold `secret` → what shows it there: paths below /proc, or the lines of the journal."""
    shown = {}
    for place in ("environ", "cmdline"):
        # What is looked for comes by standard input, or the search would find itself.
        search = f"grep --files-with-matches --text --fixed-strings --file=- /proc/[0-9]*/{place} 2>/dev/null"
        # grep's exit status says nothing: processes that end meanwhile are errors to it.
        shown[place] = host.run("sh", "-c", search, stdin=secret, check=False).stdout
    journal = host.output("journalctl", "--no-pager", "--output=cat").splitlines()
    shown["journal"] = "\n".join(line for line in journal if secret in line)
    return {place: text for place, text in shown.items() if text}


def search_finds_a_planted_text(host: Host) -> bool:
    """Whether `found` sees a text in each of its places, once it has been put there, and not before."""
    before = found(host, PLANTED)
    unit = "planted.service"
    run = ("systemd-run", f"--unit={unit}", "--description=A text that must be found", f"--setenv=PLANTED={PLANTED}")
    host.run(*run, "sh", "-c", f"echo {PLANTED}; sleep infinity")
    try:

        def everywhere() -> None:
            assert set(found(host, PLANTED)) == {"environ", "cmdline", "journal"}

        eventually(everywhere, SOON_S)
    finally:
        host.run("systemctl", "stop", unit)
    return before == {}
