"""Coding agents as clients, as far as they come with a model of 2,048 tokens and an engine without a tool parser.

Each has a home and a working directory of its own, without keys, and no way to other hosts.
"""

import json
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.clients.install import agents
from tests.engine_contract.target import Target
from tests.harness import configuration, open_gateway

pytestmark = [pytest.mark.engine, pytest.mark.clients]

QUESTION = "What is the capital of France?"

#: Agents may wait between tries, and the machine may have other work (seconds).
AGENT_S = 200.0

#: Lets an agent ask a base URL for a model's answer, at home in a directory; what came of it.
Agent = Callable[[str, str, Path], Awaitable[tuple[str, ...]]]


async def run(command: list[str | Path], home: Path, environ: dict[str, str]) -> tuple[int, str]:
    """Exit status and output."""
    # Nothing listens there: what an agent would fetch from elsewhere fails at once.
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "TERM": "dumb", **nowhere, **environ}
    with trio.fail_after(AGENT_S):
        done = await trio.run_process(
            command, env=environ, cwd=home, stdin=b"", capture_stdout=True, capture_stderr=True, check=False
        )
    print(done.stdout.decode(), done.stderr.decode())
    return done.returncode, done.stdout.decode() + done.stderr.decode()


async def claude_code(base_url: str, model: str, home: Path) -> tuple[str, ...]:
    """Messages, streamed. Without its tools its prompt fits, but vLLM takes the empty list for tools."""
    (program,) = agents().glob("@anthropic-ai/claude-code-linux-*/claude")
    environ = {
        "ANTHROPIC_BASE_URL": base_url,
        "ANTHROPIC_AUTH_TOKEN": "none",
        "ANTHROPIC_MODEL": model,
        "ANTHROPIC_SMALL_FAST_MODEL": model,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "64",
        "CLAUDE_CODE_MAX_RETRIES": "0",
    }
    status, output = await run([program, "-p", QUESTION, "--output-format", "json", "--tools", ""], home, environ)
    result = json.loads(output.splitlines()[0])
    return str(status), str(result["api_error_status"]), result["result"]


async def codex(base_url: str, model: str, home: Path) -> tuple[str, ...]:
    """Responses, streamed. Its prompt does not fit."""
    provider = f'{{name="gate",base_url="{base_url}/v1",wire_api="responses",request_max_retries=0}}'
    settings = ["-c", 'model_provider="gate"', "-c", f"model_providers.gate={provider}", "-m", model]
    status, output = await run(
        [agents() / ".bin/codex", "exec", "--skip-git-repo-check", *settings, QUESTION], home, {}
    )
    return str(status), *errors(output)


async def opencode(base_url: str, model: str, home: Path) -> tuple[str, ...]:
    """Chat completions, streamed. A request for a title is served; the question comes with tools."""
    program, *_ = sorted(agents().glob("opencode-linux-*/bin/opencode"))
    provider: dict[str, Any] = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{base_url}/v1", "apiKey": "none"},
        "models": {model: {"limit": {"context": 2048, "output": 64}}},
    }
    chosen = {"model": f"gate/{model}", "small_model": f"gate/{model}"}
    (home / "opencode.json").write_text(json.dumps({"provider": {"gate": provider}, "share": "disabled", **chosen}))
    environ = {"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_AUTOUPDATE": "1"}
    status, output = await run([program, "run", QUESTION], home, environ)
    return str(status), *errors(output)


def errors(output: str) -> list[str]:
    """The lines with an error, each once. Numbers of tokens depend on the day and the directory."""
    lines = [re.sub(r"\d+", "N", line) for line in output.splitlines() if "error" in line.lower()]
    return list(dict.fromkeys(lines))


@pytest.mark.parametrize("agent", [claude_code, codex, opencode])
async def test_a_coding_agent(engine: Target, tmp_path: Path, agent: Agent) -> None:
    async with open_gateway(configuration(engine.base_url, max_active=2)) as running:
        results = []
        for name, base_url in (("direct", engine.base_url), ("through", running.base_url)):
            (tmp_path / name).mkdir()
            results.append(await agent(base_url, engine.model, tmp_path / name))
        await running.settled()
        outcomes = running.outcomes()
        running.assert_at_rest()
    direct, through = results
    print(through, outcomes)
    assert through == direct
    assert outcomes.keys() <= {"served", "invalid"}
    assert outcomes
