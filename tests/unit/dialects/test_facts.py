"""What a request's body is understood to say, and what the engine gets instead of it."""

import json

import pytest

from sluicegate.dialects.facts import Facts, for_engine, understand
from sluicegate.dialects.odd import REPLACED_MAX, SEARCHED_MAX
from sluicegate.dialects.routes import ENDPOINTS
from sluicegate.outcome import Outcome, Refusal

CHAT = ENDPOINTS["/v1/chat/completions"]
COMPLETIONS = ENDPOINTS["/v1/completions"]
RESPONSES = ENDPOINTS["/v1/responses"]
MESSAGES = ENDPOINTS["/v1/messages"]
TOKENIZE = ENDPOINTS["/tokenize"]
AUDIO = ENDPOINTS["/v1/audio/transcriptions"]


def test_a_usual_body() -> None:
    body = b'{"model":"m","messages":[{"content":"hi"}],"stream":true,"stream_options":{"include_usage":true}}'
    assert understand(CHAT, body) == Facts("m", True, True, True, has_model=True)


def test_an_empty_object() -> None:
    assert understand(CHAT, b"{}") == Facts(None, False, False, False, has_model=False)


def test_null_is_there_but_says_nothing() -> None:
    body = b'{"model":null,"stream":null,"stream_options":null}'
    assert understand(CHAT, body) == Facts(None, False, False, True, has_model=True)


@pytest.mark.parametrize("value", ["true", "1", "1.0", "1e0", '"true"', '"TRUE"', '"yes"', '"oN"', '"t"', '"Y"', '"1"'])
def test_what_vllm_takes_for_true(value: str) -> None:
    body = f'{{"stream":{value},"stream_options":{{"include_usage":{value}}}}}'.encode()
    facts = understand(CHAT, body)
    assert facts.stream
    assert facts.usage_asked


@pytest.mark.parametrize(
    "value", ["false", "0", "-0.0", '"No"', '"off"', "null", "2", "1.5", '" true"', '""', "9" * 30]
)
def test_what_vllm_takes_for_false_or_refuses(value: str) -> None:
    body = f'{{"stream":{value},"stream_options":{{"include_usage":{value}}}}}'.encode()
    facts = understand(CHAT, body)
    assert not facts.stream
    assert not facts.usage_asked


def test_the_last_of_duplicates_counts() -> None:
    body = b'{"model":"a","stream":true,"model":"b","stream":false}'
    assert understand(CHAT, body) == Facts("b", False, False, False, has_model=True)


def test_an_escaped_name_is_the_same_name() -> None:
    assert understand(CHAT, rb'{"\u0073tream":true,"mod\u0065l":"m"}') == Facts("m", True, False, False, has_model=True)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "The request body is empty."),
        (b" \r\n", "The request body is empty."),
        ('{"model":"secret-name"'.encode("utf-16"), "not valid JSON"),
        ('{"model":"secret-name"'.encode("utf-16")[:-1], "not valid UTF-16"),
        (b"\xef\xbb\xbf[]", "Expected `object`, got `array`"),
        (b'{"x":[NaN}', "not valid JSON"),
        (b'{"x":nan}', "not valid JSON"),
        (b'{"model":NaN}', "`$.model`"),
        (rb'{"x":"\ud83d","y":01}', "invalid number"),
        (rb'{"x":"\ud83d', "truncated"),
        (rb'{"x":"' + b" " * SEARCHED_MAX + rb'\ud83d"}', "half of a surrogate pair"),
        (b'{"model":"secret-name"', "not valid JSON"),
        (b'{"messages":"secret-name"} x', "not valid JSON"),
        (b'{"model":"secret-name\xff"}', "not valid UTF-8"),
        (b'["secret-name"]', "Expected `object`, got `array`"),
        (b'{"model":["secret-name"]}', "`$.model`"),
        (b'{"model":5}', "`$.model`"),
        (b'{"stream":["secret-name"]}', "`$.stream`"),
        (b'{"stream":{}}', "`$.stream`"),
        (b'{"stream_options":"secret-name"}', "`$.stream_options`"),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"x":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b"[" * 1_000_000, "Expected `object`"),
    ],
)
def test_what_is_refused_and_how(body: bytes, says: str) -> None:
    with pytest.raises(Refusal) as caught:
        understand(CHAT, body)
    assert (caught.value.outcome, caught.value.status) == (Outcome.INVALID, 400)
    assert says in caught.value.message
    assert "secret-name" not in caught.value.message


