"""vllm-start: one argument per value, whatever the value is."""

import contextlib
import json
import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.systemd.programs import load, run

start = load("vllm-start")

DIRECTORY = "/run/vllm/main"
LEAST = {"ENGINE_MODEL": "Qwen/Qwen3-8B", "RUNTIME_DIRECTORY": DIRECTORY}
SOCKET = f"--uds={DIRECTORY}/engine.sock"
DEFAULT = ["/opt/vllm/current/bin/vllm", "serve", "Qwen/Qwen3-8B", "--shutdown-timeout=30"]

HOSTILE = [
    "$(touch owned)",
    "`touch owned`",
    "; touch owned",
    "a b  c",
    "'\"\\",
    "--uds=/tmp/elsewhere",
    "--host=0.0.0.0",
    "-",
    "*",
    "~",
    "%n",
    "${HOME}",
    "ключ\u2028",
    "|| true &",
]


def arguments(**settings: str) -> list[str]:
    found: list[str] = start.command(LEAST | settings)[0]
    return found


def environment(**settings: str) -> dict[str, str]:
    found: dict[str, str] = start.command(LEAST | settings)[1]
    return found


def test_the_least() -> None:
    assert arguments() == [*DEFAULT, SOCKET]


def test_everything() -> None:
    assert arguments(
        ENGINE_SERVED_NAME="qwen",
        ENGINE_DEVICE="gpu",
        ENGINE_GPUS="0,1",
        ENGINE_GPU_MEMORY_UTILIZATION="0.85",
        ENGINE_MAX_MODEL_LEN="32768",
        ENGINE_MAX_NUM_SEQS="64",
        ENGINE_PREFIX_CACHING="true",
        ENGINE_SCHEDULING_POLICY="priority",
        ENGINE_DTYPE="bfloat16",
        ENGINE_SHUTDOWN_TIMEOUT_S="60",
        ENGINE_EXTRA_ARGS='["--enforce-eager", "--chat-template=/etc/vllm/a b.jinja"]',
        ENGINE_VENV="/opt/vllm/versions/0.33.0",
        ENGINE_READY_TIMEOUT_S="60",
        ENGINE_PREFLIGHT_WAIT_S="0",
        ENGINE_VRAM_USED_MAX_MIB="100",
    ) == [
        "/opt/vllm/versions/0.33.0/bin/vllm",
        "serve",
        "Qwen/Qwen3-8B",
        "--shutdown-timeout=60",
        "--served-model-name=qwen",
        "--gpu-memory-utilization=0.85",
        "--max-model-len=32768",
        "--max-num-seqs=64",
        "--scheduling-policy=priority",
        "--dtype=bfloat16",
        "--enable-prefix-caching",
        "--enforce-eager",
        "--chat-template=/etc/vllm/a b.jinja",
        "--tensor-parallel-size=2",
        SOCKET,
    ]


def test_an_empty_value_counts_as_unset() -> None:
    empty = {name: "" for name in start.KNOWN if name != "ENGINE_MODEL"}
    assert arguments(**empty) == [*DEFAULT, SOCKET]


def test_prefix_caching_can_be_turned_off() -> None:
    assert "--no-enable-prefix-caching" in arguments(ENGINE_PREFIX_CACHING="false")


def test_gpus_are_counted_as_nvidia_smi_does() -> None:
    found = environment(ENGINE_GPUS="2,3")
    assert found["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert found["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "CUDA_VISIBLE_DEVICES" not in environment()


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"ENGINE_GPUS": "0"}, []),
        ({"ENGINE_GPUS": "0,1,4,5"}, ["--tensor-parallel-size=4"]),
        ({"ENGINE_GPUS": "0,1,4,5", "ENGINE_TENSOR_PARALLEL_SIZE": "2"}, ["--tensor-parallel-size=2"]),
        ({}, []),
    ],
)
def test_tensor_parallel_over_all_gpus(settings: dict[str, str], sizes: list[str]) -> None:
    """The engine uses all GPUs unless a setting says otherwise."""
    assert [argument for argument in arguments(**settings) if "tensor" in argument] == sizes


def test_the_engine_gets_its_own_environment() -> None:
    found = environment(HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="2", PATH="/usr/bin", ENGINE_DTYPE="auto")
    assert found["HF_HUB_OFFLINE"] == "1"
    assert found["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert found["PATH"] == "/opt/vllm/current/bin:/usr/local/cuda/bin:/usr/bin"
    assert not [name for name in found if name.startswith("ENGINE_")]


def test_the_compiler_that_was_chosen_is_found_first() -> None:
    found = environment(CUDA_HOME="/usr/local/cuda-13.0", PATH="/usr/bin")
    assert found["PATH"] == "/opt/vllm/current/bin:/usr/local/cuda-13.0/bin:/usr/bin"
    assert found["CUDA_HOME"] == "/usr/local/cuda-13.0"


def test_the_token_is_passed_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "hf-token").write_text("hf_secret")
    found = environment(CREDENTIALS_DIRECTORY=str(tmp_path))
    assert found["HF_TOKEN_PATH"] == str(tmp_path / "hf-token")
    assert "hf_secret" not in found.values()


def test_the_api_key_is_in_no_argument(tmp_path: Path) -> None:
    """vLLM reads it from its environment."""
    (tmp_path / "api-key").write_text("sesame\n")
    found = environment(CREDENTIALS_DIRECTORY=str(tmp_path))
    assert found["VLLM_API_KEY"] == "sesame"
    assert "VLLM_API_KEY" not in environment(CREDENTIALS_DIRECTORY="/nonexistent")


