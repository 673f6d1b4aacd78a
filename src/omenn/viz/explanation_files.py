"""An explanation as a file: everything (.safetensors), readable (.json), pictures (.png, .html)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omenn.check import path as as_path
from omenn.check import real
from omenn.errors import InputError, OutputError, of_file, reason
from omenn.explanation import leaves, rebuilt
from omenn.files.atomic import write_files
from omenn.files.json_text import as_json
from omenn.files.reading import GB, opened

if TYPE_CHECKING:
    from torch import Tensor

    from omenn import Explanation

FORMAT = "omenn explanation 1"
ENDINGS = (".safetensors", ".json", ".png", ".html")
_REMEDY = f"Give a .safetensors file of the format '{FORMAT}', as omenn writes it."


def save(explanation: Explanation, path: str | Path, **options: Any) -> Path:
    """Write an explanation; the ending of ``path`` decides in which form. Returns the path.

    ``.safetensors`` holds all of it (see ``load``), ``.json`` the numbers and the matrix, ``.png``
    a figure of the first sample, ``.html`` a page with all samples. ``options`` of the pictures:
    see ``omenn.viz.plot``. The file is written completely or not at all.

    Raises:
        OutputError: an unknown ending, a path that cannot be written.
        InputError: a picture of a matrix that has none.
    """
    path = as_path("path", path)
    ending = path.suffix.lower()
    if ending == ".safetensors":
        content = to_safetensors(explanation)
    elif ending == ".json":
        content = to_json(explanation)
    elif ending in ENDINGS:
        content = _picture(explanation, ending, options)
    else:
        raise OutputError(
            f"'{path}' ends in '{path.suffix}', expected {', '.join(ENDINGS)}.",
            argument="path",
            got=path.suffix,
            expected=", ".join(ENDINGS),
        )
    write_files({path: content})
    return path


def load(path: str | Path) -> Explanation:
    """Read what ``save`` wrote as .safetensors; no code is run.

    Raises:
        InputError: a missing, damaged or different file.
    """
    from safetensors import SafetensorError, safe_open

    from omenn import Explanation

    path = as_path("path", path)
    try:
        with (
            opened(path, "explanation", most=64 * GB),
            safe_open(str(path), framework="pt") as file,
        ):
            described = json.loads((file.metadata() or {}).get("explanation", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        text = f"the explanation '{path}' cannot be read: {reason(error)}."
        raise of_file(InputError, path, text, _REMEDY) from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise of_file(InputError, path, f"'{path}' holds no explanation.", _REMEDY)
    try:
        values = {name: _rebuilt(tree, tensors) for name, tree in described["fields"].items()}
        return Explanation(**values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        text = f"the explanation '{path}' is incomplete or of another version: {reason(error)}."
        raise of_file(InputError, path, text, _REMEDY) from error


def to_safetensors(explanation: Explanation) -> bytes:
    """All fields; tensors under their names, structures and plain values in the header."""
    from safetensors.torch import save as serialised

    tensors: dict[str, Tensor] = {}
    fields = {
        field.name: _described(getattr(explanation, field.name), field.name, tensors)
        for field in dataclasses.fields(explanation)
    }
    header = json.dumps({"format": FORMAT, "fields": fields})
    return serialised(tensors, metadata={"explanation": header})


def to_json(explanation: Explanation, **more: Any) -> bytes:
    """The numbers, and the matrices as nested lists; ``more`` is written in front."""
    names = ("method", "promise", "at", "bias_placement", "products", "located", "tolerance")
    content = dict(more)
    for name in (*names, "exact", "explains", "processing"):
        content.setdefault(name, getattr(explanation, name))
    for name in ("output", "target", "total", "residual", "magnitude", "bias_share"):
        content.setdefault(name, getattr(explanation, name).detach().tolist())
    content.setdefault(
        "sources", {name: share.detach().tolist() for name, share in explanation.sources.items()}
    )
    content["matrix"] = nested(explanation.matrix)
    return (as_json(content) + "\n").encode()


def nested(matrix: Any) -> Any:
    """A matrix, or matrices in the structure of the inputs, as nested lists."""
    return rebuilt(matrix, iter([values.detach().tolist() for values in leaves(matrix)]))


def _described(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A JSON tree in which every tensor is a reference, and put the tensor aside."""
    if hasattr(value, "detach"):
        # clone: safetensors refuses tensors that share memory
        tensors[name] = value.detach().to("cpu").clone().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": {k: _described(v, f"{name}.{k}", tensors) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        return {"tuple": [_described(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]}
    return {"value": value}


def _rebuilt(tree: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {name: _rebuilt(part, tensors) for name, part in content.items()}
    if kind == "tuple":
        return tuple(_rebuilt(part, tensors) for part in content)
    return content


def _picture(explanation: Explanation, ending: str, options: dict[str, Any]) -> bytes:
    from omenn.viz.figure import figure_png
    from omenn.viz.page import Report, page
    from omenn.viz.panels import case_of
    from omenn.viz.wording import introduced

    smooth = real("smooth", options.pop("smooth", 0.0), 0)
    if ending == ".png":
        return figure_png(case_of(explanation, **options), sigma=smooth)
    cases = [case_of(explanation, index, **options) for index in range(len(explanation.output))]
    introduction = f"For every answer one matrix{introduced(explanation)}."
    report = Report("What the network did with this input", introduction, cases, sigma=smooth)
    return page(report).encode()
