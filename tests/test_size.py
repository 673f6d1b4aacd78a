"""The size of what a reader must hold in mind: functions, and files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[1]
FUNCTION, METHOD, FILE, MEDIAN = 50, 25, 400, 8
REGISTERED = {"method", "attribution", "lrp", "captum"}  # decorators of omenn.attribution

pytestmark = pytest.mark.parametrize("home", ["src", "experiments"])


def files(home: str) -> Iterator[tuple[str, str]]:
    """(path, text) of every Python file."""
    for path in sorted((ROOT / home).rglob("*.py")):
        yield str(path.relative_to(ROOT)), path.read_text("utf-8")


def functions(home: str, decorated: bool = False) -> list[tuple[str, int]]:
    """(name, lines) of every function and method, or of those that are registered as methods."""
    return [
        (f"{path}:{node.lineno} {node.name}", length(node))
        for path, text in files(home)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if not decorated or any(name_of(d) in REGISTERED for d in node.decorator_list)
    ]


def name_of(decorator: ast.expr) -> str:
    """The name of a decorator that is called."""
    called = decorator.func if isinstance(decorator, ast.Call) else None
    return called.id if isinstance(called, ast.Name) else ""


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its decorators and its docstring."""
    first = function.body[0]
    docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(function) else 0
    return function.end_lineno - function.lineno + 1 - docstring


def test_no_function_is_long(home: str) -> None:
    assert [found for found in functions(home) if found[1] > FUNCTION] == []


def test_no_method_of_attribution_is_long(home: str) -> None:
    found = functions(home, decorated=True)
    assert (len(found) >= 20) == (home == "src")
    assert [method for method in found if method[1] > METHOD] == []


def test_the_median_function_is_short(home: str) -> None:
    assert median(lines for _, lines in functions(home)) <= MEDIAN


def test_no_file_is_long(home: str) -> None:
    assert [path for path, text in files(home) if len(text.splitlines()) > FILE] == []
