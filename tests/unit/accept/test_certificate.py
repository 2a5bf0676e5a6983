"""Certificates: what is read from their files, and what is said of those that cannot be used."""

import datetime
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from sluicegate.accept.certificate import load_certificate
from sluicegate.config.faults import ConfigError
from sluicegate.config.schema import TlsConfig
from tests.certificates import Files, issue


def loaded(files: Files, **changes: str) -> str:
    """What is wrong with them; "" if they can be used."""
    try:
        load_certificate(TlsConfig(**{**files.settings, **changes}), {})
    except ConfigError as error:
        return str(error)
    return ""


def test_without_a_certificate_there_is_none() -> None:
    assert load_certificate(TlsConfig(), {}) is None


@pytest.mark.parametrize("year", [2026, 2049, 2050, 2051, 9999])
def test_when_it_expires(tmp_path: Path, year: int) -> None:
    """Times up to 2049 have two digits of the year, later ones four (RFC 5280, 4.1.2.5)."""
    at = datetime.datetime(year, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
    files = issue(tmp_path, ca=trustme.CA(), not_after=at)
    certificate = load_certificate(TlsConfig(**files.settings), {})
    assert certificate is not None
    assert certificate.expires_at == at.timestamp()
    assert f"{year}-12-31 23:59 UTC" in str(certificate)


def test_the_first_of_its_chain_to_expire_counts(tmp_path: Path) -> None:
    files = issue(tmp_path, not_after=datetime.datetime(2050, 1, 1, tzinfo=datetime.UTC))
    earlier = issue(tmp_path, "earlier", not_after=datetime.datetime(2040, 1, 1, tzinfo=datetime.UTC))
    with Path(files.certificate).open("ab") as chain:
        chain.write(b"a comment\n" + Path(earlier.certificate).read_bytes())
    certificate = load_certificate(TlsConfig(**files.settings), {})
    assert certificate is not None
    assert "2040-01-01" in str(certificate)


def test_credentials_of_the_unit(tmp_path: Path) -> None:
    files = issue(tmp_path)
    names = {key: f"credential:{Path(path).name}" for key, path in files.settings.items()}
    certificate = load_certificate(TlsConfig(**names), {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert certificate is not None
    assert certificate.name == names["certificate"]
    for environ in ({}, {"CREDENTIALS_DIRECTORY": ""}, {"CREDENTIALS_DIRECTORY": str(tmp_path / "other")}):
        with pytest.raises(ConfigError, match=r"LoadCredential=|cannot be read"):
            load_certificate(TlsConfig(**names), environ)
    with pytest.raises(ConfigError, match="no such credential"):
        load_certificate(TlsConfig("credential:../x", files.key), {"CREDENTIALS_DIRECTORY": str(tmp_path)})


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    """Each is named, with what to do; and nothing is asked for on the terminal."""
    files, other = issue(tmp_path), issue(tmp_path, "other")
    encrypted = tmp_path / "encrypted.pem"
    key = load_pem_private_key(Path(files.key).read_bytes(), None)
    encrypted.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"sesame"))
    )
    garbled, long = tmp_path / "garbled.pem", tmp_path / "long.pem"
    garbled.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    long.write_bytes(Path(files.certificate).read_bytes() + bytes(2**20))
    assert loaded(files) == ""
    assert loaded(files, key=other.key) == (
        f"{files.certificate}: cannot be used with {other.key}: the key does not belong to the certificate"
    )
    assert "the key is encrypted; write one without a password" in loaded(files, key=str(encrypted))
    assert loaded(files, key=f"{tmp_path}/none") == f"{tmp_path}/none: cannot be read: No such file or directory"
    assert loaded(files, certificate=str(tmp_path)) == f"{tmp_path}: cannot be read: Is a directory"
    assert loaded(files, certificate=str(garbled)).startswith(f"{garbled}: cannot be used with {files.key}: ")
    assert loaded(files, certificate=str(long)) == f"{long}: is no PEM file"
    assert loaded(files, client_ca=str(garbled)).startswith(f"{garbled}: is no list of authorities: ")
    assert loaded(files, client_ca=f"{tmp_path}/none").startswith(f"{tmp_path}/none: cannot be read: ")
