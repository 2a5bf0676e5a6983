"""Broken configurations, shared by the tests of the loader and of the commands: each with the line that names it."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Broken:
    """`line` is what is printed behind the file's name, or behind "environment" if `environ` is at fault."""

    name: str
    line: str
    text: str = ""
    environ: dict[str, str] = field(default_factory=dict)

    def expected(self, source: str) -> str:
        return f"environment: {self.line}" if self.environ else f"{source}{self.line}"


LISTEN_ALLOWED = "must be host:port, [ipv6]:port or unix:/path"
ENGINE_ALLOWED = "must be http://host:port or unix:/path"
HOST_MISSING = "the host is missing; 127.0.0.1 serves this host alone, 0.0.0.0 every interface"
NO_TLS = "TLS to the engine is not supported, for the engine is on this host or in a private network"
ORIGINS_ALLOWED = 'must be scheme://host, scheme://host:port or "*"'
OWN_ENGINE = "or the gateway would be its own engine"
LONG_PATH = "/" + "p" * 107

BROKEN = [
    Broken(
        "a list of something else",
        ": engine.pass_headers = […]: must be the name of a header, or a list of these; entry 2",
        "[engine]\npass_headers = ['x-a', 1]",
    ),
    Broken(
        "a header of the gateway's own",
        ": engine.pass_headers = […]: entry 2 must be the name of a header; not those that",
        "[engine]\npass_headers = ['x-a', 'Host']",
    ),
    Broken(
        "misspelt key",
        ": admission.max_activ: unknown key; did you mean admission.max_active?",
        "[admission]\nmax_activ = 4",
    ),
    Broken("misspelt table", ": admision: unknown table; did you mean [admission]?", "[admision]\nmax_active = 4"),
    Broken("key without its table", ": max_active: unknown key; did you mean admission.max_active?", "max_active = 4"),
    Broken(
        "name of a variable as a key",
        ": timeouts.REQUEST_TIMEOUT_S: unknown key; did you mean timeouts.request_s?",
        "[timeouts]\nREQUEST_TIMEOUT_S = 4",
    ),
    Broken(
        "misspelt key in the wrong table",
        ": log.queue_timeouts: unknown key; did you mean admission.queue_timeout_s?",
        "[log]\nqueue_timeouts = 1",
    ),
    Broken("unknown key like no other", ": gpu.x: unknown key; known here: sample_interval_s", "[gpu]\nx = 1"),
    Broken(
        "unknown table like no other",
        ": zzz: unknown table; known here: listen, [engine], [admission], [timeouts], [limits], [streams], [cors], ",
        "[zzz]",
    ),
    Broken("quoted dots", ': "log.level": unknown key; did you mean log.level?', '"log.level" = "info"'),
    Broken("unknown key with a line break", r': "a\nb": unknown key; known here: listen', '"a\\nb" = 1'),
    Broken("table that is none", ': admission = "none": must be a table, [admission]', 'admission = "none"'),
    Broken("array of tables", ": log = […]: must be a table, [log]", "[[log]]"),
    Broken(
        "text for a whole number",
        ': admission.max_active = "2": must be a whole number from 1 to 65536',
        '[admission]\nmax_active = "2"',
    ),
    Broken(
        "fraction for a whole number",
        ": admission.max_active = 2.0: must be a whole number from 1 to 65536",
        "[admission]\nmax_active = 2.0",
    ),
    Broken(
        "true for a whole number",
        ": admission.max_active = true: must be a whole number from 1 to 65536",
        "[admission]\nmax_active = true",
    ),
    Broken(
        "false for a number",
        ": timeouts.drain_s = false: must be a number of seconds from 0 to 86400",
        "[timeouts]\ndrain_s = false",
    ),
    Broken(
        "below the range",
        ": admission.max_active = 0: must be a whole number from 1 to 65536",
        "[admission]\nmax_active = 0",
    ),
    Broken(
        "above the range",
        ": limits.body_max_bytes = 1073741825: must be a whole number of bytes from 1024 to 1073741824",
        "[limits]\nbody_max_bytes = 1_073_741_825",
    ),
    Broken(
        "very long number",
        ": timeouts.idle_s = a very long number: must be a number of seconds from 0.01 to 86400",
        f"[timeouts]\nidle_s = 0x{'f' * 5000}",
    ),
    Broken(
        "not a number",
        ": timeouts.idle_s = nan: must be a number of seconds from 0.01 to 86400",
        "[timeouts]\nidle_s = nan",
    ),
    Broken(
        "infinity",
        ": timeouts.idle_s = inf: must be a number of seconds from 0.01 to 86400",
        "[timeouts]\nidle_s = inf",
    ),
    Broken(
        "unknown word",
        ': admission.queue_mode = "rejekt": must be one of queue, reject',
        '[admission]\nqueue_mode = "rejekt"',
    ),
    Broken("unknown level", ': log.level = "": must be one of debug, info, warning, error', '[log]\nlevel = ""'),
    Broken("number for a word", ": log.format = 1: must be one of auto, text, json, journal", "[log]\nformat = 1"),
    Broken(
        "control character",
        r': engine.model_name = "a\tb": must be a text without control characters',
        '[engine]\nmodel_name = "a\\tb"',
    ),
    Broken(
        "list for a text",
        ": engine.model_name = […]: must be a text without control characters",
        "[engine]\nmodel_name = ['a']",
    ),
    Broken("no host", f': listen = ":8080": {LISTEN_ALLOWED}; {HOST_MISSING}', 'listen = ":8080"'),
    Broken(
        "an address of a list",
        f": listen = […]: entry 2 {LISTEN_ALLOWED}; the port is missing",
        'listen = ["[::1]:1", "gpu1"]',
    ),
    Broken(
        "an address twice",
        f": listen = […]: {LISTEN_ALLOWED}, or a list of these, each once; entry 2 was there before",
        'listen = ["[::1]:1", "[::1]:1"]',
    ),
    Broken("a list without an address", f": listen = […]: {LISTEN_ALLOWED}, or a list of these; a list", "listen = []"),
    Broken("a list of numbers", f": listen = […]: {LISTEN_ALLOWED}, or a list of these; entry 1", "listen = [1]"),
    Broken(
        "the engine's place in a list",
        f": listen = […]: must not be the address of engine.base_url, {OWN_ENGINE}",
        'listen = ["[::1]:1", "127.0.0.1:8000"]',
    ),
    Broken(
        "a certificate without its key",
        ': tls.certificate = "/c.pem": needs tls.key as well',
        '[tls]\ncertificate = "/c.pem"',
    ),
    Broken("a key alone", ': tls.key = "/k.pem": needs tls.certificate as well', '[tls]\nkey = "/k.pem"'),
    Broken("port alone", f": listen = 8080: {LISTEN_ALLOWED}", "listen = 8080"),
    Broken(
        "path too long",
        f': listen = "unix:{LONG_PATH[:74]}…": {LISTEN_ALLOWED}; the path is 108 bytes long, and the system takes 107',
        f'listen = "unix:{LONG_PATH}"',
    ),
    Broken(
        "password in the engine's URL",
        f': engine.base_url = "https://***@gpu:8000/v1?***": {ENGINE_ALLOWED}; {NO_TLS}',
        '[engine]\nbase_url = "https://bob:sesame@gpu:8000/v1?token=sesame"',
    ),
    Broken(
        "engine is the gateway",
        f': engine.base_url = "http://localhost:8080": must not be the address of listen, {OWN_ENGINE}',
        '[engine]\nbase_url = "http://localhost:8080"',
    ),
    Broken("not TOML", ":2: not TOML: Expected '=' after a key in a key/value pair", "[admission]\nmax_active 4"),
    Broken("not TOML, in the middle", ":2: not TOML: Invalid value", "[admission]\nmax_active = nope\nqueue_max = 4\n"),
    Broken("twice the same key", ":3: not TOML: Cannot overwrite a value", "[log]\nlevel = 'info'\nlevel = 'info'\n"),
    Broken("end of the file", ":2: not TOML: Unclosed array", "\nx = [1\n"),
    Broken("number of 5,000 digits", ": not readable: it holds a number of thousands of digits", f"x = {'9' * 5000}"),
    Broken("nested too deeply", ": not readable: too deeply nested", f"x = {'[' * 10_000}"),
    Broken(
        "variable: not a number",
        'MAX_ACTIVE = "many": must be a whole number from 1 to 65536',
        environ={"MAX_ACTIVE": "many"},
    ),
    Broken(
        "variable: spaces",
        'MAX_ACTIVE = " 4": must be a whole number from 1 to 65536',
        environ={"MAX_ACTIVE": " 4"},
    ),
    Broken(
        "variable: underscore",
        'QUEUE_MAX = "1_0": must be a whole number from 0 to 65536',
        environ={"QUEUE_MAX": "1_0"},
    ),
    Broken(
        "variable: a unit",
        'REQUEST_TIMEOUT_S = "30s": must be a number of seconds from 0.01 to 86400',
        environ={"REQUEST_TIMEOUT_S": "30s"},
    ),
    Broken(
        "variable: infinity by overflow",
        'QUEUE_TIMEOUT_S = "1e999": must be a number of seconds from 0.01 to 86400',
        environ={"QUEUE_TIMEOUT_S": "1e999"},
    ),
    Broken(
        "variable: 5,000 digits",
        f'QUEUE_MAX = "{"9" * 79}…": must be a whole number from 0 to 65536',
        environ={"QUEUE_MAX": "9" * 5000},
    ),
    Broken(
        "variable: unknown word",
        'QUEUE_MODE = "drop": must be one of queue, reject',
        environ={"QUEUE_MODE": "drop"},
    ),
    Broken(
        "variable: password in a URL without a port",
        f'VLLM_BASE_URL = "http://***@gpu": {ENGINE_ALLOWED}; a user name or password is not supported',
        environ={"VLLM_BASE_URL": "http://bob:sesame@gpu"},
    ),
    Broken(
        "a URL for an origin",
        f": cors.origins = […]: entry 2 {ORIGINS_ALLOWED}; an origin has no path and no slash at its end",
        '[cors]\norigins = ["https://chat.example", "https://chat.example/"]',
    ),
    Broken(
        "variable: the engine's place",
        f'LISTEN = "0.0.0.0:8000": must not be the address of engine.base_url, {OWN_ENGINE}',
        environ={"LISTEN": "0.0.0.0:8000"},
    ),
]
