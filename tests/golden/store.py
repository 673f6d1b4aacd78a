"""Records in a file, and how two records differ.

A file of NumPy's holds two arrays for each part: all numbers one behind another in double
precision, and the index in JSON: which of them are whose, and every fact. Records without tensors
are a file of JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from golden.flat import Record


class Near(NamedTuple):
    """How far numbers may be apart: in terms of the largest of their tensor, and at all."""

    relative: float = 1e-9
    absolute: float = 0.0

    def holds(self, a: Tensor | float, b: Tensor | float) -> bool:
        """Whether all numbers agree; what is not finite must be the same."""
        x, y = (torch.as_tensor(v, dtype=torch.float64) for v in (a, b))
        finite = x[torch.isfinite(x)].abs()
        most = self.absolute + self.relative * (float(finite.max()) if len(finite) else 0.0)
        return torch.allclose(x, y, rtol=0.0, atol=most, equal_nan=True)


class Difference(NamedTuple):
    """One entry that is not what it was, to the bit; ``kept`` if the numbers agree."""

    name: str
    words: str
    kept: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.words}"


def write(path: Path, parts: Mapping[str, Record]) -> None:
    if path.suffix == ".json":
        text = json.dumps(parts, indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
        return
    arrays: dict[str, Any] = {}
    for part, record in parts.items():
        numbers, index = packed(record)
        arrays[f"{part}.numbers"] = numbers
        arrays[f"{part}.index"] = np.frombuffer(index.encode(), np.uint8)
    np.savez_compressed(path, **arrays)


def read(path: Path, part: str) -> Record:
    """A part of a file; nothing where it is not recorded yet."""
    if part not in names(path):
        return {}
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))[part]
    with np.load(path, allow_pickle=False) as file:
        return unpacked(file[f"{part}.numbers"], file[f"{part}.index"].tobytes().decode())


def names(path: Path) -> list[str]:
    """The parts of a file."""
    if not path.exists():
        return []
    if path.suffix == ".json":
        return list(json.loads(path.read_text(encoding="utf-8")))
    with np.load(path, allow_pickle=False) as file:
        return [name.removesuffix(".index") for name in file.files if name.endswith(".index")]


def packed(record: Record) -> tuple[np.ndarray, str]:
    """The numbers of all tensors, and where each lies; facts as they are."""
    tensors = {name: v for name, v in record.items() if isinstance(v, Tensor)}
    flat = [t.detach().double().reshape(-1) for t in tensors.values()]
    shapes = {name: [str(t.dtype)[6:], *t.shape] for name, t in tensors.items()}
    facts = {name: v for name, v in record.items() if name not in tensors}
    index = json.dumps({"tensors": shapes, "facts": facts})
    return torch.cat([torch.zeros(0, dtype=torch.float64), *flat]).numpy(), index


def unpacked(numbers: np.ndarray, index: str) -> Record:
    found = json.loads(index)
    record, at = dict(found["facts"]), 0
    for name, (dtype, *shape) in found["tensors"].items():
        size = math.prod(shape)
        part = torch.from_numpy(numbers[at : at + size].copy()).reshape(shape)
        record[name], at = part.to(getattr(torch, dtype)), at + size
    return record


def differences(before: Record, now: Record, near: Near) -> Iterator[Difference]:
    """What is missing, new or other. Errors may gain fields."""
    old, new = (dict(_entries("", record)) for record in (before, unpacked(*packed(now))))
    for name, value in old.items():
        if name not in new:
            yield Difference(name, f"is gone (was {_shown(value)})")
        elif words := _other(value, new[name]):
            numbers = words.startswith("apart by")
            yield Difference(name, words, numbers and near.holds(value, new[name]))
    for name in new.keys() - old.keys():
        if f"{name.rpartition('/')[0]}/error" not in old:
            yield Difference(name, f"is new ({_shown(new[name])})")


def _entries(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The tensors and single facts of a record, by their paths."""
    if isinstance(value, (dict, list)) and value:
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in parts:
            yield from _entries(f"{name}.{key}" if name else str(key), inner)
    else:
        yield name, value


def _other(a: Any, b: Any) -> str:
    """How two values differ; nothing if every bit is the same."""
    if isinstance(a, Tensor) and isinstance(b, Tensor) and (a.dtype, a.shape) == (b.dtype, b.shape):
        x, y = a.double(), b.double()
        if x.numpy().tobytes() == y.numpy().tobytes():
            return ""
        return f"apart by {float((x - y).abs().max()):.1e} of {float(x.abs().max()):.3g}"
    if isinstance(a, float) and isinstance(b, float):
        same = a == b or (math.isnan(a) and math.isnan(b))
        return "" if same else f"apart by {abs(a - b):.1e} of {abs(a):.3g}"
    if type(a) is type(b) and not isinstance(a, Tensor) and a == b:
        return ""
    return f"was {_shown(a)}, is {_shown(b)}"


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype)[6:]} {tuple(value.shape)}"
    return repr(value)
