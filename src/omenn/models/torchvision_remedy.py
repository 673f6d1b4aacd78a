"""Lets ``import torchvision`` work if its compiled part cannot load.

NOTE [torchvision without its library]
The registry's torchvision wheel is built for CUDA. With a CPU-only torch its compiled part does
not load, and the import then fails with "operator torchvision::nms does not exist": its Python
part registers a meta kernel for two operators that were never declared. Declaring their schemas
is enough. Nothing is imitated: calling ``nms`` still raises torchvision's error.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")
_lock = threading.Lock()


def prepare() -> None:
    """Make the next ``import torchvision`` (or of a package that imports it) succeed.

    Does nothing if torchvision is missing, imported already, or loads without help. May be called
    often and from several threads.

    >>> prepare()
    >>> prepare()
    """
    with _lock:
        if "torchvision" in sys.modules:
            return
        found = importlib.util.find_spec("torchvision")
        if found is None or _compiled_part_loads(found.submodule_search_locations or []):
            return
        _declare()


def _compiled_part_loads(folders: list[str]) -> bool:
    import torch

    for folder in folders:
        for library in sorted(Path(folder).glob("_C*")):
            if library.suffix not in {".so", ".pyd", ".dylib"}:
                continue
            try:
                torch.ops.load_library(str(library))
            except OSError:
                continue
            return True
    return False


def _declare() -> None:
    import torch

    for operator in _OPERATORS:
        if not hasattr(torch.ops.torchvision, operator):
            torch.library.define(f"torchvision::{operator}", _SCHEMA)