TEXT = '{"model":"m","stream":true,"messages":[{"content":"h\u00e9 \U0001f600 \\"NaN\\" \\\\ud83d \\ud83d\\ude00"}]}'
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")
STRANGE = (
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"[1,NaN,{}]",
    rb'"\ud83d"',
    rb'"\uDC00x"',
    rb'{"\ud83d":"\uD83D\ud83d\ude00"}',
)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_encoding_that_json_is_found_in(encoding: str) -> None:
    """PowerShell and Java clients send a byte-order mark; Python's parser, the engine's, finds UTF-16 and 32 too."""
    facts = understand(CHAT, TEXT.encode(encoding))
    assert facts == Facts("m", True, False, False, has_model=True)
    changed = sent(CHAT.path, TEXT.encode(encoding))
    assert changed == b'{"stream_options":{"include_usage":true},' + TEXT.encode()[1:]


@pytest.mark.parametrize("encoding", [*ENCODINGS, "utf-8"])
@pytest.mark.parametrize("strange", STRANGE)
def test_what_only_python_takes_is_the_engines_to_judge(encoding: str, strange: bytes) -> None:
    """NaN, Infinity and half surrogates reach the engine as they are, whichever way the body must change."""
    for model in (b"", b'"model":null,', b'"model":"m",'):
        for options in (b"", b'"stream_options":{"include_usage":false},'):
            body = b'{"stream":true,%b"a":"Infinity \\" NaN",%b"x":%b}' % (model, options, strange)
            changed = sent(CHAT.path, body.decode().encode(encoding), "d")
            assert strange in changed
            before, after = json.loads(body), json.loads(changed)
            named = "m" if b'"m"' in model else "d"
            expected = before | {"model": named, "stream_options": {"include_usage": True}}
            assert json.dumps(after, sort_keys=True) == json.dumps(expected, sort_keys=True)


def test_what_needs_no_change_is_passed_on_with_its_nan() -> None:
    body = b'{"model":"m","x":NaN}'
    assert sent(CHAT.path, body) is body


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_no_stand_in_passes_for_true(value: str) -> None:
    body = f'{{"stream":true,"stream_options":{{"include_usage":{value}}}}}'.encode()
    assert sent(CHAT.path, body) is body
    assert not understand(CHAT, f'{{"stream":{value}}}'.encode()).stream


@pytest.mark.parametrize("unit", [b"NaN,", rb"\ud83d", rb'"\ud83d",NaN,'])
def test_only_so_many_are_replaced(unit: bytes) -> None:
    """More of them, and the body is refused: reading it would keep every other request waiting."""
    many = b'{"x":[%b0]}' if unit.endswith(b",") else b'{"x":"%b"}'
    understand(CHAT, many % (unit * (REPLACED_MAX // 2)))
    with pytest.raises(Refusal, match="not valid JSON"):
        understand(CHAT, many % (unit * (REPLACED_MAX + 1)))


def test_opaque_body_is_not_touched() -> None:
    """Where the body is opaque, nothing is read or changed."""
    body = b"--boundary\r\nnot JSON"
    facts = understand(AUDIO, body)
    assert facts == Facts(None, False, False, False)
    assert for_engine(AUDIO, body, facts, "m") is body


def sent(endpoint_path: str, body: bytes, default_model: str = "") -> bytes:
    endpoint = ENDPOINTS[endpoint_path]
    return for_engine(endpoint, body, understand(endpoint, body), default_model)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_is_asked_for_its_usage_by_a_splice(path: str) -> None:
    body = b' \n{ "model" : "m",  "stream":true , "prompt":"\xc3\xa9"} '
    assert sent(path, body) == (
        b' \n{"stream_options":{"include_usage":true}, "model" : "m",  "stream":true , "prompt":"\xc3\xa9"} '
    )


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", b'{"model":"m"}'),
        ("/v1/chat/completions", b'{"model":"m","stream":false,"stream_options":{"include_usage":false}}'),
        ("/v1/chat/completions", b'{"model":"m","stream":true,"stream_options":{"include_usage":"yes"}}'),
        # the engine refuses these: its own answer says best why
        ("/v1/chat/completions", b'{"model":"m","stream":2}'),
        ("/v1/chat/completions", b'{"model":"m","stream":true,"stream_options":{"include_usage":[true]}}'),
        ("/v1/chat/completions", b'{"model":"m","stream":true,"stream_options":{"include_usage":2}}'),
        # these streams carry their usage unasked
        ("/v1/responses", b'{"model":"m","stream":true}'),
        ("/v1/messages", b'{"model":"m","stream":true}'),
    ],
)
def test_unchanged_body_is_the_same_object(path: str, body: bytes) -> None:
    """A body that needs no change is passed on without a copy."""
    assert sent(path, body, "default") is body


def test_without_a_default_model_none_is_named() -> None:
    body = b'{"prompt":"x"}'
    assert sent("/v1/completions", body) is body


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", b'{"model":"de\\"f"}'),
        (b" { \n} ", b' {"model":"de\\"f" \n} '),
        (b'{"prompt":{}}', b'{"model":"de\\"f","prompt":{}}'),
        (b'{"model":null,"prompt" : [ 1 ]}', b'{"model":"de\\"f","prompt":[ 1 ]}'),
        (b'{"stream":1}', b'{"model":"de\\"f","stream_options":{"include_usage":true},"stream":1}'),
    ],
)
def test_a_body_without_model_gets_the_default(body: bytes, expected: bytes) -> None:
    assert sent("/v1/completions", body, 'de"f') == expected


