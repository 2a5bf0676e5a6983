"""vllm-memory: its arithmetic against figures that others have published, and where it reads them from."""

import http.server
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.systemd.programs import load
from tests.systemd.units import LIBEXEC

GIB = 2**30
FACTS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "models/published.json").read_text())


def with_figure(figure: str) -> pytest.MarkDecorator:
    """The models and the settings for which this was published."""
    cases = [(facts, it) for facts in FACTS for it in facts["published"] if figure in it]
    ids = [f"{facts['model'].split('/')[1]} on {it['tp']} from {it['source'][:24]}" for facts, it in cases]
    return pytest.mark.parametrize(("facts", "published"), cases, ids=ids)


QWEN = FACTS[0]

#: What CUDA reports of a 24 GB GeForce: 23.58 GiB (vllm-project/vllm#10517), and of an L4 or A10 with ECC: 22.0 GiB.
GEFORCE, L4 = 23.58, 22.0


@pytest.fixture
def memory() -> ModuleType:
    return load("vllm-memory")


def instance(**settings: object) -> dict[str, object]:
    return {"name": "main", "model": "Qwen/Qwen3-8B", "gpus": [0], "gpu_memory_utilization": 0.9, **settings}


def gpu(memory: ModuleType, gib: float, name: str = "NVIDIA GeForce RTX 4090", index: int = 0) -> Any:
    return memory.Gpu(str(index), f"GPU-{index}aaa0000", name, int(gib * GIB), "8.9")


def model_of(memory: ModuleType, facts: dict[str, Any]) -> Any:
    return memory.Model(facts["config"], facts["total_size"] or 1)


def engine_of(memory: ModuleType, published: dict[str, Any]) -> Any:
    arguments = ["--kv-cache-dtype", published["kv_cache_dtype"]] if "kv_cache_dtype" in published else []
    return memory.engine_of(
        instance(
            tensor_parallel_size=published["tp"],
            dtype=published.get("dtype", "auto"),
            extra_args=arguments,
            max_model_len=1,
        )
    )


def test_each_figure_has_a_source() -> None:
    """At least five models have published figures, each with its source."""
    complete = [
        facts["model"]
        for facts in FACTS
        if any("weights_gib" in published for published in facts["published"])
        and any("kv_tokens" in published for published in facts["published"])
    ]
    assert len(complete) >= 5
    assert all(published["source"] for facts in FACTS for published in facts["published"])


@with_figure("weights_gib")
def test_weights_agree_with_what_was_published(
    memory: ModuleType, facts: dict[str, Any], published: dict[str, Any]
) -> None:
    computed = memory.weights_per_gpu(engine_of(memory, published), model_of(memory, facts)) / GIB
    assert computed == pytest.approx(published["weights_gib"], rel=0.05)


@with_figure("kv_tokens")
def test_the_kv_cache_agrees_with_what_was_published(
    memory: ModuleType, facts: dict[str, Any], published: dict[str, Any]
) -> None:
    need = memory.needs(engine_of(memory, published), model_of(memory, facts), gpu(memory, 79.19))
    assert need.token == pytest.approx(published["kv_gib"] * GIB / published["kv_tokens"], rel=0.05)
    assert need.request == need.token


@with_figure("activations_gib")
def test_activations_agree_with_what_was_published(
    memory: ModuleType, facts: dict[str, Any], published: dict[str, Any]
) -> None:
    h100 = gpu(memory, 79.19, "NVIDIA H100 80GB HBM3")
    batched, seqs = memory.default_max_num_batched_tokens(h100), memory.default_max_num_seqs(h100)
    assert (batched, seqs) == (8192, 1024)
    beside = memory.beside(engine_of(memory, published), model_of(memory, facts), batched, seqs)
    activations = (beside - memory.CONTEXT_BYTES - memory.GRAPHS_BYTES) / GIB
    assert activations == pytest.approx(published["activations_gib"], rel=0.15)


