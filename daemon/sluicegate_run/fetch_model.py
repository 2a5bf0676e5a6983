"""Run by the engine's own Python: a model of the hub into a directory.

    python fetch_model.py REPOSITORY DIRECTORY

Prints `Total BYTES` before it begins; ends with one line on why, and status 1, when the hub will not have it.
"""

import sys
from collections.abc import Sequence

# Weights in formats that vLLM does not load, and the same weights again.
USELESS = ("*.bin", "*.pt", "*.pth", "*.onnx", "*.gguf", "*.h5", "*.msgpack", "original/*", "onnx/*")


def main(argv: Sequence[str]) -> int:
    repository, target = argv
    # Here, for only the engine's environment has it.
    from fnmatch import fnmatch

    from huggingface_hub import HfApi, snapshot_download  # type: ignore[import-not-found]

    try:
        files = HfApi().model_info(repository, files_metadata=True).siblings or []
        wanted = [file for file in files if not any(fnmatch(file.rfilename, pattern) for pattern in USELESS)]
        print("Total", sum(file.size or 0 for file in wanted), flush=True)
        snapshot_download(repository, local_dir=target, ignore_patterns=list(USELESS))
    except Exception as error:  # whatever the hub's client raises, a person wants its first line
        print(f"{type(error).__name__}: {error}".splitlines()[0], flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