def test_the_default_model_goes_to_every_dialect() -> None:
    for path in ("/v1/messages", "/v1/responses", "/tokenize", "/v1/embeddings"):
        assert json.loads(sent(path, b'{"x":1}', "m")) == {"model": "m", "x": 1}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (b"null", {"include_usage": True}),
        (b"{}", {"include_usage": True}),
        (b'{"include_usage":false}', {"include_usage": True}),
        (b'{"include_usage":null}', {"include_usage": True}),
        (b'{"include_usage":"No"}', {"include_usage": True}),
        (
            b'{"continuous_usage_stats":false,"include_usage":0,"x":[{}]}',
            {"continuous_usage_stats": False, "include_usage": True, "x": [{}]},
        ),
        # These count only together with include_usage, which is ours here
        (b'{"continuous_usage_stats":true}', {"include_usage": True}),
        (b'{"include_usage":false,"continuous_usage_stats":"Yes","x":1}', {"include_usage": True, "x": 1}),
        (b'{"continuous_usage_stats":1.0}', {"include_usage": True}),
        # and this one the engine refuses
        (b'{"continuous_usage_stats":[true]}', {"include_usage": True, "continuous_usage_stats": [True]}),
    ],
)
def test_other_stream_options_are_kept(options: bytes, expected: dict[str, object]) -> None:
    body = b'{"model":"m","stream_options":' + options + b',"stream":true,"messages":[ {"content":"\\u00e9 "} ]}'
    changed = sent("/v1/chat/completions", body)
    before, after = json.loads(body), json.loads(changed)
    assert list(after) == list(before)
    assert after == before | {"stream_options": expected}
    assert b'"messages":[ {"content":"\\u00e9 "} ]' in changed  # a value's bytes are its own


def test_value_that_the_engine_refuses_stays() -> None:
    """An invalid value stays for the engine to refuse, even where the model is filled in."""
    body = b'{"model":null,"stream":true,"stream_options":{"include_usage":"maybe"}}'
    assert json.loads(sent("/v1/chat/completions", body, "m")) == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": "maybe"},
    }


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (b'"\xff":1', "The request body is not valid UTF-8."),
        (b'"x":' + b"[" * 100_000 + b"]" * 100_000, "The request body is nested too deeply."),
    ],
)
def test_what_cannot_be_taken_apart_is_refused(member: bytes, says: str) -> None:
    # `understand` skips what it does not need without decoding names, and may have had more stack left
    facts = Facts(None, True, False, has_stream_options=True)
    with pytest.raises(Refusal) as caught:
        for_engine(CHAT, b'{"stream":true,"stream_options":{},' + member + b"}", facts, "")
    assert caught.value.message == says


@pytest.mark.parametrize("value", ["true", "1", '"yes"', 'false, "background": true'])
def test_work_that_outlives_its_request_is_refused(value: str) -> None:
    """A background response would run without a slot: it is refused, whatever vLLM takes for true."""
    body = f'{{"input": "hi", "background": {value}}}'.encode()
    with pytest.raises(Refusal) as caught:
        understand(RESPONSES, body)
    assert (caught.value.outcome, caught.value.status) == (Outcome.INVALID, 400)
    assert "Leave `background` out" in caught.value.message


@pytest.mark.parametrize("value", ["false", "null", "0", "[]", '"maybe"', 'true, "background": false'])
def test_no_background(value: str) -> None:
    """Also what the engine itself refuses."""
    assert understand(RESPONSES, f'{{"background": {value}}}'.encode()).model is None


def test_background_elsewhere_is_the_engines_to_judge() -> None:
    assert understand(CHAT, b'{"background": true}').model is None