def test_a_window_bounds_what_a_layer_keeps(memory: ModuleType) -> None:
    config = {**QWEN["config"], "sliding_window": 4096, "layer_types": ["full_attention", "sliding_attention"] * 18}
    model = memory.Model(config, QWEN["total_size"])
    engine = memory.engine_of(instance(max_model_len=40960, extra_args=["--max-num-batched-tokens=2048"]))
    layer = 2 * 8 * 128 * 2
    assert memory.needs(engine, model, gpu(memory, 24)).request == layer * 18 * (40960 + 4096 + 2048)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"architectures": ["XLMRobertaModel"]}, "may have no KV cache"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layers of the types"),
        ({"mamba_d_state": 128}, "layers without keys and values"),
        ({"sliding_window": 4096, "use_sliding_window": True}, "which of its layers"),
        ({"quantization_config": {"kv_cache_scheme": {"num_bits": 8}}}, "how the KV cache is to be quantized"),
        ({"num_hidden_layers": None}, "no num_hidden_layers"),
        ({"block_configs": [{"attention": {"no_op": True}}]}, "its layers differ from each other"),
    ],
)
def test_what_is_not_computed_is_said_and_not_guessed(
    memory: ModuleType, config: dict[str, object], reason: str
) -> None:
    model = memory.Model({**QWEN["config"], **config}, QWEN["total_size"])
    with pytest.raises(memory.Unknown, match=reason) as raised:
        memory.judge(memory.engine_of(instance()), model, gpu(memory, GEFORCE))
    assert "its weights need 15.3 of the 21.2 GiB" in str(raised.value)


@pytest.mark.parametrize("argument", ["--pipeline-parallel-size", "--data-parallel-size", "--cpu-offload-gb", "-q"])
def test_spread_weights_are_not_too_large(memory: ModuleType, argument: str) -> None:
    """They are not all on one GPU, or not as they are stored."""
    engine = memory.engine_of(instance(extra_args=[argument, "8"]))
    with pytest.raises(memory.Unknown, match=f"its weights need 15.3 of the 7.2 GiB .* extra_args has {argument}"):
        memory.judge(engine, model_of(memory, QWEN), gpu(memory, 8))


@pytest.mark.parametrize(
    ("config", "arguments"),
    [({"intermediate_size": [8192, 16384]}, []), ({}, ["--max-num-batched-tokens=8k"])],
)
def test_unforeseen_input_is_unknown(
    memory: ModuleType, tmp_path: Path, config: dict[str, object], arguments: list[str]
) -> None:
    """Input that the program does not expect gives the verdict unknown and stops nothing."""
    directory = lay(tmp_path / "model")
    (directory / "config.json").write_text(json.dumps({**QWEN["config"], **config}))
    engine = memory.engine_of(instance(model=str(directory), extra_args=arguments))
    answered = memory.answer(engine, [gpu(memory, GEFORCE)], {})
    assert answered["verdict"] == "unknown"
    assert "Error: " in answered["sentence"]


@pytest.mark.parametrize("argument", ["--quantization=fp8", "-q", "--cpu_offload_gb", "--speculative-config"])
def test_memory_argument_makes_it_unknown(memory: ModuleType, argument: str) -> None:
    """An argument that changes the use of memory makes the verdict unknown."""
    engine = memory.engine_of(instance(extra_args=[argument, "8"]))
    with pytest.raises(memory.Unknown, match="extra_args has -"):
        memory.judge(engine, model_of(memory, QWEN), gpu(memory, GEFORCE))


@pytest.mark.parametrize(
    ("settings", "gib", "verdict", "words"),
    [
        # What the example inventory said: 19.8 of 21.2, which leaves too little on a card with ECC.
        ({"max_model_len": 32768, "max_num_seqs": 64}, L4, "tight", "needs 19.8 of the 19.8 GiB"),
        ({"max_model_len": 16384, "max_num_seqs": 16}, GEFORCE, "fits", "needs 19.0 of the 21.2 GiB"),
        ({"max_model_len": 40960}, GEFORCE, "tight", "needs 20.9 of the 21.2 GiB"),
        ({"max_model_len": 40960}, 20.0, "too large", "lower max_model_len to"),
        ({}, 15.0, "too large", "give it 4 such GPUs"),
    ],
)
def test_verdict_says_what_would_fit(
    memory: ModuleType, settings: dict[str, object], gib: float, verdict: str, words: str
) -> None:
    """The verdict says how much memory the engine needs and what would fit."""
    found, sentence = memory.judge(memory.engine_of(instance(**settings)), model_of(memory, QWEN), gpu(memory, gib))
    assert found == verdict, sentence
    assert words in sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize("gib", [12.0, 16.0, 20.0, L4, GEFORCE])
