"""Benchmark programs as clients: through the gateway they see no error, and the same tokens as at vLLM itself."""

import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from sluicegate_run.prepare import EnginePaths
from tests.clients.install import guidellm
from tests.engine.real import SEQUENCES
from tests.engine_contract.target import Target
from tests.harness import configuration, open_gateway

pytestmark = [pytest.mark.engine, pytest.mark.clients]

REQUESTS = 12
PROMPT_TOKENS = 60
COMPLETION_TOKENS = 20

#: Both programs import torch, which takes most of a minute on a busy machine (seconds).
BENCHMARK_S = 400.0

#: Lets a benchmark ask at a base URL; requests without an error, failed ones, prompt and completion tokens.
Benchmark = Callable[[str, EnginePaths, Path], Awaitable[tuple[int, int, int, int]]]


async def run(command: list[str | Path], directory: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environ = {"PATH": os.environ["PATH"], "HOME": str(directory), **offline}
    with trio.fail_after(BENCHMARK_S):
        await trio.run_process(command, env=environ, cwd=directory)


async def vllm_bench_serve(base_url: str, engine: EnginePaths, directory: Path) -> tuple[int, int, int, int]:
    await run(
        [
            *(engine.python, "-m", "vllm.entrypoints.cli.main", "bench", "serve"),
            *("--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--base-url", base_url),
            *("--model", engine.served_name, "--tokenizer", engine.model, "--seed", "1", "--temperature", "0"),
            *("--dataset-name", "random", "--num-prompts", str(REQUESTS), "--max-concurrency", str(2 * SEQUENCES)),
            *("--random-input-len", str(PROMPT_TOKENS), "--random-output-len", str(COMPLETION_TOKENS), "--ignore-eos"),
            *("--save-result", "--result-filename", "result.json", "--disable-tqdm"),
        ],
        directory,
    )
    result = read(directory / "result.json")
    return result["completed"], result["failed"], result["total_input_tokens"], result["total_output_tokens"]


async def guidellm_run(base_url: str, engine: EnginePaths, directory: Path) -> tuple[int, int, int, int]:
    backend = {"kind": "openai_http", "target": base_url, "model": engine.served_name}
    data = {"kind": "synthetic_text", "prompt_tokens": PROMPT_TOKENS, "output_tokens": COMPLETION_TOKENS}
    await run(
        [
            *(guidellm(engine), "run", "--disable-console"),
            *("--backend", json.dumps(backend), "--data", json.dumps(data)),
            *("--tokenizer", json.dumps({"kind": "hf_auto", "model": str(engine.model)})),
            *("--profile", json.dumps({"kind": "concurrent", "streams": 2 * SEQUENCES})),
            *("--constraint", json.dumps({"kind": "max_requests", "count": REQUESTS})),
            *("--output", json.dumps({"kind": "json", "path": "result.json"})),
        ],
        directory,
    )
    (benchmark,) = read(directory / "result.json")["benchmarks"]
    metrics = benchmark["metrics"]
    requests = metrics["request_totals"]
    prompt, completion = (
        int(metrics[f"{kind}_token_count"]["successful"]["total_sum"]) for kind in ("prompt", "output")
    )
    return requests["successful"], requests["errored"] + requests["incomplete"], prompt, completion


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


@pytest.mark.parametrize("benchmark", [vllm_bench_serve, guidellm_run])
async def test_a_benchmark(engine: Target, engine_paths: EnginePaths, tmp_path: Path, benchmark: Benchmark) -> None:
    """It asks for more at a time than the gateway has slots."""
    async with open_gateway(configuration(engine.base_url, max_active=SEQUENCES)) as running:
        results = []
        for name, base_url in (("direct", engine.base_url), ("through", running.base_url)):
            (tmp_path / name).mkdir()
            results.append(await benchmark(base_url, engine_paths, tmp_path / name))
        await running.settled()
        outcomes = running.outcomes()
        running.assert_at_rest()
    direct, through = results
    print(direct, outcomes)
    assert through == direct
    assert through[:2] == (REQUESTS, 0)
    assert outcomes.keys() == {"served"}
