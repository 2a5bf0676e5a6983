"""Everything else: one JSON answer, or an opaque request whose stream is the client's as it comes."""

from msgspec import Raw

from .grammar import Grammar
from .usage import Usage, counts, usage_of


class Plain(Grammar):
    def usage(self, raw: Raw) -> Usage | None:
        found = counts(raw)
        # An embedding or a score has no completion.
        return usage_of(found.prompt_tokens, found.completion_tokens or 0)
