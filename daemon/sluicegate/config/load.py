"""TOML and environment → Config, or every fault that stands in the way.

The environment wins over the file, the file over the defaults. `load` and `resolve` are pure; only the functions whose
names end in `_file` read anything.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .address import reaches
from .faults import ConfigError, Fault, SettingError, cut, redacted, shown
from .schema import Config
from .settings import SETTINGS, TABLES, Setting, build, value_of

#: Read when no file is named; it may be absent.
DEFAULT_PATH = Path("/etc/sluicegate/sluicegate.toml")

#: A configuration is some kilobytes; whoever names a log or a device by mistake should be told at once.
FILE_MAX_BYTES = 1 << 20

#: `Fault.where` of faults in environment variables.
ENVIRONMENT = "environment"

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")

__all__ = [
    "DEFAULT_PATH",
    "ConfigError",
    "Fault",
    "Origin",
    "Resolved",
    "load",
    "load_file",
    "resolve",
    "resolve_file",
]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was set: the file, or "environment", and the setting's name there."""

    where: str
    key: str

    def __str__(self) -> str:
        return f"{self.where} {self.key}" if self.where == ENVIRONMENT else self.where


@dataclass(frozen=True, slots=True)
class Resolved:
    """A valid configuration: the file that was asked for, whether there was none, and the origin of each key set."""

    config: Config
    source: str
    absent: bool
    origins: Mapping[str, Origin]


def load(text: str | None, source: str, environ: Mapping[str, str]) -> Config:
    """The configuration that `text` (TOML, called `source` in faults; None: no file) and `environ` describe.

    An empty environment variable counts as unset. Raises ConfigError, and nothing else whatever the text, with all
    faults found; a value in the file must be valid even where the environment overrides it.
    """
    return resolve(text, source, environ).config


def load_file(path: Path | None, environ: Mapping[str, str]) -> Config:
    """`load` with the file at `path`, which must be readable; None: the default file, which may be absent."""
    return resolve_file(path, environ).config


def resolve(text: str | None, source: str, environ: Mapping[str, str]) -> Resolved:
    """`load`, with where each value came from. Raises ConfigError."""
    reading = _Reading()
    if text is not None:
        _read_toml(reading, text, source)
    _read_environment(reading, environ)
    config = build(reading.values)
    _refuse_contradictions(reading, config)
    _refuse_what_is_not_installed(reading, config)
    if reading.faults:
        raise ConfigError(reading.faults)
    return Resolved(config, source, text is None, reading.origins)


def resolve_file(path: Path | None, environ: Mapping[str, str]) -> Resolved:
    """`load_file`, with where each value came from. Raises ConfigError."""
    file = DEFAULT_PATH if path is None else path
    return resolve(_text_of(file, may_be_absent=path is None), str(file), environ)


