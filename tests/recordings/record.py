"""Records answers of a running vLLM: python -m tests.recordings.record http://127.0.0.1:8000 MODEL [NAME...]"""

import sys

import trio

from tests.engine_contract.raw import post
from tests.engine_contract.target import Target
from tests.recordings.recorded import HERE, QUESTIONS


async def record(base_url: str, model: str, names: list[str]) -> None:
    """Ask the questions called `names` and write down the answers. Fails if one is not whole."""
    target = Target(base_url, model)
    for name in names:
        path, body = QUESTIONS[name]
        answer = await target.ask(post(path, {"model": model, **body}, f"x-request-id: recorded-{name}"))
        if not answer.complete:
            raise SystemExit(f"{name}: the answer is not whole: {answer}")
        (HERE / f"{name}.http").write_bytes(answer.raw)
        print(f"{name}: {answer.status}, {len(answer.raw)} bytes, {len(answer.chunks)} chunks")


if __name__ == "__main__":
    trio.run(record, sys.argv[1], sys.argv[2], sys.argv[3:] or list(QUESTIONS))
