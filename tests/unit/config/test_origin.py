"""Origins of web pages: what is understood, and what is none."""

import pytest

from sluicegate.config.faults import SettingError
from sluicegate.config.origin import parse_origin


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("*", "*"),
        ("https://chat.example", "https://chat.example"),
        ("HTTPS://Chat.Example", "https://chat.example"),
        ("https://chat.example:443", "https://chat.example"),
        ("http://chat.example:80", "http://chat.example"),
        ("http://chat.example:443", "http://chat.example:443"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("tauri://localhost", "tauri://localhost"),
        ("app://obsidian.md", "app://obsidian.md"),
    ],
)
def test_origins(text: str, origin: str) -> None:
    assert parse_origin(text) == origin
    assert parse_origin(origin) == origin


@pytest.mark.parametrize(
    "text",
    ["", "null", "chat.example", "https://", "https://chat.example/", "https://chat.example/v1", "https://*.example",
     "https://a b", "https://chat.example:x", "https://user@chat.example", "https://chat.example\n", "http://a, http://b",
     "https://büro.example"],
)  # fmt: skip
def test_no_origins(text: str) -> None:
    with pytest.raises(SettingError, match="an origin has no path"):
        parse_origin(text)
