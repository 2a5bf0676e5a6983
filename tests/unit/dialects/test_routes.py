"""The route table, and the page of the documentation that says why."""

from typing import Any

import pytest

from sluicegate.accept.app import make_app
from sluicegate.dialects.routes import ENDPOINTS, LOOKUPS, OWN, PATHS, allowed, find, meant
from sluicegate.exchange import Dialect
from tests.routes import documented

OPAQUE = ["/v1/audio/transcriptions", "/v1/audio/translations"]


def test_each_key_is_its_endpoints_path() -> None:
    assert ENDPOINTS
    assert all(path == endpoint.path for path, endpoint in ENDPOINTS.items())
    assert all(endpoint.method == "POST" for endpoint in ENDPOINTS.values())


def test_labels_are_the_paths_of_all_endpoints() -> None:
    assert sorted(PATHS) == sorted({*ENDPOINTS, *(lookup.path for lookup in LOOKUPS)})


def test_what_needs_a_slot() -> None:
    """Every endpoint that generates or computes on the GPU needs a slot."""
    without = {path for path, endpoint in ENDPOINTS.items() if not endpoint.needs_slot}
    assert without == {"/tokenize", "/detokenize", "/v1/messages/count_tokens"}
    assert not any(lookup.needs_slot for lookup in LOOKUPS)


def test_dialects() -> None:
    assert {
        path: endpoint.dialect for path, endpoint in ENDPOINTS.items() if endpoint.dialect is not Dialect.PLAIN
    } == {
        "/v1/chat/completions": Dialect.CHAT,
        "/v1/completions": Dialect.COMPLETIONS,
        "/v1/responses": Dialect.RESPONSES,
        "/v1/messages": Dialect.MESSAGES,
        "/v1/messages/count_tokens": Dialect.MESSAGES,
        "/invocations": Dialect.CHAT,
        "/cohere/v2/chat": Dialect.COHERE,
        "/v2/embed": Dialect.COHERE,
    }


def test_only_multipart_is_opaque() -> None:
    assert [path for path, endpoint in ENDPOINTS.items() if endpoint.opaque] == OPAQUE


def test_docs_and_tables_agree() -> None:
    pages = documented()
    relayed = [*ENDPOINTS.values(), *LOOKUPS]
    for section, needs_slot in (("Through admission", True), ("Without a slot", False)):
        table = {(each.method, each.path) for each in relayed if each.needs_slot is needs_slot}
        assert pages[section] == table, section
    nothing: Any = None
    rules = make_app(nothing, nothing, nothing, nothing).url_map.iter_rules()
    own = {
        (method, rule.rule.replace("<name:model>", "{model}"))
        for rule in rules
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert pages["Answered by the gateway"] == own
    assert {path for _, path in own} == set(OWN)


def test_no_route_is_documented_twice() -> None:
    pages = documented()
    everything = [route for routes in pages.values() for route in routes]
    assert len(everything) == len(set(everything)) > 70


def test_what_is_documented_as_unreachable_is_not_found() -> None:
    pages = documented()
    refused = pages["Not reachable"] | pages["Not yet"]
    assert len(refused) > 40
    for method, path in refused:
        assert find(method, path) is None, path
        assert path not in OWN


@pytest.mark.parametrize(
    ("method", "path", "label"),
    [
        ("GET", "/version", "/version"),
        ("GET", "/v1/responses/resp_1", "/v1/responses/{response_id}"),
        ("GET", "/v1/responses/a.B:c-1", "/v1/responses/{response_id}"),
        ("POST", "/v1/responses/resp_1/cancel", "/v1/responses/{response_id}/cancel"),
    ],
)
def test_lookups(method: str, path: str, label: str) -> None:
    """The label has no id in it; what the engine is asked for has."""
    endpoint = find(method, path)
    assert endpoint is not None
    assert (endpoint.method, endpoint.path, endpoint.target) == (method, label, path)
    assert (allowed(path), endpoint.bodiless) == (method, True)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/chat/completions"),
        ("POST", "/version"),
        ("HEAD", "/version"),
        ("POST", "/v1/responses/resp_1"),
        ("DELETE", "/v1/responses/resp_1"),
        ("GET", "/v1/responses/resp_1/cancel"),
        ("GET", "/v1/responses/"),
        ("GET", "/v1/responses/."),
        ("GET", "/v1/responses/.."),
        ("GET", "/v1/responses/a/b"),
        ("GET", "/v1/responses/a b"),
        ("GET", "/v1/responses/a\nb"),
        ("GET", "/v1/responses/a?b"),
        ("GET", "/v1/responses/ü"),
        ("GET", "/v1/responses/render"),
        ("POST", "/v1/responses/render/cancel"),
        ("GET", "/v1/responses/" + "x" * 129),
        ("POST", "/v1/responses/../cancel"),
        ("GET", "/V1/responses/resp_1"),
    ],
)
def test_what_no_endpoint_takes(method: str, path: str) -> None:
    assert find(method, path) is None


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/v1/messages", "/v1/messages"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/v1/chat/completions//", "/v1/chat/completions"),
        ("//v1/chat/completions", "/v1/chat/completions"),
        ("/v1//chat/completions", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/openai/v1/chat/completions", "/v1/chat/completions"),
        ("/openai/deployments/m/chat/completions", "/v1/chat/completions"),
        ("/v1/health", "/health"),
        ("/health/", "/health"),
        ("/v1/tokenize", "/tokenize"),
        ("/v1/models/", "/v1/models"),
        ("/v1/v1/models", "/v1/models"),
        ("/models", "/v1/models"),
        ("/v1/v1/models/org/name", "/v1/models/org/name"),
        ("/v1/v1/responses/resp_1", "/v1/responses/resp_1"),
        ("/responses/resp_1/cancel/", "/v1/responses/resp_1/cancel"),
        ("/", ""),
        ("", ""),
        ("/v1", ""),
        ("/v1/", ""),
        ("/favicon.ico", ""),
        ("/v1/files", ""),
        ("/" + "v1/" * 100 + "models", ""),
    ],
)
def test_the_route_that_was_meant(path: str, route: str) -> None:
    assert meant(path) == route