def test_without_a_token_it_starts_too(tmp_path: Path) -> None:
    assert "HF_TOKEN_PATH" not in environment(CREDENTIALS_DIRECTORY=str(tmp_path))
    assert "HF_TOKEN_PATH" not in environment()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENGINE_MODEL", ""),
        ("ENGINE_MODEL", "--trust-remote-code"),
        ("ENGINE_MODEL", "a\nb"),
        ("ENGINE_SERVED_NAME", "a\x00b"),
        ("ENGINE_SERVED_NAME", "a\x7fb"),
        ("ENGINE_DEVICE", "tpu"),
        ("ENGINE_GPUS", "0,"),
        ("ENGINE_GPUS", "0 1"),
        ("ENGINE_GPUS", "0,0"),
        ("ENGINE_GPUS", "all"),
        ("ENGINE_TENSOR_PARALLEL_SIZE", "0"),
        ("ENGINE_GPU_MEMORY_UTILIZATION", "0"),
        ("ENGINE_GPU_MEMORY_UTILIZATION", "1.1"),
        ("ENGINE_GPU_MEMORY_UTILIZATION", "90%"),
        ("ENGINE_GPU_MEMORY_UTILIZATION", "nan"),
        ("ENGINE_MAX_MODEL_LEN", "32k"),
        ("ENGINE_MAX_MODEL_LEN", "-1"),
        ("ENGINE_MAX_MODEL_LEN", "٣"),
        ("ENGINE_MAX_NUM_SEQS", "0"),
        ("ENGINE_PREFIX_CACHING", "yes"),
        ("ENGINE_SCHEDULING_POLICY", "fifo"),
        ("ENGINE_DTYPE", "int4"),
        ("ENGINE_SHUTDOWN_TIMEOUT_S", "121"),
        ("ENGINE_EXTRA_ARGS", "--enforce-eager"),
        ("ENGINE_EXTRA_ARGS", '{"a": 1}'),
        ("ENGINE_EXTRA_ARGS", '["a", 1]'),
        ("ENGINE_EXTRA_ARGS", '["a\\u0000"]'),
        ("ENGINE_EXTRA_ARGS", '["\\ud800"]'),
        ("ENGINE_EXTRA_ARGS", "[" * 100_000),
        ("ENGINE_VENV", "venv"),
        ("ENGINE_MAX_MODEL_LENGTH", "1"),
        ("RUNTIME_DIRECTORY", ""),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(start.Refused, match=name):
        start.command(LEAST | {name: value})


def test_a_misspelt_variable_is_recognized() -> None:
    with pytest.raises(start.Refused, match="ENGINE_MAX_MODEL_LEN is"):
        start.command(LEAST | {"ENGINE_MAX_MODEL_LENGTH": "1"})


def test_a_gpu_for_an_engine_on_the_cpu_is_refused() -> None:
    with pytest.raises(start.Refused, match="contradicts"):
        start.command(LEAST | {"ENGINE_DEVICE": "cpu", "ENGINE_GPUS": "0"})


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)


@given(
    model=words.filter(lambda text: not text.startswith("-")),
    name=words,
    extra=st.lists(words, max_size=4),
)
def test_every_value_is_one_argument(model: str, name: str, extra: list[str]) -> None:
    settings = {"ENGINE_MODEL": model, "ENGINE_SERVED_NAME": name, "ENGINE_EXTRA_ARGS": json.dumps(extra)}
    assert arguments(**settings) == [
        "/opt/vllm/current/bin/vllm",
        "serve",
        model,
        "--shutdown-timeout=30",
        f"--served-model-name={name}",
        *extra,
        SOCKET,
    ]


@given(st.dictionaries(st.sampled_from(start.KNOWN), st.text()))
def test_it_starts_or_refuses_and_never_breaks(settings: dict[str, str]) -> None:
    with contextlib.suppress(start.Refused):
        found, _ = start.command(LEAST | settings)
        assert found[-1] == SOCKET
        assert found[1] == "serve"
        assert not found[2].startswith("-")


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A virtual environment whose vllm writes down how it was called."""
    program = tmp_path / "venv/bin/vllm"
    program.parent.mkdir(parents=True)
    code = "import json, os, sys; json.dump([sys.argv[1:], dict(os.environ)], sys.stdout)"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"\n')
    program.chmod(0o755)
    return tmp_path / "venv"


@pytest.mark.parametrize("value", HOSTILE)
def test_the_real_process_gets_what_was_written(venv: Path, tmp_path: Path, value: str) -> None:
    settings = {"ENGINE_SERVED_NAME": value, "ENGINE_EXTRA_ARGS": json.dumps([value]), "ENGINE_VENV": str(venv)}
    done = run("vllm-start", env=LEAST | settings | {"LC_ALL": "C.UTF-8", "HOME": str(tmp_path)})
    assert done.stderr == ""
    argv, environ = json.loads(done.stdout)
    assert argv[1:] == ["Qwen/Qwen3-8B", "--shutdown-timeout=30", f"--served-model-name={value}", value, SOCKET]
    assert value not in environ.values()
    assert not (tmp_path / "owned").exists()


def test_refusal_exits_with_2() -> None:
    """The refusal exits with 2 and says where to change the setting."""
    done = run("vllm-start", env=LEAST | {"ENGINE_MAX_NUM_SEQS": "many"})
    assert done.returncode == 2
    assert done.stderr == (
        "ENGINE_MAX_NUM_SEQS = 'many' must be a whole number from 1 to 65536; "
        "change it in the instance's file in /etc/vllm.\n"
    )


def test_a_missing_vllm_is_named(tmp_path: Path) -> None:
    done = run("vllm-start", env=LEAST | {"ENGINE_VENV": str(tmp_path)})
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"{tmp_path}/bin/vllm cannot be started (No such file or directory): install vLLM there"
    )
