"""Secrets: the configuration names the file that holds one, and never holds it. `with_secrets` reads the file."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from .address import CREDENTIAL
from .faults import ConfigError, Fault
from .schema import Config

#: A longer file holds something else (bytes).
SECRET_MAX_BYTES = 4096

#: What a header can carry: one word of ASCII.
_WORD = re.compile(rb"[\x21-\x7e]+")


def with_secrets(config: Config, environ: Mapping[str, str]) -> Config:
    """`config` with the secrets that its files hold. `environ` tells where systemd's credentials are.

    Raises ConfigError if a file cannot be read, or holds anything but one word. No message says what it holds.
    """
    if not config.engine.api_key:
        return config
    key = _read("engine.api_key", config.engine.api_key, environ)
    return dataclasses.replace(config, engine=dataclasses.replace(config.engine, key=key))


def file_named(where: str, environ: Mapping[str, str]) -> Path | None:
    """The file that `where` names: a path, or `credential:NAME`; None if systemd passes no such credential."""
    name = where.removeprefix(CREDENTIAL)
    if name == where:
        return Path(where)
    directory = environ.get("CREDENTIALS_DIRECTORY")
    return Path(directory, name) if directory and Path(name).name == name else None


def _read(setting: str, where: str, environ: Mapping[str, str]) -> str:
    path = file_named(where, environ)
    if path is None:
        name = where.removeprefix(CREDENTIAL)
        raise _fault(setting, f"{where} needs LoadCredential={name}:FILE in the unit; elsewhere name the file itself")
    try:
        with path.open("rb") as file:
            data = file.read(SECRET_MAX_BYTES + 1)
    except OSError as error:
        raise _fault(setting, f"{path} cannot be read: {error.strerror or error}") from error
    word = data.strip()
    if len(data) > SECRET_MAX_BYTES or not _WORD.fullmatch(word):
        raise _fault(setting, f"{path} must hold the key and nothing else: one word of ASCII, {SECRET_MAX_BYTES} bytes")
    return word.decode("ascii")


def _fault(setting: str, message: str) -> ConfigError:
    return ConfigError([Fault("configuration", setting, None, message)])
