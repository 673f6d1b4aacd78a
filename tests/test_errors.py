"""Errors carry what they are about as fields, through copies and pickles."""

from __future__ import annotations

import ast
import copy
import math
import pickle
from pathlib import Path

import pytest

from omenn import check, errors

FIELDS = "argument got expected operator module remedy package extra".split()


def fields(error: errors.OmennError) -> dict[str, str]:
    return {n: value for n in FIELDS if (value := getattr(error, n))}


@pytest.mark.parametrize(
    ("run", "argument", "got", "expected"),
    [
        (lambda: check.choose("bias", 3, ("own", "none")), "bias", "3", "own, none"),
        (lambda: check.flag("fold", 1), "fold", "1", "True or False"),
        (lambda: check.whole("n", True), "n", "True", "an integer"),
        (lambda: check.whole("n", 0, 1), "n", "0", "an integer of at least 1"),
        (lambda: check.real("p", math.nan), "p", "nan", "a finite number"),
        (lambda: check.real("p", 2, 0, 1), "p", "2", "a finite number from 0 to 1"),
        (lambda: check.path("out", 3.5), "out", "3.5", "the path of a file"),
    ],
)
def test_a_wrong_argument(run, argument: str, got: str, expected: str) -> None:
    with pytest.raises(errors.InputError) as caught:
        run()
    found = fields(caught.value)
    found.pop("remedy", None)
    assert found == {"argument": argument, "got": got, "expected": expected}
    assert argument in str(caught.value)
    assert got in str(caught.value)


def test_an_operator() -> None:
    error = errors.UnsupportedOperator("sort", "net.0", "it is odd", "Leave it out.")
    assert fields(error) == {"operator": "sort", "module": "net.0", "remedy": "Leave it out."}
    assert error.why == "it is odd"
    assert str(error) == "operator 'sort' in module 'net.0': it is odd. Leave it out."


def test_a_missing_package() -> None:
    error = errors.MissingExtra("timm", "models", "the model")
    remedy = "Run: pip install 'omenn[models]'"
    assert fields(error) == {"package": "timm", "extra": "models", "remedy": remedy}
    assert str(error).endswith(f"is not installed. {remedy}")


@pytest.mark.parametrize(
    "error",
    [
        *(
            kind("It is odd.", argument="n", got="3", expected="4", remedy="Give 4.")
            for kind in (
                errors.OmennError,
                errors.InputError,
                errors.TargetError,
                errors.ModelError,
                errors.WeightsError,
                errors.OutputError,
            )
        ),
        errors.UnsupportedOperator("sort", "", "it is odd", "Leave it out."),
        errors.MissingExtra("timm", "models", "the model"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_copies_are_equal(error: errors.OmennError) -> None:
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)
        assert fields(twin) == fields(error) != {}


# Folders whose errors all name what they are about, and the errors that take fields by name.
NAMED = ("attribution", "files", "modalities", "models", "viz", "xdnn")
BY_NAME = {"OmennError", "InputError", "TargetError", "ModelError", "WeightsError", "OutputError"}


@pytest.mark.parametrize("home", NAMED)
def test_errors_name_what_they_are_about(home: str) -> None:
    plain = [
        f"{path.name}:{node.lineno}"
        for path in sorted((Path(errors.__file__).parent / home).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and not node.keywords
        if isinstance(node.func, ast.Name) and node.func.id in BY_NAME
    ]
    assert plain == []