def test_what_it_advises_would_fit(memory: ModuleType, gib: float) -> None:
    engine, model, here = memory.engine_of(instance(max_model_len=40960)), model_of(memory, QWEN), gpu(memory, gib)
    verdict, sentence = memory.judge(engine, model, here)
    assert verdict != "fits"
    advice = sentence.rpartition(": ")[2]
    tried = 0
    for way in advice.split(", "):
        match way.split():
            case ["lower", "max_model_len", "to", length]:
                other = memory.replace(engine, max_model_len=int(length.strip(".")))
            case ["raise", "gpu_memory_utilization", "to", share]:
                other = memory.replace(engine, gpu_memory_utilization=float(share))
            case ["give", "it", count, "such", "GPUs"]:
                other = memory.replace(engine, tensor_parallel_size=int(count))
            case _:
                continue
        tried += 1
        assert memory.judge(other, model, here)[0] == "fits", way
    assert tried


def test_the_example_inventory_fits_a_gpu_of_24_gb(memory: ModuleType) -> None:
    path = LIBEXEC.parents[1] / "ansible/inventories/example/group_vars/gpu_hosts.yml"
    variables = yaml.safe_load(path.read_text())
    [main] = variables["vllm_instances"]
    assert main["model"] == QWEN["model"]
    assert main["max_num_seqs"] >= variables["gateway_max_active"]
    for gib in (GEFORCE, L4):
        verdict, sentence = memory.judge(memory.engine_of(main), model_of(memory, QWEN), gpu(memory, gib))
        assert verdict == "fits", sentence
        # Each slot has room for a conversation, not for a line.
        need = memory.needs(memory.engine_of(main), model_of(memory, QWEN), gpu(memory, gib))
        room = (gib * GIB * main["gpu_memory_utilization"] - need.weights - need.beside) / need.token
        assert room / variables["gateway_max_active"] >= 1024


@pytest.mark.parametrize(
    ("settings", "capability", "compiled"),
    [
        ({"extra_args": ["--kv-cache-dtype", "fp8"]}, "8.9", "--kv-cache-dtype fp8"),
        ({"extra_args": ["--kv_cache_dtype=fp8_e4m3"]}, "12.0", "--kv-cache-dtype fp8_e4m3"),
        ({"extra_args": ["--kv-cache-dtype", "fp8"]}, "9.0", ""),
        ({"extra_args": ["--kv-cache-dtype", "bfloat16"]}, "8.9", ""),
        ({"extra_args": ["--kv-cache-dtype=fp8", "--attention-backend=TRITON_ATTN"]}, "8.9", ""),
        ({"extra_args": ["--kv-cache-dtype=fp8"], "environment": {"CUDA_HOME": "/opt/cuda"}}, "8.9", ""),
        ({}, "8.9", ""),
    ],
)
def test_an_fp8_cache_is_compiled_but_on_hopper(
    memory: ModuleType, settings: dict[str, object], capability: str, compiled: str
) -> None:
    here = memory.replace(gpu(memory, 24), capability=capability)
    assert memory.compiles(memory.engine_of(instance(**settings)), [here]) == compiled
    assert memory.compiles(memory.engine_of(instance(**settings)), []) == ""


def test_the_smallest_of_its_gpus_counts(memory: ModuleType) -> None:
    gpus = [gpu(memory, 80, index=0), gpu(memory, 24, index=1), gpu(memory, 48, index=2)]
    assert memory.smallest(memory.engine_of(instance(gpus=[0, 2])), gpus).index == "2"
    assert memory.smallest(memory.engine_of(instance(gpus=["GPU-1aaa0000"])), gpus).index == "1"
    with pytest.raises(memory.Unknown, match="no GPU 7"):
        memory.smallest(memory.engine_of(instance(gpus=[7])), gpus)
    with pytest.raises(memory.Unknown, match="no driver yet"):
        memory.smallest(memory.engine_of(instance()), [])
    with pytest.raises(memory.Unknown, match="does not say how much memory GPU 3"):
        memory.smallest(memory.engine_of(instance(gpus=[0, 3])), [*gpus, gpu(memory, 0, "NVIDIA GB10", index=3)])
    with pytest.raises(memory.Unknown, match="MIG"):
        memory.smallest(memory.engine_of(instance(gpus=["MIG-12345678"])), gpus)


