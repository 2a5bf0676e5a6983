"""The schema, flat: one Setting per field, which knows what it accepts. Reader, printer and manual walk this list."""

import dataclasses
import enum
import re
from dataclasses import dataclass
from typing import Any, get_origin, get_type_hints

from .address import Notation
from .faults import SettingError
from .schema import Config

# Stricter than int() and float(), which take underscores, spaces and other alphabets' digits. The length of an integer
# is bounded because int() refuses some 4,300 digits and more with an error of its own.
_NUMBERS: dict[Any, re.Pattern[str]] = {
    int: re.compile(r"[+-]?[0-9]{1,18}"),
    float: re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"),
}

_UNITS = {"_s": " of seconds", "_bytes": " of bytes"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `table` is empty for those at the top of the file; the rest is the field's own metadata."""

    table: str
    name: str
    type: Any
    default: Any
    doc: str
    env: str | None
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    notation: Notation[Any] | None
    restart: bool

    @property
    def key(self) -> str:
        """The name by which faults and the manual call it: "admission.max_active"."""
        return f"{self.table}.{self.name}" if self.table else self.name

    @property
    def many(self) -> bool:
        """Whether it is a list of what `notation` says."""
        return get_origin(self.type) is tuple

    @property
    def allowed(self) -> str:
        """What it accepts, as it follows the words "must be"."""
        if self.notation:
            return self.notation.allowed
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.type is str:
            return "a text without control characters"
        number = "a whole number" if self.type is int else "a number"
        unit = next((unit for ending, unit in _UNITS.items() if self.name.endswith(ending)), "")
        return f"{number}{unit} from {self.low} to {self.high}"

    def convert(self, value: object) -> Any:
        """The field's value for a value out of TOML. Raises SettingError."""
        if self.notation and self.many:
            if isinstance(value, list) and all(isinstance(one, str) for one in value):
                return tuple(map(self.notation.parse, value))
        elif self.notation and isinstance(value, str):
            return self.notation.parse(value)
        if self.choices and isinstance(value, str) and value.lower() in self.choices:
            return self.type(value.lower())
        if self.type is str and not self.choices and isinstance(value, str) and value.isprintable():
            return value
        if self.type in _NUMBERS and self._in_range(value):
            return self.type(value)
        raise SettingError(f"must be {self.allowed}")

    def convert_text(self, text: str) -> Any:
        """The field's value for the text of an environment variable. Raises SettingError."""
        number = _NUMBERS.get(self.type)
        return self.convert(self.type(text) if number and number.fullmatch(text) else text)

    def write(self, value: Any) -> str:
        """`value`, which is one that `convert` gave, in TOML."""
        if self.type in _NUMBERS:
            return repr(value)
        if self.many:
            return f"[{', '.join(map(self._write_text, value))}]"
        return self._write_text(value)

    def _write_text(self, value: Any) -> str:
        text = self.notation.write(value) if self.notation else str(value)
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    def _in_range(self, value: object) -> bool:
        # To Python a bool is an int, and to TOML an integer is no float although everybody writes one for the other.
        numbers = int if self.type is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, numbers):
            return False
        assert self.low is not None
        assert self.high is not None
        # False for NaN and, as the bounds are finite, for the infinities.
        return self.low <= value <= self.high


def settings_of(cls: type, table: str) -> list[Setting]:
    """One Setting for each field of a configuration class that was made by `schema.setting`, in their order."""
    types = get_type_hints(cls)
    return [_setting(field, types[field.name], table) for field in dataclasses.fields(cls) if field.metadata]


def _setting(field: dataclasses.Field[Any], type_: Any, table: str) -> Setting:
    metadata = dict(field.metadata)
    if isinstance(type_, type) and issubclass(type_, enum.StrEnum):
        metadata["choices"] = tuple(member.value for member in type_)
    return Setting(table=table, name=field.name, type=type_, default=field.default, **metadata)


#: The tables of the file and the classes that hold them, in the schema's order.
TABLES: dict[str, type] = {
    name: type_
    for name, type_ in get_type_hints(Config).items()
    if isinstance(type_, type) and dataclasses.is_dataclass(type_)
}

#: Every setting by its key, in the schema's order.
SETTINGS: dict[str, Setting] = {
    setting.key: setting
    for setting in [*settings_of(Config, ""), *(s for name, cls in TABLES.items() for s in settings_of(cls, name))]
}


def value_of(config: Config, setting: Setting) -> Any:
    """What `config` says for `setting`."""
    return getattr(getattr(config, setting.table) if setting.table else config, setting.name)


def build(values: dict[str, Any]) -> Config:
    """The configuration with `values` (converted, by key) in place of the defaults."""
    default = Config()
    tables: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        tables.setdefault(SETTINGS[key].table, {})[SETTINGS[key].name] = value
    top = tables.pop("", {})
    return dataclasses.replace(
        default, **top, **{name: dataclasses.replace(getattr(default, name), **tables[name]) for name in tables}
    )
