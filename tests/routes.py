"""docs/routes.md, read; and the routes and headers in vLLM's source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

_PAGE = Path(__file__).parent.parent / "docs" / "routes.md"
_ROUTE = re.compile(r"`([A-Z]+) (/[^`]*)`")

#: How FastAPI and Starlette declare a route: the method of a router, and what it stands for.
_DECLARATIONS = {
    **{name: name.upper() for name in ("get", "post", "put", "delete", "patch", "head", "options", "websocket")},
    "mount": "MOUNT",
    "Mount": "GET",  # /metrics, which is an application of its own
    "add_api_route": "",
    "api_route": "",
    "add_route": "",
    "route": "",
    "add_api_websocket_route": "WEBSOCKET",
}

#: How it looks for a header: at the place, or by a constant. Tracing's have a list of their own.
_HEADER = re.compile(r'''headers\.get\(\s*"([\w-]+)"|^\w*_HEADER\w* = "([\w-]+)"''', re.MULTILINE)

#: A route of vLLM's: its method ("WEBSOCKET", "MOUNT" where it has none) and its path.
Route = tuple[str, str]


def documented() -> dict[str, set[Route]]:
    """Section of docs/routes.md → the routes in the first column of its table."""
    sections: dict[str, set[Route]] = {}
    title = ""
    for line in _PAGE.read_text().splitlines():
        if line.startswith("## "):
            title = line[3:]
        elif line.startswith("| `"):
            sections.setdefault(title, set()).update(_ROUTE.findall(line.split("|")[1]))
    return sections


def documented_headers() -> dict[str, str]:
    """Header → when it is passed on to the engine."""
    rows = _PAGE.read_text().partition("\n## Headers\n")[2].partition("\n## ")[0].splitlines()
    cells = [row.split("|") for row in rows if row.startswith("| `")]
    return {name: cell[3].strip() for cell in cells for name in re.findall("`([^`]+)`", cell[1])}


def headers_read(folder: Path) -> set[str]:
    """The headers of requests that the Python files below `folder` look for, in lower case."""
    found = [name for path in folder.rglob("*.py") for name in _HEADER.findall(path.read_text())]
    return {name.lower() for names in found for name in names if name}


def declared(folder: Path) -> set[Route]:
    """The routes in the Python files below `folder`, whatever they depend on."""
    return {route for path in folder.rglob("*.py") for route in _in(ast.parse(path.read_bytes()))}


def _in(tree: ast.AST) -> Iterator[Route]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        first = node.args[0] if node.args else None
        if name not in _DECLARATIONS or not isinstance(first, ast.Constant) or not str(first.value).startswith("/"):
            continue
        methods = next((ast.literal_eval(word.value) for word in node.keywords if word.arg == "methods"), None)
        for method in methods or [_DECLARATIONS[name] or "GET"]:
            yield method, str(first.value)
