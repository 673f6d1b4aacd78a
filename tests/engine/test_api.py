"""The public surface, what importing costs, and the direction of imports."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import omenn

SOURCE = Path(omenn.__file__).parent

NAMES = {
    "Calibration", "Certificate", "Contrast", "Explanation", "InputError", "MissingExtra",
    "ModelError",
    "OmennError", "Operator", "OutputError", "Rows", "TargetError", "UnsupportedOperator",
    "Tuned", "WeightsError", "__version__", "calibrate", "certify", "explain", "frozen", "method",
    "methods", "operator", "rows", "rule", "rules", "tune",
}  # fmt: skip


def test_public_names() -> None:
    assert set(omenn.__all__) == NAMES
    assert len(omenn.__all__) == len(NAMES)
    for name in NAMES:
        assert getattr(omenn, name) is not None
    assert set(dir(omenn)) >= NAMES


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'omenn' has no attribute 'explane'"):
        omenn.explane  # noqa: B018


@pytest.mark.parametrize("name", sorted(NAMES - {"__version__"}))
def test_public_names_are_documented(name: str) -> None:
    text = inspect.getdoc(getattr(omenn, name))
    assert text
    assert text.splitlines()[0].rstrip().endswith((".", "…", ":"))


@pytest.mark.parametrize(
    "name", ["explain", "certify", "frozen", "operator", "rows", "rule", "method"]
)
def test_public_functions_are_typed_and_have_an_example(name: str) -> None:
    function = getattr(omenn, name)
    function = inspect.unwrap(function)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter
    assert ">>> " in (function.__doc__ or "")
    assert "assert" in (function.__doc__ or "")


def test_options_of_explain_are_named_only() -> None:
    parameters = inspect.signature(omenn.explain).parameters
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["model", "inputs", "target"]
    named = {p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert named == {"method"}
    options = set(omenn.methods()["omenn"].options)
    assert {"at", "bias", "output", "products", "channel_dim", "create_graph"} <= options


def test_methods_is_the_function_whatever_was_imported_first() -> None:
    code = (
        "import os, torch\n"  # once: each child goes on with an import of omenn of its own
        "for first in ('import omenn', 'from omenn.attribution import method',\n"
        "              'import omenn.attribution.lrp'):\n"
        "    if os.fork() == 0:\n"
        "        exec(first)\n"
        "        import omenn\n"
        "        print(*omenn.methods(), omenn.attribution.__name__, flush=True)\n"
        "        os._exit(0)\n"
        "    assert os.wait()[1] == 0, first\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    answers = [line.split() for line in done.stdout.splitlines()]
    assert len(answers) == 3, done.stderr
    for *methods, package in answers:
        assert package == "omenn.attribution"
        assert {"omenn", "abslrp", "cp-lrp"} <= set(methods)


def test_fields_of_an_explanation() -> None:
    fields = set(inspect.signature(omenn.Explanation).parameters)
    assert {
        "output", "target", "weight", "contribution", "bias", "matrix", "residual", "sources",
        "located", "inputs",
    } <= fields  # fmt: skip
    for name in ("exact", "heatmap", "plot", "save", "load"):
        assert hasattr(omenn.Explanation, name)


def test_error_tree() -> None:
    errors = {n for n in NAMES if n.endswith("Error")} | {"UnsupportedOperator", "MissingExtra"}
    for name in errors:
        assert issubclass(getattr(omenn, name), omenn.OmennError)
    drawn = omenn.errors.__doc__ or ""
    assert all(name in drawn for name in errors)


def printed_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


HEAVY = {
    "matplotlib", "torchvision", "timm", "transformers", "captum", "PIL", "rich", "typer",
    "safetensors", "torch_geometric", "pandas", "scipy", "sklearn", "jinja2", "fastapi", "ray",
}  # fmt: skip


def test_importing_the_package_loads_nothing() -> None:
    loaded = printed_by("import sys, omenn\nprint(*{m.split('.')[0] for m in sys.modules})")
    assert not loaded & (HEAVY | {"torch", "numpy"})


def test_explaining_loads_torch_alone() -> None:
    code = (
        "import sys, torch\n"
        "x = torch.ones(1, 2, requires_grad=True)\n"
        "y = torch.nn.Linear(2, 2)(x)\ntorch.autograd.grad(y, x, torch.ones_like(y))\n"
        "before = set(sys.modules)\nimport omenn\n"
        "omenn.certify(torch.nn.Linear(2, 2).eval(), torch.ones(1, 2))\n"
        "print(*{m.split('.')[0] for m in set(sys.modules) - before})"
    )
    assert printed_by(code) - set(sys.stdlib_module_names) == {"omenn"}


# --- the direction of imports ----------------------------------------------------------------

# errors ← files ← {check, filters} ← explanation ← engine ← attribution ← xdnn ← viz ← modalities ←
# models ← metrics ← bench ← cli; data is a source beside the engine. Models are trained and
# converted with xdnn.
LEVELS = {
    "errors": 0, "discovery": 0, "files": 0.1, "progress": 0.2, "check": 0.3, "filters": 0.3,
    "explanation": 0.4, "engine": 1, "data": 1, "attribution": 2, "xdnn": 3,
    "viz": 4, "modalities": 4.1, "models": 4.2, "metrics": 5, "bench": 6,
    "calibration": 6.1, "tuning": 6.2,
    "cli": 7, "__main__": 9,
}  # fmt: skip
# Convenience methods of a result reach for pictures, when they are called.
UPWARD = {
    ("explanation.py", "viz"),
    ("explanation.py", "engine"),
}


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            if node.module == "omenn":
                yield from (f"omenn.{alias.name}" for alias in node.names)


def sources() -> list[Path]:
    return sorted(p for p in SOURCE.rglob("*.py") if p.parent != SOURCE or p.name != "__init__.py")


def engine() -> list[Path]:
    return [path for path in sources() if part(path) == "engine"]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def part(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_imports_point_one_way() -> None:
    for path in sources():
        own, name = part(path), str(path.relative_to(SOURCE))
        assert own in LEVELS, f"{own} has no level: say here what it may import"
        for module in imports(tree(path)):
            if not module.startswith("omenn."):
                continue
            other = module.split(".")[1]
            if other in omenn.__all__:
                other = "engine"
            if other == own or (name, other) in UPWARD:
                continue
            assert LEVELS[other] < LEVELS[own], f"{name} imports {module}"


def test_pictures_are_known_in_few_rooms() -> None:
    """Of what lies below the protocols; those of the literature are about pictures."""
    rooms = {
        part(path)
        for path in sources()
        if any(module.split(".")[0] == "PIL" for module in imports(tree(path)))
    }
    assert rooms <= {"data", "modalities", "viz", "metrics", "bench"}


def test_engine_needs_torch_and_the_standard_library() -> None:
    found = {module.split(".")[0] for path in engine() for module in imports(tree(path))}
    assert found - sys.stdlib_module_names <= {"torch", "omenn"}


def test_no_drawers() -> None:
    drawers = {"utils.py", "common.py", "helpers.py", "misc.py"}
    assert not {p.name for p in sources()} & drawers


def test_files_and_functions_stay_small() -> None:
    for path in engine():
        assert len(path.read_text().splitlines()) <= 400, path
        for node in ast.walk(tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                doc = ast.get_docstring(node, clean=False) or ""
                lines = (node.end_lineno or 0) - node.lineno + 1 - len(doc.splitlines())
                assert lines <= 50, f"{path}: {node.name} has {lines} lines"
