"""Run by the engine's own Python: makes a directory that vLLM loads out of a model.

    python make_model.py MODEL.gguf DIRECTORY    convert this file
    python make_model.py REPOSITORY DIRECTORY    download from the hub

The modules that it needs are in the engine's environment only, so they are imported where they are used.
"""

import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

# Weights in formats that vLLM does not load, and the same weights again.
USELESS = ("*.bin", "*.pt", "*.pth", "*.onnx", "*.gguf", "*.h5", "*.msgpack", "original/*", "onnx/*")


def main(argv: Sequence[str]) -> int:
    """Make it; the exit status. What failed is on the last line of the output."""
    source, target = argv
    if not source.endswith(".gguf"):
        return _download(source, target)
    _convert(Path(source), target)
    return 0


def _convert(source: Path, target: str) -> None:
    """vLLM itself reads GGUF only with a plugin; transformers reads it into full precision.

    The loaded model still says that it is quantized, so a new one of the same configuration takes its weights. The
    tokenizer and its chat template are in the same file.
    """
    import torch  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # type: ignore[import-not-found]

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    loaded = AutoModelForCausalLM.from_pretrained(**where)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(**where).save_pretrained(target)


def _download(repository: str, target: str) -> int:
    """Prints `Total BYTES` before it begins; one line with the reason, and status 1, if the hub refuses."""
    from huggingface_hub import HfApi, snapshot_download  # type: ignore[import-not-found]

    try:
        files = HfApi().model_info(repository, files_metadata=True).siblings or []
        wanted = [file for file in files if not any(fnmatch(file.rfilename, pattern) for pattern in USELESS)]
        print("Total", sum(file.size or 0 for file in wanted), flush=True)
        snapshot_download(repository, local_dir=target, ignore_patterns=list(USELESS))
    except Exception as error:  # the hub's client raises many types; a person wants the first line
        print(f"{type(error).__name__}: {error}".splitlines()[0], flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
