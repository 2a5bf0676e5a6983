"""Completions: OpenAI's older dialect, with the stream of chat completions."""

from .chat import Chat


class Completions(Chat):
    pass
