"""Secrets: read from files, never from the configuration, and never shown."""

from pathlib import Path

import pytest

from sluicegate.config.faults import ConfigError
from sluicegate.config.load import load, resolve
from sluicegate.config.secret import SECRET_MAX_BYTES, with_secrets
from sluicegate.config.show import to_toml


def key_of(where: str, **environ: str) -> str:
    return with_secrets(load(f'[engine]\napi_key = "{where}"\n', "f.toml", {}), environ).engine.key


def test_none_unless_one_is_named() -> None:
    assert with_secrets(load("", "f.toml", {}), {}).engine.key == ""


def test_file_and_credential(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sesame\n")
    assert key_of(str(file)) == "sesame"
    assert key_of("credential:key", CREDENTIALS_DIRECTORY=str(tmp_path)) == "sesame"


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"two words", b"two\nlines", "schlüssel".encode(), b"k" * (SECRET_MAX_BYTES + 1)]
)
def test_a_file_that_holds_no_key(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        key_of(str(tmp_path / "key"))
    assert "engine.api_key" in str(caught.value)
    assert str(tmp_path / "key") in str(caught.value)
    assert "must hold the key and nothing else" in str(caught.value)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("/nonexistent/key", "/nonexistent/key cannot be read: No such file or directory"),
        ("credential:key", "needs LoadCredential=key:FILE in the unit"),
    ],
)
def test_a_file_that_cannot_be_read(where: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        key_of(where)


@pytest.mark.parametrize(
    "where", ["sk-sesame", "credential:", "credential:../sesame", "credential:..", "/sesame/", "s"]
)
def test_a_key_instead_of_a_file_is_not_shown(where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(f'[engine]\napi_key = "{where}"\n', "f.toml", {})
    (fault,) = caught.value.faults
    assert fault.value == '"***"'
    assert "sesame" not in str(fault)


def test_a_key_is_nowhere_in_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sesame")
    resolved = resolve(f'[engine]\napi_key = "{tmp_path}/key"\n', "f.toml", {})
    config = with_secrets(resolved.config, {})
    assert config.engine.key == "sesame"
    assert "sesame" not in repr(config) + to_toml(config, resolved.origins)
