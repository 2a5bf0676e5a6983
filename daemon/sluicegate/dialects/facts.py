"""What the gate needs to know of a request's body, and the body that the engine gets.

The body is decoded once, into the few members that matter; the decoder still checks that all of it is JSON.
"""

import re
from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET, Raw, UnsetType

from ..exchange import Dialect, Endpoint
from ..outcome import Outcome, Refusal
from .grammars import GRAMMARS
from .odd import SEARCHED_MAX, Odd, read_as_python

#: A background response goes on at the engine when its request is over: any number would run beside the slots.
_NO_BACKGROUND = (
    "Background responses are not supported by this gateway, because they would run outside of its slots. "
    "Leave `background` out, and use `stream` for a long answer."
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What `understand` found.

    `model`: the model asked for, or None where the body names none (absent or null).
    `stream`: the engine will answer with a stream.
    `usage_asked`: `stream_options.include_usage` is true, so the usage chunk belongs to the client.
    `has_stream_options`, `has_model`: the member is there, be it null.
    `odd`: how to read the body where it is JSON to the engine, but not to a strict decoder; usually None.
    """

    model: str | None
    stream: bool
    usage_asked: bool
    has_stream_options: bool
    has_model: bool = False
    odd: Odd | None = field(default=None, compare=False, repr=False)


def understand(endpoint: Endpoint, body: bytes) -> Facts:
    """The facts of a request's body; of an opaque endpoint's body there are none.

    Where a member is there twice the last one counts, as it does in the engine. Raises Refusal (400, invalid) for
    what is not a JSON object or has anywhere a model, stream or stream_options of a wrong type, and for a response that
    is to be made in the background. A scalar that the
    engine's own check refuses (`"stream": 2`) counts as false and is passed on: the engine's 4xx explains it best.
    """
    if endpoint.opaque:
        return Facts(None, False, False, False)
    odd = None
    try:
        found = _FOUND.decode(body)
    except (ValueError, RecursionError) as error:
        odd, found = _as_the_engine_does(body, error)
    if found.background is not UNSET and endpoint.dialect is Dialect.RESPONSES and _lax_raw_bool(found.background):
        raise Refusal(Outcome.INVALID, 400, _NO_BACKGROUND, code="unsupported_parameter")
    options = found.stream_options or {}  # unset, null and {} are alike here
    return Facts(
        model=None if found.model is UNSET else found.model,
        stream=_lax_bool(found.stream) or False,
        usage_asked=_lax_raw_bool(options.get("include_usage")) or False,
        has_stream_options=found.stream_options is not UNSET,
        has_model=found.model is not UNSET,
        odd=odd,
    )


def for_engine(endpoint: Endpoint, body: bytes, facts: Facts, default_model: str) -> bytes:
    """The body that the engine gets: `body` itself where nothing must change.

    A body that names no model gets `default_model` unless that is empty. A chat or completions stream is always
    asked for its usage chunk, for accounting; `account.meter.StreamMeter` hides it from a client that did not ask.
    Members that are absent are spliced in and all other bytes stay; only where one is there and must change are the
    members put together anew (each value's own bytes stay, white space between members goes).
    Raises Refusal (400, invalid) where the body is nested too deeply to be taken apart.
    """
    if endpoint.opaque:
        return body
    body = facts.odd.body if facts.odd else body
    wants_model = facts.model is None and default_model != ""
    wants_usage = facts.stream and not facts.usage_asked and GRAMMARS[endpoint.dialect].usage_on_request
    if not wants_model and not wants_usage:
        return body
    if (wants_model and facts.has_model) or (wants_usage and facts.has_stream_options):
        return _rebuild(body, facts.odd, default_model if wants_model else "", wants_usage)
    added = []
    if wants_model:
        added.append(b'"model":' + msgspec.json.encode(default_model))
    if wants_usage:
        added.append(b'"stream_options":{"include_usage":true}')
    return _splice(body, b",".join(added))


class _Found(msgspec.Struct):
    model: str | UnsetType | None = UNSET
    stream: bool | int | float | str | None = None
    stream_options: dict[str, Raw] | UnsetType | None = UNSET
    background: Raw | UnsetType = UNSET


_FOUND = msgspec.json.Decoder(_Found)
_MEMBERS = msgspec.json.Decoder(dict[str, Raw])
_OPTIONS = msgspec.json.Decoder(dict[str, Raw] | None)
_SCALAR = msgspec.json.Decoder(bool | int | float | str | None)

# pydantic's lax mode, which vLLM's protocol classes use: these strings in any case, and the numbers 0 and 1.
# Taking only JSON's true for true would let `"stream": "yes"` through unaccounted.
_TRUE = frozenset({"1", "on", "t", "true", "y", "yes"})
_FALSE = frozenset({"0", "off", "f", "false", "n", "no"})


def _lax_bool(value: bool | float | str | None) -> bool | None:
    """What pydantic makes of a value for `bool | None` (null is false to vLLM); None where it refuses it."""
    if value is None:
        return False
    if isinstance(value, str):
        value = value.lower()
        return True if value in _TRUE else False if value in _FALSE else None
    return bool(value) if value in (0, 1) else None


def _lax_raw_bool(raw: Raw | None) -> bool | None:
    try:
        return False if raw is None else _lax_bool(_SCALAR.decode(raw))
    except ValueError:
        return None


def _splice(body: bytes, members: bytes) -> bytes:
    """`members` put in front of an object's own."""
    start = body.index(b"{") + 1
    comma = b"" if _EMPTY_OBJECT.match(body) else b","
    return b"".join((body[:start], members, comma, body[start:]))


_EMPTY_OBJECT = re.compile(rb"\s*\{\s*\}")


def _rebuild(body: bytes, odd: Odd | None, model: str, with_usage: bool) -> bytes:
    """`body` with `model` (unless empty) and include_usage in the place of the members that are there.

    An odd body cannot be taken apart; there they are put behind all others, because the last of two counts.
    """
    try:
        members = _MEMBERS.decode(odd.strict if odd else body)
        options = _OPTIONS.decode(members.get("stream_options", b"null")) or {}
    except (ValueError, RecursionError) as error:
        raise _refusal(error) from None
    if _lax_raw_bool(options.get("include_usage")) is None:
        with_usage = False  # the engine refuses such a value: mending it here would hide the client's mistake
    changed = {}
    if model:
        changed["model"] = Raw(msgspec.json.encode(model))
    if with_usage:
        options["include_usage"] = Raw(b"true")
        if _lax_raw_bool(options.get("continuous_usage_stats")):
            del options["continuous_usage_stats"]  # without include_usage the engine does not heed it
        changed["stream_options"] = Raw(msgspec.json.encode(options))
    if not changed:
        return body
    if odd:
        return body[: body.rindex(b"}")] + b"," + msgspec.json.encode(changed)[1:]
    return msgspec.json.encode(members | changed)


def _as_the_engine_does(body: bytes, error: Exception) -> tuple[Odd, _Found]:
    """Read a body that the strict decoder did not take; Refusal, made of its `error` at first, if it is no JSON at all.

    The strict decoder goes first because it is an order of magnitude faster.
    """
    if isinstance(error, RecursionError | msgspec.ValidationError):
        raise _refusal(error)
    if not body.strip():
        raise Refusal(Outcome.INVALID, 400, "The request body is empty.")
    try:
        odd = read_as_python(body)
    except UnicodeDecodeError as undecodable:
        reason = f"The request body is not valid {undecodable.encoding.upper()}."
        raise Refusal(Outcome.INVALID, 400, reason) from None
    if odd is None:
        raise _refusal(error, halves=len(body) > SEARCHED_MAX)
    try:
        return odd, _FOUND.decode(odd.strict)
    except (ValueError, RecursionError) as second:
        raise _refusal(second) from None


def _refusal(error: Exception, *, halves: bool = False) -> Refusal:
    """Says where the body is wrong; msgspec's texts name types, members and positions, never what stands there.

    `halves`: the body may hold half surrogates, to which msgspec says that the data was truncated.
    """
    if isinstance(error, RecursionError):
        reason = "The request body is nested too deeply."
    elif isinstance(error, msgspec.ValidationError):
        reason = f"The request body is not as expected: {error}."
    elif isinstance(error, msgspec.DecodeError):
        or_halves = " (or holds half of a surrogate pair)" if halves else ""
        reason = f"The request body is not valid JSON: {error}{or_halves}."
    else:
        reason = "The request body is not valid UTF-8."
    return Refusal(Outcome.INVALID, 400, reason)
