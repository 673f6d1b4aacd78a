"""Every module can be imported first: no circle among imports at module level."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"


def named(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {named(path): path for path in SOURCE.rglob("*.py")}


def at_module_level(body: list[ast.stmt]) -> Iterator[str]:
    """What is imported when a module is: not in functions, nor for the type checker alone."""
    for node in body:
        if isinstance(node, ast.If):
            typing = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            yield from at_module_level([*([] if typing else node.body), *node.orelse])
        elif isinstance(node, ast.Try):
            parts = [node.body, node.orelse, node.finalbody, *(h.body for h in node.handlers)]
            yield from at_module_level([inner for part in parts for inner in part])
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{name.name}" for name in node.names]
            yield from (name if name in MODULES else node.module for name in names)


def needs(module: str) -> set[str]:
    """The modules that are imported before this one is done: with a module its packages."""
    found = set()
    for name in at_module_level(ast.parse(MODULES[module].read_text()).body):
        parts = name.split(".")
        found |= {".".join(parts[:k]) for k in range(1, len(parts) + 1)}
    around = {p for p in found if module.startswith(f"{p}.")}  # packages of its own, begun before
    return (found & MODULES.keys()) - around - {module}


def test_no_circle_among_imports() -> None:
    order = list(TopologicalSorter({module: needs(module) for module in MODULES}).static_order())
    place = {module: k for k, module in enumerate(order)}
    assert place["omenn.engine.trace.marks"] < place["omenn.engine.location.constants"]
    assert place["omenn.engine.location.constants"] < place["omenn.engine.operators.table"]
    assert place["omenn.engine.operators.table"] < place["omenn.engine.trace.tracer"]
    assert place["omenn.engine.trace.tracer"] < place["omenn.engine.run"]
