"""What is wrong with a configuration, one line per fault, safe to print and to log."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

#: A value longer than this is cut when it is shown: the reader only has to recognise it.
SHOWN_MAX_CHARS = 80


class SettingError(ValueError):
    """A value that a setting does not accept. The message says what is allowed and never holds the value."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing to mend.

    `where` is the file's name or "environment"; `key` the setting as it is spelled there ("admission.max_active" or
    "MAX_ACTIVE"), empty when the file as a whole is at fault; `value` comes from `shown`, or is None where there is
    none to show; `line` counts from 1 and is known for syntax errors only.
    """

    where: str
    key: str
    value: str | None
    message: str
    line: int | None = None

    def __str__(self) -> str:
        place = self.where if self.line is None else f"{self.where}:{self.line}"
        subject = [self.key if self.value is None else f"{self.key} = {self.value}"] if self.key else []
        return printable(": ".join([place, *subject, self.message]))


class ConfigError(Exception):
    """A configuration that cannot be used: every fault that was found, never only the first."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = list(faults)
        super().__init__("\n".join(map(str, self.faults)))


def shown(value: object) -> str:
    """`value` as the reader wrote it, on one line, cut to a readable length, without what may be secret in a URL."""
    match value:
        case str():
            text = f'"{cut(printable(redacted(value)))}"'
        case bool():
            text = str(value).lower()
        case int() if value.bit_length() > 256:
            # Python refuses to print very long numbers, and TOML can hold them in hexadecimal.
            text = "a very long number"
        case list():
            text = "[…]"
        case dict():
            text = "{…}"
        case _:
            text = str(value)
    return text


def redacted(text: str) -> str:
    """`text` without the user name and password, query and fragment that it would have if it were a URL."""
    head, at, tail = text.rpartition("@")
    if at:
        scheme, separator, _ = head.partition("://")
        text = f"{scheme}{separator}***@{tail}" if separator else f"***@{tail}"
    return re.sub(r"([?#]).*", r"\1***", text, flags=re.DOTALL)


def cut(text: str) -> str:
    return text if len(text) <= SHOWN_MAX_CHARS else text[: SHOWN_MAX_CHARS - 1] + "…"


def printable(text: str) -> str:
    """`text` on one line: whatever would move the cursor or cannot be encoded is written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
