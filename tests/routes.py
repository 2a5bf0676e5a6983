"""docs/routes.md, read; and the routes that vLLM's source declares."""

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
