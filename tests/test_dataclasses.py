"""A dataclass of tensors has no generated equality: a comparison of tensors is no truth value."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from typing import Any

import omenn

TENSORS = re.compile(r"\b(Tensor|ndarray)\b")


def classes() -> set[Any]:
    found: set[Any] = set()
    for module in pkgutil.walk_packages(omenn.__path__, "omenn."):
        if not module.name.endswith("__main__"):
            home = importlib.import_module(module.name)
            found |= {c for c in vars(home).values() if inspect.isclass(c)}
    return {c for c in found if dataclasses.is_dataclass(c) and c.__module__.startswith("omenn.")}


def holds_tensors(kind: Any) -> bool:
    types = [str(field.type) for field in dataclasses.fields(kind)]
    return any(TENSORS.search(text) for text in types if "Callable" not in text)


def test_dataclasses_of_tensors_have_no_generated_equality() -> None:
    holding = {kind for kind in classes() if holds_tensors(kind)}
    assert len(holding) > 20
    made = [kind for kind in holding if kind.__dataclass_params__.eq]
    assert made == []
