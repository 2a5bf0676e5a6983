"""Any configuration survives being written and read; any text is read or refused, and never more than that."""

import os
import string
from ipaddress import ip_network
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sluicegate.config.address import (
    COLLECTOR,
    ENGINE,
    LISTEN,
    SECRET_FILE,
    Notation,
    TcpAddress,
    UnixAddress,
    reaches,
)
from sluicegate.config.headers import HEADERS
from sluicegate.config.load import ConfigError, Origin, load
from sluicegate.config.networks import NETWORKS
from sluicegate.config.origin import ORIGINS
from sluicegate.config.schema import Config
from sluicegate.config.settings import SETTINGS, Setting, build
from sluicegate.config.show import to_toml

# Valid texts are what isprintable() says; Python's tables of characters and hypothesis's may be of different years.
printable = st.text(max_size=30).map(lambda text: "".join(filter(str.isprintable, text)))
tcp = st.builds(
    TcpAddress,
    st.ip_addresses().map(str) | st.text(string.ascii_letters, min_size=1, max_size=20).map("gpu-{}.x".format),
    st.integers(1, 65535),
)
unix = st.builds(UnixAddress, printable.map(lambda name: f"/run/{name.replace('/', '')[:20]}.sock"))

collector = st.builds(
    "{}://{}{}".format, st.sampled_from(["http", "https"]), tcp, st.sampled_from(["", "/otlp", "/v1/traces"])
)

NOTED: dict[Notation[Any], st.SearchStrategy[Any]] = {
    LISTEN: tcp | unix,
    ENGINE: tcp | unix,
    COLLECTOR: collector | st.just(""),
    SECRET_FILE: st.sampled_from(["", "/etc/key of vLLM", "credential:key"]),
    NETWORKS: st.just("unix") | st.ip_addresses().map(ip_network),
    ORIGINS: st.sampled_from(["*", "https://chat.example", "http://[::1]:3000"]),
    HEADERS: st.from_regex(r"x-[a-z0-9_|~-]{0,20}", fullmatch=True),
}


def values(setting: Setting) -> st.SearchStrategy[Any]:
    if setting.notation:
        one = NOTED[setting.notation]
        return (
            st.lists(one, min_size=setting.notation.fewest, max_size=4, unique=True).map(tuple) if setting.many else one
        )
    if setting.choices:
        return st.sampled_from(setting.choices).map(setting.type)
    if setting.type is str:
        return printable
    assert setting.low is not None
    assert setting.high is not None
    if setting.type is int:
        return st.integers(int(setting.low), int(setting.high))
    return st.floats(setting.low, setting.high)


configs = (
    st.fixed_dictionaries({}, optional={key: values(setting) for key, setting in SETTINGS.items()})
    .map(build)
    .filter(lambda config: bool(config.tls.certificate) is bool(config.tls.key))
    .filter(lambda config: bool(config.tls.certificate) or not config.tls.client_ca)
    .filter(lambda config: not any(reaches(config.engine.base_url, one) for one in config.listen))
)


@given(configs)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_a_configuration_written_is_read_back_equal(config: Config) -> None:
    origins = dict.fromkeys(SETTINGS, Origin("a\nb = 3\n.toml", "x"))
    assert load(to_toml(config, {}), "f.toml", {}) == config
    assert load(to_toml(config, origins), "f.toml", {}) == config


leaves = st.none() | st.text() | st.sampled_from(["1", "nan", "-5", "'x'", "[]", "{}", "1979-05-27", "0xff", "true"])
lines = st.one_of(
    st.text(),
    st.builds("[{}]".format, st.sampled_from(["engine", "admission", "log", "x", "[log]", "a.b"])),
    st.builds("{} = {}".format, st.sampled_from([s.name for s in SETTINGS.values()]), leaves),
)


def faults(text: str | None, environ: dict[str, str]) -> list[str]:
    try:
        assert isinstance(load(text, "f.toml", environ), Config)
    except ConfigError as error:
        # No faults would be a refusal without a reason: not the same as being accepted.
        return list(map(str, error.faults)) or ["refused without a fault"]
    return []


@given(st.text() | st.lists(lines, max_size=8).map("\n".join))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    for line in faults(text, {}):
        assert line.startswith("f.toml")
        assert line.isprintable()


names = [setting.env for setting in SETTINGS.values() if setting.env]


@given(st.dictionaries(st.sampled_from(names), st.text() | st.binary().map(os.fsdecode), max_size=4))
def test_no_environment_does_more_than_be_refused(environ: dict[str, str]) -> None:
    for line in faults(None, environ):
        assert line.startswith("environment: ")
        assert line.isprintable()