def lay(directory: Path, *, index: bool = True) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(QWEN["config"]))
    if index:
        total = json.dumps({"metadata": {"total_size": QWEN["total_size"]}, "weight_map": {}})
        (directory / "model.safetensors.index.json").write_text(total)
    for name, size in (("model-1.safetensors", 600), ("model-2.safetensors", 400), ("consolidated.safetensors", 1000)):
        (directory / name).write_bytes(b"\0" * size)
    return directory


def test_a_directory_is_read(memory: ModuleType, tmp_path: Path) -> None:
    indexed, bare = lay(tmp_path / "indexed"), lay(tmp_path / "bare", index=False)
    read = memory.read_model
    assert read(memory.engine_of(instance(model=str(indexed))), "", tmp_path).weights_bytes == QWEN["total_size"]
    assert read(memory.engine_of(instance(model=str(bare))), "", tmp_path).weights_bytes == 1000
    with pytest.raises(memory.Unknown, match="cannot be read as a model"):
        read(memory.engine_of(instance(model="/nonexistent/model")), "", tmp_path)


def test_downloaded_model_is_read_offline(memory: ModuleType, tmp_path: Path) -> None:
    """A model that was downloaded before is read without the hub."""
    home = tmp_path / "models--Qwen--Qwen3-8B"
    lay(home / "snapshots/abc")
    (home / "refs").mkdir()
    (home / "refs/main").write_text("abc")
    engine = memory.engine_of(instance(environment={"HF_HUB_OFFLINE": "1"}))
    assert memory.read_model(engine, "", tmp_path).weights_bytes == QWEN["total_size"]
    with pytest.raises(memory.Unknown, match="HF_HUB_OFFLINE is set"):
        memory.read_model(engine, "", tmp_path / "elsewhere")


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as huggingface.co does: names moved, some files missing, sizes in the listing."""

    moved: str = ""
    heard: list[tuple[str, str | None]]
    files: dict[str, object]

    def do_GET(self) -> None:
        type(self).heard.append((self.path, self.headers.get("Authorization")))
        if self.path.startswith("/old/") and self.moved:
            self.send_response(307)
            self.send_header("Location", self.moved + self.path.removeprefix("/old"))
            self.end_headers()
            return
        if self.path not in self.files:
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(self.files[self.path]).encode())

    def log_message(self, *args: object) -> None:
        """Nothing into the tests' output."""


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    """Its address, and the handler's class with what it heard and what it has."""

    class Mine(Hub):
        heard: list[tuple[str, str | None]] = []  # noqa: RUF012 - one class for each test
        files: dict[str, object] = {}  # noqa: RUF012

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mine)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", Mine
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_hub_is_asked_for_config_and_index(memory: ModuleType, hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    address, it = hub
    it.files = {
        "/Qwen/Qwen3-8B/resolve/main/config.json": QWEN["config"],
        "/Qwen/Qwen3-8B/resolve/main/model.safetensors.index.json": {"metadata": {"total_size": QWEN["total_size"]}},
    }
    engine = memory.engine_of(instance(environment={"HF_ENDPOINT": address}))
    assert memory.read_model(engine, "hf_secret", tmp_path) == model_of(memory, QWEN)
    # Not over plain HTTP.
    assert {token for _, token in it.heard} == {None}


def test_a_model_in_one_file_is_measured_by_the_listing(
    memory: ModuleType, hub: tuple[str, type[Hub]], tmp_path: Path
) -> None:
    address, it = hub
    siblings = [{"rfilename": "model.safetensors", "size": 700}, {"rfilename": "pytorch_model.bin", "size": 900}]
    it.files = {
        "/a/b/resolve/v2/config.json": QWEN["config"],
        "/api/models/a/b/revision/v2?blobs=true": {"siblings": siblings},
    }
    settings = instance(model="a/b", extra_args=["--revision", "v2"], environment={"HF_ENDPOINT": address})
    assert memory.read_model(memory.engine_of(settings), "", tmp_path).weights_bytes == 700


def test_a_model_that_the_hub_lacks_is_said(memory: ModuleType, hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    engine = memory.engine_of(instance(environment={"HF_ENDPOINT": hub[0]}))
    with pytest.raises(memory.Unknown, match=r"has no config\.json for it"):
        memory.read_model(engine, "", tmp_path)


def test_a_hub_that_is_not_reached_is_said(memory: ModuleType, tmp_path: Path) -> None:
    engine = memory.engine_of(instance(environment={"HF_ENDPOINT": "http://127.0.0.1:9"}))
    with pytest.raises(memory.Unknown, match="was not reached from the host"):
        memory.read_model(engine, "", tmp_path)


def test_the_token_follows_no_redirect_to_another_host(memory: ModuleType, hub: tuple[str, type[Hub]]) -> None:
    address, it = hub
    it.files = {"/new": {"found": True}}
    asked = memory.Hub({"HF_ENDPOINT": address}, "")
    asked.headers["Authorization"] = "Bearer hf_secret"
    it.moved = ""
    it.files["/old/new"] = {"found": True}
    assert asked.get("old/new") == {"found": True}
    it.moved = address.replace("127.0.0.1", "localhost")
    assert asked.get("old/new") == {"found": True}
    it.moved = address
    assert asked.get("old/new") == {"found": True}
    assert it.heard == [
        ("/old/new", "Bearer hf_secret"),
        ("/old/new", "Bearer hf_secret"),
        ("/new", None),
        ("/old/new", "Bearer hf_secret"),
        ("/new", "Bearer hf_secret"),
    ]


def test_without_a_driver_it_answers_all_the_same(
    memory: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    request = {"instances": [instance(model=str(lay(tmp_path / "model")))], "token": "", "models": str(tmp_path)}
    monkeypatch.setattr(memory, "ask_driver", lambda: None)
    monkeypatch.setattr(memory, "NVCC", tmp_path / "nvcc")
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(request)))
    assert memory.main() == 0
    assert json.loads(capsys.readouterr().out) == {
        "driver": {},
        "toolkit": False,
        "instances": [
            {
                "name": "main",
                "verdict": "unknown",
                "sentence": (
                    f"Whether {tmp_path}/model fits the memory of its GPUs is not known: there is no driver yet to ask "
                    "for the memory of the GPUs."
                ),
                "compiles": "",
            }
        ],
    }


def test_the_whole_request_is_answered(
    memory: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The environment of all engines counts for each, and its own before it."""
    (tmp_path / "nvcc").touch()
    request = {
        "instances": [
            instance(name="one", model=str(lay(tmp_path / "model")), max_model_len=16384, max_num_seqs=16),
            instance(name="two", gpus=[1], environment={"HF_HUB_OFFLINE": "1"}),
            instance(name="three", gpus=[1]),
        ],
        "environment": {"HF_ENDPOINT": "http://127.0.0.1:9"},
        "token": "",
        "models": str(tmp_path),
    }
    gpus = [gpu(memory, 24), gpu(memory, 24, index=1)]
    monkeypatch.setattr(memory, "ask_driver", lambda: ("13.0", gpus))
    monkeypatch.setattr(memory, "NVCC", tmp_path / "nvcc")
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(request)))
    assert memory.main() == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["driver"]["cuda"], len(answer["driver"]["gpus"]), answer["toolkit"]) == ("13.0", 2, True)
    assert [it["verdict"] for it in answer["instances"]] == ["fits", "unknown", "unknown"]
    assert "HF_HUB_OFFLINE is set" in answer["instances"][1]["sentence"]
    assert "http://127.0.0.1:9 was not reached" in answer["instances"][2]["sentence"]


def test_it_runs_from_its_text_alone() -> None:
    """As the role calls it, by the host's own Python."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", (LIBEXEC / "vllm-memory").read_text()],
        input=json.dumps({"instances": []}),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout)["instances"] == []


def test_documented_sentence_is_the_programs(memory: ModuleType) -> None:
    """The documentation shows the program's own sentence about the example."""
    root = LIBEXEC.parents[1]
    [main] = yaml.safe_load((root / "ansible/inventories/example/group_vars/gpu_hosts.yml").read_text())[
        "vllm_instances"
    ]
    sentence = memory.judge(memory.engine_of(main), model_of(memory, QWEN), gpu(memory, GEFORCE))[1]
    assert sentence in " ".join((root / "docs/deploy.md").read_text().split())
