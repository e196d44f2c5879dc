"""Style as an ordinary test: nobody argues about it in review."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "engram_bus").rglob("*.py"), *(ROOT / "clients/python/engram_client").rglob("*.py")])
LINES_MAX = 75
"""Of one function, its docstring aside. A direction rather than a wall: lower it when the longest has gone."""
LEFTOVERS = re.compile(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_opens_with_one_true_sentence(path: Path) -> None:
    text = path.read_text()
    first = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    assert first, "no docstring"
    assert first[0].isupper() or first.startswith(("`", "uvicorn")), first
    assert LEFTOVERS.search(text) is None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_is_long(path: Path) -> None:
    for function in _functions(path):
        assert _lines(function) <= LINES_MAX, f"{function.name} at line {function.lineno}"


def test_every_package_is_found_by_its_wheel() -> None:
    for folder in {path.parent for path in SOURCES}:
        assert (folder / "__init__.py").exists(), folder


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0
