import json
import logging
import os
from collections.abc import Iterator

import pytest

from sluicegate.observe.foreign import describe, foreign_loggers
from sluicegate.observe.logs import Log


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def said(reader: int) -> list[dict[str, object]]:
    return [json.loads(line) for line in os.read(reader, 1 << 16).splitlines()]


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_libraries_log_through_ours(pipe: tuple[int, int]) -> None:
    """Libraries log through the gateway's log, warnings and errors only."""
    log = Log("json", "debug", pipe[1])
    with foreign_loggers(log):
        for name in ("hypercorn.error", "quart.app", "httpx2", "trio.serve_listeners"):
            logging.getLogger(name).info("not this")
            logging.getLogger(name).warning("this, %s", name)
        logging.getLogger("hypercorn.error").critical("and this")
    lines = said(pipe[0])
    assert [(line["level"], line["event"], line["logger"], line["detail"]) for line in lines] == [
        ("warning", "library", "hypercorn.error", "this, hypercorn.error"),
        ("warning", "library", "quart.app", "this, quart.app"),
        ("warning", "library", "httpx2", "this, httpx2"),
        ("warning", "library", "trio.serve_listeners", "this, trio.serve_listeners"),
        ("error", "library", "hypercorn.error", "and this"),
    ]
    log.close()


def test_lower_levels_keep_theirs_if_asked_for(pipe: tuple[int, int]) -> None:
    log = Log("json", "debug", pipe[1])
    with foreign_loggers(log, logging.DEBUG):
        logging.getLogger("httpx2").debug("d")
        logging.getLogger("httpx2").info("i")
    assert [line["level"] for line in said(pipe[0])] == ["debug", "info"]
    log.close()


def test_an_exception_is_named_without_its_message(pipe: tuple[int, int]) -> None:
    log = Log("json", "info", pipe[1])
    with foreign_loggers(log):
        try:
            raise ValueError("a prompt")
        except ValueError:
            logging.getLogger("hypercorn.error").exception("Error in ASGI Framework")
    [line] = said(pipe[0])
    assert "a prompt" not in str(line)
    assert str(line["error"]).startswith("ValueError at observe/test_foreign.py:")
    log.close()


def test_badly_formatted_record_is_logged(pipe: tuple[int, int]) -> None:
    """A record whose arguments do not fit its format is logged unformatted."""
    log = Log("json", "info", pipe[1])
    with foreign_loggers(log):
        logging.getLogger("quart.app").error("%d of %d", "one")  # noqa: PLE1206
    assert said(pipe[0])[0]["detail"] == "%d of %d"
    log.close()


def test_the_root_logger_is_given_back(pipe: tuple[int, int]) -> None:
    root = logging.getLogger()
    before = list(root.handlers), root.level
    log = Log("json", "info", pipe[1])
    with pytest.raises(ZeroDivisionError), foreign_loggers(log, logging.DEBUG):
        raise ZeroDivisionError
    assert (list(root.handlers), root.level) == before
    log.close()


def test_describe_an_exception_never_raised() -> None:
    assert describe(KeyError("secret")) == "KeyError"


def test_describe_names_the_innermost_frames_first() -> None:
    def outer(depth: int) -> None:
        if depth:
            outer(depth - 1)
        raise OSError("secret")

    try:
        outer(10)
    except OSError as error:
        text = describe(error)
    assert text.count(" < ") == 3
    assert text.startswith("OSError at observe/test_foreign.py:")
    assert text.endswith(" outer")


def test_describe_names_the_leaves_of_a_group() -> None:
    group = ExceptionGroup("secret", [KeyError("a"), ExceptionGroup("b", [raised(OSError("c")), ValueError("d")])])
    text = describe(group)
    assert text.startswith("KeyError; OSError at observe/test_foreign.py:")
    assert text.endswith("; ValueError")
    assert "secret" not in text
    many = ExceptionGroup("secret", [KeyError(number) for number in range(5)])
    assert describe(many) == "KeyError; KeyError; KeyError; 2 more"
