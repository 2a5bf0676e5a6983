"""The program that the engine's own Python runs, with stand-ins for the libraries that only that Python has."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sluicegate_run import make_model


def install(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(contents)
    monkeypatch.setitem(sys.modules, name, module)


class Model:
    """As much of a transformers model as a conversion touches."""

    def __init__(self, config: SimpleNamespace) -> None:
        self.config = config
        self.dtype = "float32"
        self.weights: dict[str, int] = {}

    def to(self, dtype: str) -> "Model":
        self.dtype = dtype
        return self

    def state_dict(self) -> dict[str, int]:
        return {"layer": 7}

    def load_state_dict(self, weights: dict[str, int]) -> None:
        self.weights = weights

    def save_pretrained(self, target: str) -> None:
        (Path(target) / "model").write_text(f"{self.dtype} {self.config} {self.weights}")


@pytest.mark.parametrize("config", [{"quantization_config": "gguf", "layers": 30}, {"layers": 30}])
def test_converts_the_weights_and_the_tokenizer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: dict[str, Any]
) -> None:
    read: list[dict[str, str]] = []

    def load(**where: str) -> Model:
        read.append(where)
        return Model(SimpleNamespace(**config))

    def tokenizer(**where: str) -> Any:
        read.append(where)
        return SimpleNamespace(save_pretrained=lambda target: (Path(target) / "tokenizer").touch())

    install(monkeypatch, "torch", bfloat16="bfloat16")
    install(
        monkeypatch,
        "transformers",
        AutoModelForCausalLM=SimpleNamespace(from_pretrained=load),
        AutoTokenizer=SimpleNamespace(from_pretrained=tokenizer),
        LlamaForCausalLM=Model,
    )
    assert make_model.main(["/wheel/model.gguf", str(tmp_path)]) == 0
    assert read == [{"pretrained_model_name_or_path": "/wheel", "gguf_file": "model.gguf"}] * 2
    assert (tmp_path / "model").read_text() == "bfloat16 namespace(layers=30, dtype='bfloat16') {'layer': 7}"
    assert (tmp_path / "tokenizer").exists()


def hub(monkeypatch: pytest.MonkeyPatch, siblings: list[Any] | None, snapshot: Any) -> None:
    api = SimpleNamespace(model_info=lambda _, **__: SimpleNamespace(siblings=siblings))
    install(monkeypatch, "huggingface_hub", HfApi=lambda: api, snapshot_download=snapshot)


def test_fetches_what_vllm_loads_and_tells_its_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "config.json": 3,
        "model.safetensors": 1000,
        "pytorch_model.bin": 999,
        "onnx/model.onnx": 5,
        "README": None,
    }
    siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in files.items()]
    fetched: list[tuple[str, str]] = []

    def snapshot(repository: str, *, local_dir: str, ignore_patterns: list[str]) -> None:
        assert "*.bin" in ignore_patterns
        fetched.append((repository, local_dir))

    hub(monkeypatch, siblings, snapshot)
    assert make_model.main(["org/model", "/target"]) == 0
    assert fetched == [("org/model", "/target")]
    assert capsys.readouterr().out == "Total 1003\n"


def test_a_model_that_cannot_be_fetched_gives_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def snapshot(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nand a second line")

    hub(monkeypatch, None, snapshot)
    assert make_model.main(["org/model", "/target"]) == 1
    assert capsys.readouterr().out == "Total 0\nConnectionError: no route\n"
