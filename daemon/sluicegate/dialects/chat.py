"""Chat completions: OpenAI's dialect that most clients speak."""

from .grammar import Grammar


class Chat(Grammar):
    usage_on_request = True
