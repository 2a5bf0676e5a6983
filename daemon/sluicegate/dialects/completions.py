"""Completions: OpenAI's older dialect, with the stream of chat completions."""

from .grammar import Grammar


class Completions(Grammar):
    usage_on_request = True
    usage_for_gate = True
