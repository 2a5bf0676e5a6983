"""Certificates of an authority that nobody but the tests trusts."""

import datetime
import functools
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Files:
    """The certificate with its chain, its key, and the certificate of its authority: PEM files."""

    certificate: str
    key: str
    authority: str

    @property
    def settings(self) -> dict[str, str]:
        """As the gateway's settings."""
        return {"certificate": self.certificate, "key": self.key}

    @property
    def toml(self) -> str:
        """As the gateway's [tls]."""
        return f'[tls]\ncertificate = "{self.certificate}"\nkey = "{self.key}"\n'


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


def issue(
    directory: Path, name: str = "gateway", ca: trustme.CA | None = None, not_after: datetime.datetime | None = None
) -> Files:
    """A certificate for this host and its names, of `ca` or of the usual authority, written to `directory`."""
    ca = ca or authority()
    made = ca.issue_cert("127.0.0.1", "localhost", key_type=trustme.KeyType.ECDSA, not_after=not_after)
    files = Files(*(str(directory / f"{name}-{part}.pem") for part in ("certificate", "key", "authority")))
    Path(files.certificate).write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    made.private_key_pem.write_to_path(files.key)
    ca.cert_pem.write_to_path(files.authority)
    return files


_kept = tempfile.TemporaryDirectory(prefix="sluicegate-tests-")  # removed when the tests end


@functools.cache
def usual() -> Files:
    """The certificate of every gateway that needs no other."""
    return issue(Path(_kept.name))


def trusting(*protocols: str, files: Files | None = None) -> ssl.SSLContext:
    """A client's context. `protocols`: for ALPN. `files`: its own certificate."""
    context = ssl.create_default_context(cafile=usual().authority)
    if protocols:
        context.set_alpn_protocols(protocols)
    if files is not None:
        context.load_cert_chain(files.certificate, files.key)
    return context
