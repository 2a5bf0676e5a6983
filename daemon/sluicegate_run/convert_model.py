"""Run by the CPU engine's own Python: a GGUF file into a directory that vLLM loads.

    python convert_model.py MODEL.gguf DIRECTORY

vLLM itself reads GGUF only with a plugin; transformers reads it into full precision. A fresh model of the same
configuration takes the weights over, for the loaded one still says that it is quantized. The tokenizer and its chat
template come out of the same file.
"""

import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> None:
    source, target = Path(argv[0]), argv[1]
    # Here, for only the engine's environment has them.
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


if __name__ == "__main__":
    main(sys.argv[1:])
