"""The certificate that clients are served with: read from its files, checked, and when it expires."""

import calendar
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..config.faults import ConfigError, Fault
from ..config.schema import TlsConfig
from ..config.secret import file_named
from .sockets import TlsSocket

#: A certificate with its chain, a key, or a bundle of authorities is some kilobytes.
FILE_MAX_BYTES = 1 << 20

#: For TLS 1.2: forward secrecy and authenticated encryption. TLS 1.3 has nothing else.
_CIPHERS_1_2 = "ECDHE+AESGCM:ECDHE+CHACHA20"

_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"

#: What OpenSSL calls reasons that an operator can do something about.
_SENTENCES = {
    "KEY_VALUES_MISMATCH": "the key does not belong to the certificate",
    "EE_KEY_TOO_SMALL": "the certificate's key is too short; make one with 2048 bits (RSA) or P-256",
    "CA_KEY_TOO_SMALL": "the key of an authority in the chain is too short",
    "CA_MD_TOO_WEAK": "the certificate is signed with a broken hash",
}


@dataclass(frozen=True, slots=True)
class Certificate:
    """What new connections are served with. `expires_at`: in seconds since 1970, the earliest of the chain."""

    name: str
    context: ssl.SSLContext
    expires_at: float

    def __str__(self) -> str:
        until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.expires_at))
        return f"{self.name}, {'expired' if self.expires_at < time.time() else 'valid until'} {until}"


def load_certificate(config: TlsConfig, environ: Mapping[str, str]) -> Certificate | None:
    """Read the files that `config` names; None if it names none. Raises ConfigError with what is wrong with them.

    An expired certificate is none of its faults: nobody is served better without one, and there is an alert.
    """
    if not config.certificate:
        return None
    certificate, key = _path(config.certificate, environ), _path(config.key, environ)
    pem = _read(certificate)
    _read(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS_1_2)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.sslsocket_class = TlsSocket
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        # Without a password OpenSSL would ask on the terminal for that of an encrypted key.
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        raise _fault(certificate, f"cannot be used with {key}: {_reason(error)}") from None
    if config.client_ca:
        authority = _path(config.client_ca, environ)
        _read(authority)
        try:
            context.load_verify_locations(authority)
        except OSError as error:
            raise _fault(authority, f"is no list of authorities: {_reason(error)}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    try:
        expires_at = min(map(_not_after, _certificates(pem)))
    except (ValueError, IndexError):
        raise _fault(certificate, "its expiry cannot be read") from None
    return Certificate(config.certificate, context, expires_at)


def _no_password() -> str:
    raise ValueError("the key is encrypted; write one without a password, readable to the gateway alone")


def _path(name: str, environ: Mapping[str, str]) -> Path:
    path = file_named(name, environ)
    if path is None:
        raise ConfigError([Fault(name, "", None, "no such credential: the unit needs LoadCredential= for it")])
    return path


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        raise _fault(file, f"cannot be read: {error.strerror or error}") from None
    if b"-----BEGIN " not in data or len(data) > FILE_MAX_BYTES:
        raise _fault(file, "is no PEM file")
    return data


def _fault(file: Path, message: str) -> ConfigError:
    return ConfigError([Fault(str(file), "", None, message)])


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return _SENTENCES.get(error.reason, error.reason.replace("_", " ").lower())
    return str(error)


def _certificates(pem: bytes) -> list[bytes]:
    """The certificates in `pem`, in DER; at least one, or ValueError."""
    found = [part.partition(_END)[0] for part in pem.split(_BEGIN)[1:]]
    if not found:
        raise ValueError
    return [ssl.PEM_cert_to_DER_cert((_BEGIN + one + _END).decode("ascii")) for one in found]


def _not_after(der: bytes) -> float:
    """When a certificate expires (RFC 5280, 4.1): tbsCertificate, and in it validity, and in it the second time."""
    fields = _elements(_elements(_elements(der)[0][1])[0][1])
    if fields[0][0] == 0xA0:  # the version, which the first one has not
        del fields[0]
    tag, text = _elements(fields[3][1])[1]
    digits = text.decode("ascii")
    if tag == 0x17:  # UTCTime: two digits of the year
        digits = ("19" if digits >= "50" else "20") + digits
    return calendar.timegm(time.strptime(digits, "%Y%m%d%H%M%SZ"))


def _elements(data: bytes) -> list[tuple[int, bytes]]:
    """The elements of a DER sequence's content: tag and content. ValueError if it is none."""
    found = []
    at = 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(data[at : at + size], "big"), at + size
        found.append((tag, data[at : at + length]))
        at += length
    return found
