"""The route table."""

from sluicegate.dialects.routes import ENDPOINTS
from sluicegate.exchange import Dialect


def test_each_key_is_its_endpoints_path() -> None:
    assert all(path == endpoint.path for path, endpoint in ENDPOINTS.items())


def test_what_needs_a_slot() -> None:
    """Every endpoint that generates or computes on the GPU needs a slot."""
    without = {path for path, endpoint in ENDPOINTS.items() if not endpoint.needs_slot}
    assert without == {"/tokenize", "/detokenize", "/v1/messages/count_tokens"}


def test_dialects() -> None:
    assert {
        path: endpoint.dialect for path, endpoint in ENDPOINTS.items() if endpoint.dialect is not Dialect.PLAIN
    } == {
        "/v1/chat/completions": Dialect.CHAT,
        "/v1/completions": Dialect.COMPLETIONS,
        "/v1/responses": Dialect.RESPONSES,
        "/v1/messages": Dialect.MESSAGES,
        "/v1/messages/count_tokens": Dialect.MESSAGES,
    }


def test_only_multipart_is_opaque() -> None:
    assert [path for path, endpoint in ENDPOINTS.items() if endpoint.opaque] == ["/v1/audio/transcriptions"]


def test_vllms_unguarded_routes_are_not_there() -> None:
    assert not {"/invocations", "/pooling", "/score", "/metrics", "/load"} & ENDPOINTS.keys()