@dataclass(slots=True)
class _Reading:
    """What has been read so far, by key. A key in `refused` had a value that cannot be used."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)

    def take(self, setting: Setting, origin: Origin, raw: Any, convert: Callable[[Any], Any]) -> None:
        """Convert `raw`, which stands at `origin`, and keep either the value or the fault."""
        try:
            value = convert(raw)
        except SettingError as error:
            self.refused.add(setting.key)
            self.refuse(origin, "***" if setting.notation and setting.notation.hidden else raw, str(error))
        else:
            self.values[setting.key] = value
            self.origins[setting.key] = origin

    def refuse(self, origin: Origin, raw: object, message: str) -> None:
        self.faults.append(Fault(origin.where, origin.key, shown(raw), message))


def _read_environment(reading: _Reading, environ: Mapping[str, str]) -> None:
    for setting in SETTINGS.values():
        if setting.env and (text := environ.get(setting.env)):
            reading.take(setting, Origin(ENVIRONMENT, setting.env), text, setting.convert_text)


def _read_toml(reading: _Reading, text: str, source: str) -> None:
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Besides TOMLDecodeError: int() refuses numbers of thousands of digits, and brackets nest without a bound.
        reading.faults.append(_syntax_fault(source, text, error))
        return
    for name, value in document.items():
        if name not in TABLES:
            _read_entry(reading, source, "", name, value)
        elif isinstance(value, dict):
            for inner, inner_value in value.items():
                _read_entry(reading, source, name, inner, inner_value)
        else:
            reading.refuse(Origin(source, name), value, f"must be a table, [{name}]")


def _read_entry(reading: _Reading, source: str, table: str, name: str, value: object) -> None:
    key = f"{table}.{name}" if table else name
    # "log.level" at the top of the file, in quotes, looks like the key of a setting and is none.
    setting = SETTINGS.get(key)
    if setting and setting.name == name:
        reading.take(setting, Origin(source, key), value, setting.convert)
    else:
        # The value stays unshown: nobody knows what an unknown key holds, and a password is likely among them.
        what = "unknown table" if isinstance(value, dict) and not table else "unknown key"
        spelled = cut(redacted(name if _BARE_KEY.fullmatch(name) else f'"{name}"'))
        key = f"{table}.{spelled}" if table else spelled
        reading.faults.append(Fault(source, key, None, f"{what}; {_advice(table, name)}"))


def _advice(table: str, name: str) -> str:
    """What the writer of an unknown `name` in `table` probably meant, or what there is to choose from."""
    name = cut(name).lower()
    siblings = [s.name for s in SETTINGS.values() if s.table == table] + ([] if table else list(TABLES))
    elsewhere = {s.name: s.key for s in SETTINGS.values()} | {s.env.lower(): s.key for s in SETTINGS.values() if s.env}
    if name in elsewhere:
        return f"did you mean {elsewhere[name]}?"
    if close := difflib.get_close_matches(name, siblings, n=1):
        return f"did you mean {_spelled(table, close[0])}?"
    if close := difflib.get_close_matches(name, elsewhere, n=1, cutoff=0.75):
        return f"did you mean {elsewhere[close[0]]}?"
    return f"known here: {', '.join(_spelled('', sibling) for sibling in siblings)}"


def _spelled(table: str, name: str) -> str:
    if table:
        return f"{table}.{name}"
    return f"[{name}]" if name in TABLES else name


def _syntax_fault(source: str, text: str, error: Exception) -> Fault:
    if isinstance(error, RecursionError):
        return Fault(source, "", None, "not readable: too deeply nested")
    if not isinstance(error, tomllib.TOMLDecodeError):
        return Fault(source, "", None, "not readable: it holds a number of thousands of digits")
    # The exception has had attributes for this only since Python 3.14.
    what, _, place = str(error).rpartition(" (at ")
    line = re.match(r"line ([0-9]+), column", place)
    return Fault(source, "", None, f"not TOML: {what}", int(line[1]) if line else len(text.splitlines()))


def _refuse_contradictions(reading: _Reading, config: Config) -> None:
    """Refuse values that are each allowed and cannot work together.

    Two addresses that are one, and half of [tls]. Of two timeouts that overlap, the shorter simply ends the wait, so
    that REQUEST_TIMEOUT_S=10 alone stays valid beside a longer default for the first token.
    """
    _refuse_half_of_tls(reading, config)
    listen, engine = SETTINGS["listen"], SETTINGS["engine.base_url"]
    collides = any(reaches(config.engine.base_url, address) for address in config.listen)
    if reading.refused.isdisjoint({listen.key, engine.key}) and collides:
        # The defaults do not collide: at least one of the two was set.
        setting = engine if engine.key in reading.origins else listen
        other = listen if setting is engine else engine
        origin, value = reading.origins[setting.key], value_of(config, setting)
        message = f"must not be the address of {other.key}, or the gateway would be its own engine"
        assert setting.notation is not None
        texts = [setting.notation.write(one) for one in (value if setting.many else [value])]
        reading.refuse(origin, texts if len(texts) > 1 else texts[0], message)


def _refuse_what_is_not_installed(reading: _Reading, config: Config) -> None:
    """Refuse a setting that needs an extra which this environment does not have.

    Out of the bare wheel, as an Ansible preflight reads a configuration, nobody knows what the gateway's host has.
    """
    setting = SETTINGS["tracing.endpoint"]
    if config.tracing.endpoint and _installed("trio") and not _installed("opentelemetry.exporter.otlp.proto.http"):
        message = "needs OpenTelemetry: pip install 'sluicegate[tracing]' in the gateway's environment"
        reading.refuse(reading.origins[setting.key], config.tracing.endpoint, message)


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        return False


def _refuse_half_of_tls(reading: _Reading, config: Config) -> None:
    """A certificate needs its key, and the other settings of [tls] need a certificate."""
    values = {key: value_of(config, SETTINGS[key]) for key in ("tls.certificate", "tls.key", "tls.client_ca")}
    needed = ("tls.certificate", "tls.key") if any(values.values()) else ()
    for key in needed:
        if not values[key] and key not in reading.refused:
            given = next(other for other, value in values.items() if value)
            reading.refuse(reading.origins[given], values[given], f"needs {key} as well")


def _text_of(file: Path, *, may_be_absent: bool) -> str | None:
    """The file's text; None where it is absent and may be. Raises ConfigError."""
    try:
        with file.open("rb") as stream:
            data = stream.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        if may_be_absent and isinstance(error, FileNotFoundError):
            return None
        raise ConfigError([Fault(str(file), "", None, f"cannot be read: {error.strerror or error}")]) from error
    if len(data) > FILE_MAX_BYTES:
        raise ConfigError([Fault(str(file), "", None, f"longer than {FILE_MAX_BYTES} bytes: not a configuration")])
    try:
        # Editors on Windows begin with a byte order mark, which is no TOML.
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([Fault(str(file), "", None, "not TOML: the text is not UTF-8", line)]) from error
