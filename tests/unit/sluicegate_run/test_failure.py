from pathlib import Path

import pytest

from sluicegate_run.failure import how_it_ended, last_words


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "exit status 0"),
        (1, "exit status 1"),
        (None, "exit status None"),
        (128 + 15, "SIGTERM"),
        (128 + 11, "SIGSEGV"),
        (128 + 9, "SIGKILL, perhaps for lack of memory"),
    ],
)
def test_an_exit_status_in_words(status: int | None, words: str) -> None:
    assert how_it_ended(status) == words


# Lines of vLLM 0.32 and of argparse.
CORE = "(EngineCore pid=7) ERROR 11-22 16:47:42 [core.py:402] "
SERVER = "(APIServer pid=6) ERROR 11-22 16:47:43 [async_llm.py:906] "


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", ""),
        ("\n \n", ""),
        ("INFO:     Started server process [7134]\n\n", "INFO:     Started server process [7134]"),
        (
            f"{CORE}Traceback (most recent call last):\n{CORE}\n{CORE}ValueError: no memory\nbye\n",
            "ValueError: no memory",
        ),
        ("main.py: error: unrecognized arguments: --no\n", "main.py: error: unrecognized arguments: --no"),
        (
            f"{CORE}torch.OutOfMemoryError: 2 GiB\nRuntimeError: Engine core initialization failed. See above.\n",
            "torch.OutOfMemoryError: 2 GiB",
        ),
        (
            f"set ulimit -n, see `OSError: [Errno 24]`\n{SERVER}vllm.v1.EngineDeadError: see above\nINFO: bye\n",
            "vllm.v1.EngineDeadError: see above",
        ),
        (
            "pydantic.ValidationError: 1 validation error for ModelConfig\n  Value error, too long [type=x]\n  For",
            "pydantic.ValidationError: 1 validation error for ModelConfig Value error, too long [type=x]",
        ),
    ],
)
def test_the_last_words_of_a_program(tmp_path: Path, log: str, words: str) -> None:
    path = tmp_path / "log"
    path.write_text(log)
    assert last_words(path) == words


def test_reads_only_the_end_of_a_long_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("ValueError: long ago\n" + "INFO: fine\n" * 20_000 + "x" * 1000)
    assert last_words(path) == "x" * 300
