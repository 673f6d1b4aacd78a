"""Whatever is given to a public function, it answers or raises an error of its own tree."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import omenn
from omenn import viz, xdnn

warnings.filterwarnings("ignore", message=".*sparse.*")


class Odd:
    """An object whose text is an error."""

    def __repr__(self) -> str:
        raise RuntimeError("odd")


def _fails(*args: Any, **options: Any) -> Any:
    raise ZeroDivisionError


WRONG: dict[str, Any] = {
    "None": None,
    "whole": 5,
    "negative": -1,
    "float": 1.5,
    "bool": True,
    "text": "zz",
    "empty text": "",
    "bytes": b"x",
    "empty list": [],
    "list": [1],
    "list of text": ["0"],
    "tuple": ("a",),
    "dict": {"a": 1},
    "set": set(),
    "object": object(),
    "odd": Odd(),
    "huge": 10**30,
    "nan": float("nan"),
    "range": range(2),
    "slice": slice(None),
    "class": nn.Linear,
    "nothing": lambda *args, **options: None,
    "failing": _fails,
    "number": torch.tensor(1),
    "numbers": torch.tensor([1.5, 2]),
    "no numbers": torch.zeros(0),
    "float8": torch.zeros(2, 3, 4, 4, dtype=torch.float8_e4m3fn),
    "uint16": torch.zeros(2, 3, 4, 4, dtype=torch.uint16),
    "complex": torch.zeros(2, 3, 4, 4, dtype=torch.complex64),
    "meta": torch.zeros(2, 3, 4, 4, device="meta"),
    "sparse": torch.zeros(2, 3, 4, 4).to_sparse(),
    "other shape": torch.zeros(2, 5),
    "uninitialised": nn.parameter.UninitializedParameter(),
    "auto": "auto",
}

X = torch.randn(2, 3, 4, 4)
NET = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4)).eval()


def frozen(x: Any = None, **options: Any) -> None:
    with omenn.frozen(X.clone().requires_grad_() if x is None else x, **options):
        pass


def rules(table: Any) -> None:
    with omenn.rules(table):
        pass


def rule(func: Any = "zz", kind: Any = "linear", **options: Any) -> None:
    with omenn.rules():
        omenn.rule(func, kind, **options)


def contrast(a: Any = 0, b: Any = 1) -> None:
    omenn.explain(NET, X, omenn.Contrast(a, b))


def at_depths(at: Any = ("input", "0"), mix: Any = None) -> None:
    omenn.explain(NET, X, 0, at=at, mix=mix)


def of_result(name: str) -> Callable[..., Any]:
    return lambda **given: getattr(omenn.explain(NET, X, 0), name)(**given)


def of_operator(name: str) -> Callable[..., Any]:
    return lambda given: getattr(omenn.operator(NET, X), name)(given)


def svd(k: Any = 1, **options: Any) -> None:
    omenn.operator(NET, X).svd(k, **options)


def dense(limit: Any) -> None:
    omenn.operator(NET, X).to_dense(limit=limit)


BASE = {"model": NET, "inputs": X}
CORE = tuple(omenn.methods()["omenn"].options)
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any], tuple[str, ...]]] = {
    "explain": (omenn.explain, BASE, ("model", "inputs", "target", "method", *CORE)),
    "rows": (omenn.rows, BASE | {"targets": [0]}, ()),
    "operator": (omenn.operator, BASE, ()),
    "certify": (omenn.certify, BASE, ()),
    "tune": (omenn.tune, {"model": NET, "images": X}, ()),
    "frozen": (frozen, {}, ("x", "model", "products", "create_graph")),
    "rules": (rules, {}, ("table",)),
    "rule": (rule, {}, ("func", "kind")),
    "Contrast": (contrast, {}, ("a", "b")),
    "depths": (at_depths, {}, ("at", "mix")),
    "heatmap": (of_result("heatmap"), {}, ("index", "smooth", "scale", "grid", "input")),
    "save": (of_result("save"), {}, ("path",)),
    "processed": (lambda step: omenn.explain(NET, X, 0).processed(step), {}, ("step",)),
    "load": (omenn.Explanation.load, {}, ("path",)),
    "svd": (svd, {}, ("k", "tolerance", "rounds")),
    "to_dense": (dense, {}, ("limit",)),
    "show.heatmap": (viz.heatmap, {}, ("explanation",)),
    "show.plot": (viz.plot, {"explanation": omenn.explain(NET, X, 0)}, ("index", "smooth")),
    "xdnn.convert": (xdnn.convert, {"model": NET}, ()),
    "xdnn.check": (xdnn.check, BASE, ()),
    "xdnn.obstacles": (xdnn.obstacles, {"model": NET}, ()),
}
for _name in ("matvec", "rmatvec", "matmat", "rmatmat", "rows", "columns", "__matmul__"):
    CALLS[f"operator.{_name}"] = (of_operator(_name), {}, ("given",))

ALL = [
    (name, argument)
    for name, (call, _, arguments) in CALLS.items()
    for argument in arguments or inspect.signature(call).parameters
]


@pytest.mark.parametrize(("name", "argument"), ALL, ids=lambda v: v)
def test_wrong_types(name: str, argument: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    call, base, _ = CALLS[name]
    foreign = {}
    for label, value in WRONG.items():
        try:
            call(**{**base, argument: value})
        except omenn.OmennError:
            pass
        except Exception as error:
            foreign[label] = f"{type(error).__name__}: {error}"
    assert not foreign
