"""Reads trained weights from a file without running its code, and checks that they fit."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from omenn.errors import WeightsError, of_file, reason
from omenn.files.reading import GB, opened, size

if TYPE_CHECKING:
    from torch import Tensor, nn

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")
_NAMED_IN_MESSAGE = 3
_COPIES = 16  # of the weights, at most, in a checkpoint of a training


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load the weights of ``path`` into ``model``, which does not change if they do not fit.

    The file is safetensors, or a file of ``torch.save`` with nothing but tensors and plain values
    (``torch.load(weights_only=True)``). The weights may be under ``state_dict`` or ``model`` of a
    dictionary, and their names may begin with ``module.``.

    Raises:
        WeightsError: no such file, a file that could run code, names or shapes that do not fit.

    >>> import os, tempfile, torch
    >>> from safetensors.torch import save_file
    >>> model, path = torch.nn.Linear(2, 1), os.path.join(tempfile.mkdtemp(), "w.safetensors")
    >>> save_file({"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, path)
    >>> load_weights(model, path)
    >>> assert model(torch.ones(1, 2)).item() == 2
    """
    path = Path(path)
    state = _unwrapped(_read(path, _most(model)), path)
    _check_fit(model, state, path)
    model.load_state_dict(state, strict=False)


def read_checkpoint(path: Path, device: Any) -> Any:
    """The content of a checkpoint that ``torch.save`` wrote; no code is run.

    Raises:
        WeightsError: it cannot be opened, or is not a checkpoint.
    """
    import torch

    with opened(path, "checkpoint", most=64 * GB, kind=WeightsError) as file:
        try:
            _check_archive(file, 64 * GB)
            return torch.load(file, map_location=device, weights_only=True)
        except Exception as error:  # torch raises almost anything for a foreign file
            text = f"the checkpoint {path} cannot be read: it is damaged, or not a checkpoint."
            raise of_file(WeightsError, path, text, "Remove it to start afresh.") from error


def _most(model: nn.Module) -> int:
    """How many bytes are read for a model: its weights, optimisers and averages."""
    own = sum(
        t.numel() * t.element_size() for t in model.state_dict().values() if hasattr(t, "numel")
    )
    return GB + _COPIES * own


def _read(path: Path, most: int) -> Any:
    with opened(path, "weights", most=most, kind=WeightsError) as file:
        beginning = file.read(16)
        file.seek(0)
        if beginning[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
            return _read_safetensors(path)
        return _read_torch(path, file, most)


def _check_archive(file: BinaryIO, most: int) -> None:
    """Raises ValueError for an archive that would be much larger in memory than on disk."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            inside = sum(entry.file_size for entry in archive.infolist())
        if inside > most:
            raise ValueError(
                f"it would take {size(inside)} of memory, expected at most {size(most)}"
            )
    file.seek(0)


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        text = f"the weights '{path}' are damaged or incomplete: {reason(error)}."
        raise of_file(WeightsError, path, text, "Use an intact copy of the file.") from error


def _read_torch(path: Path, file: BinaryIO, most: int) -> Any:
    import torch

    try:
        _check_archive(file, most)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickle protocols
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = (
            f"the weights '{path}' are refused: the file is not a safetensors file and, read as a "
            "pickle, could run code."
        )
        remedy = "Save them as safetensors, or with torch.save(state_dict)."
        raise of_file(WeightsError, path, text, remedy) from error
    except Exception as error:  # torch raises almost anything for a damaged archive
        text = f"the weights '{path}' are damaged or of an unknown format: {reason(error)}."
        remedy = "Use a safetensors file, or torch.save(model.state_dict(), ...)."
        raise of_file(WeightsError, path, text, remedy) from error


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    """The weights without the dictionaries and prefixes that training scripts add."""
    import torch

    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not any(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        kind = type(content).__name__
        text = f"the file '{path}' holds no weights: expected a dictionary of tensors, got {kind}."
        remedy = "Save it with torch.save(model.state_dict(), ...)."
        raise of_file(WeightsError, path, text, remedy)
    state = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    for name, value in state.items():
        if kind := _odd(value):
            text = f"the weights '{path}' hold a {kind} tensor ('{name}'), expected dense ones."
            raise of_file(WeightsError, path, text, "Save the state of the ordinary model.")
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _odd(value: Tensor) -> str:
    """The kind of a tensor without plain numbers; empty for an ordinary one."""
    import torch

    if value.is_meta:
        return "meta (empty)"
    if value.is_quantized:
        return "quantised"
    return "" if value.layout == torch.strided else "sparse"


def _check_fit(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    mismatched = [
        f"{key} {_shape(state[key])} instead of {_shape(own[key])}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    faults = [
        f"{len(names)} {what} ({_some(names)})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", mismatched),
        )
        if names
    ]
    if faults:
        text = f"the weights '{path}' do not fit the model: {', '.join(faults)}."
        raise of_file(WeightsError, path, text, "Choose the model that they were trained for.")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMED_IN_MESSAGE])
    return shown + (", …" if len(names) > _NAMED_IN_MESSAGE else "")


def _shape(tensor: Tensor) -> str:
    return "x".join(str(length) for length in tensor.shape) or "scalar"
