"""curl, chat completions. Its own error is its exit status: 22 for a status of 400 and more."""

import json
import subprocess
from typing import Any

import steps

CURL = ["curl", "--silent", "--no-buffer", "--fail-with-body", "--max-time", str(steps.TIMEOUT_S)]


class CurlError(Exception):
    """curl ended with an exit status other than 0."""


def command(base_url: str, model: str, question: str, limit: int, **more: Any) -> list[str]:
    messages = [{"role": "user", "content": question}]
    body = {"model": model, "messages": messages, "max_tokens": limit, "temperature": 0, **more}
    return [*CURL, "--json", json.dumps(body), f"{base_url}/v1/chat/completions"]


def output(arguments: list[str]) -> str:
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise CurlError(f"exit status {done.returncode}: {json.loads(done.stdout)['error']['message']}")
    return done.stdout


def whole(base_url: str, model: str) -> steps.Answer:
    body = json.loads(output(command(base_url, model, steps.QUESTION, steps.LIMIT)))
    (choice,) = body["choices"]
    usage = body["usage"]
    return steps.answer(
        choice["message"]["content"], choice["finish_reason"], usage["prompt_tokens"], usage["completion_tokens"]
    )


def streamed(base_url: str, model: str) -> steps.Answer:
    options = {"include_usage": True}
    asked = command(base_url, model, steps.QUESTION, steps.LIMIT, stream=True, stream_options=options)
    lines = [line.removeprefix("data: ") for line in output(asked).splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    usage = chunks[-1]["usage"]
    return steps.answer(
        "".join(choice["delta"].get("content") or "" for choice in choices),
        choices[-1]["finish_reason"],
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )


def stop(base_url: str, model: str) -> int:
    asked = command(base_url, model, steps.LONG_QUESTION, steps.LONG, stream=True)
    with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) as curl:
        assert curl.stdout is not None
        events = (line for line in curl.stdout if line.startswith("data: "))
        pieces = sum(1 for _, _ in zip(range(steps.PIECES), events, strict=False))
        curl.kill()
    return pieces


steps.run(whole, streamed, stop)
