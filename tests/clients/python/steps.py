"""What a client is put through at one address. A program of this folder is run as

    python PROGRAM BASE_URL MODEL [FULL_URL]

and prints one line of JSON: each step with what came of it. At FULL_URL all slots are busy. `../node/steps.cjs` does
the same.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

QUESTION = "What is the capital of France?"
#: Asks for an answer that lasts until its client stops it.
LONG_QUESTION = "Write a long story of a river, in 20 chapters."
LONG = 1800
#: Tokens: enough for the whole answer to the question.
LIMIT = 12
#: Pieces of the long answer that are read before it is stopped.
PIECES = 3
#: No engine has it.
UNKNOWN_MODEL = "no-such-model"
TIMEOUT_S = 60.0

#: `text`, `finish` and `usage`: prompt and completion tokens.
Answer = dict[str, Any]

#: Asks at a base URL for a model's answer.
Ask = Callable[[str, str], Answer]


def answer(text: str, finish: str | None, prompt: int, completion: int) -> Answer:
    return {"text": text, "finish": finish, "usage": [prompt, completion]}


def refusal(ask: Ask, base_url: str, model: str) -> dict[str, str]:
    """The client's own error for a request that is refused."""
    try:
        ask(base_url, model)
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {"error": "none"}


def run(whole: Ask, streamed: Ask, stop: Callable[[str, str], int]) -> None:
    """Take the steps. `stop` begins a long answer, leaves it in its middle and says how many pieces it had read."""
    base_url, model, *full = sys.argv[1:]
    report: dict[str, Any] = {
        "whole": whole(base_url, model),
        "streamed": streamed(base_url, model),
        "refused": refusal(whole, base_url, UNKNOWN_MODEL),
        "refused_stream": refusal(streamed, base_url, UNKNOWN_MODEL),
        "stopped": stop(base_url, model),
        # With a single slot this waits until the engine has stopped.
        "after": whole(base_url, model),
    }
    for full_url in full:
        report["full"] = refusal(whole, full_url, model)
        report["full_stream"] = refusal(streamed, full_url, model)
    print(json.dumps(report))
