"""A configuration as TOML, complete, with where each value that was set came from."""

from collections.abc import Mapping

from .faults import printable
from .load import Origin
from .schema import Config
from .settings import SETTINGS, value_of


def to_toml(config: Config, origins: Mapping[str, Origin]) -> str:
    """Every setting in the schema's order. The text is itself a valid file, and loads back equal to `config`."""
    lines: list[str] = []
    table = ""
    for setting in SETTINGS.values():
        if setting.table != table:
            table = setting.table
            lines += ["", f"[{table}]"]
        origin = origins.get(setting.key)
        comment = f"  # from {printable(str(origin))}" if origin else ""
        lines.append(f"{setting.name} = {setting.write(value_of(config, setting))}{comment}")
    return "\n".join(lines) + "\n"
