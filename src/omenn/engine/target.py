"""From a model's output to one number per sample."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from omenn.check import quoted
from omenn.engine.torch_private import DisableTorchFunction
from omenn.errors import InputError, OmennError, TargetError


@dataclass(frozen=True, eq=False)
class Contrast:
    """The target f_a − f_b: what speaks for class ``a`` rather than ``b``.

    ``a``, ``b``: class indices, an int or a tensor (B,). ``b`` may also be ``"rest"``, the mean of
    all other logits, or ``"runner-up"``, the largest of them. Its explanation is the difference of
    the two explanations, because the frozen map is linear in the output. An index out of range is
    a TargetError when the model's output is known.

    Example:
        >>> import torch, omenn
        >>> net, x = torch.nn.Linear(4, 3).eval(), torch.randn(1, 4)
        >>> e = omenn.explain(net, x, omenn.Contrast(2, 0))
        >>> assert torch.allclose(e.weight[0], net.weight[2] - net.weight[0], atol=1e-6)
    """

    a: int | Tensor
    b: int | Tensor | Literal["rest", "runner-up"]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Contrast) and self._numbers() == other._numbers()

    def __hash__(self) -> int:
        return hash(self._numbers())

    def _numbers(self) -> tuple[Any, ...]:
        """The two sides as what can be compared."""
        return tuple(
            (tuple(t.shape), *t.flatten().tolist()) if isinstance(t, Tensor) else t
            for t in (self.a, self.b)
        )

    def against(self, logits: Tensor) -> Tensor:
        """(B, K) weights of the logits (B, K) in what is subtracted: rows that sum to one."""
        a, classes = _indices(self.a, logits), logits.shape[1]
        chosen = functional.one_hot(a, classes).to(logits.dtype)
        if isinstance(self.b, str):
            if self.b not in _AGAINST:
                raise TargetError(
                    f"Contrast(a, {quoted(self.b)}) is not known. Give a class, "
                    f"{' or '.join(map(repr, _AGAINST))}."
                )
            if classes < 2:
                raise TargetError("the model has one output, so there is nothing to contrast with.")
            if self.b == "rest":
                return (1 - chosen) / (classes - 1)
            others = logits.detach().masked_fill(chosen.bool(), -torch.inf)
            return functional.one_hot(others.argmax(1), classes).to(logits.dtype)
        return functional.one_hot(_indices(self.b, logits), classes).to(logits.dtype)


_AGAINST = ("rest", "runner-up")

Target = int | Tensor | Contrast | Callable[[Any], Tensor] | None


def pick_output(out: Any, output: Callable[[Any], Tensor] | str | int | None) -> Any:
    """The logits in a model's output: the tensor itself, ``.logits``, or the first item."""
    if callable(output):
        try:
            out = output(out)
        except OmennError:
            raise
        except Exception as error:
            raise TargetError(
                f"the output function raised {type(error).__name__}: {_first_line(error)} It was "
                f"given what the model returned, a {type(out).__name__}."
            ) from error
    elif output is not None:
        try:
            named = isinstance(output, str) and not isinstance(out, Mapping)
            out = getattr(out, str(output)) if named else out[output]
        except OmennError:
            raise
        except Exception:  # what is indexed may raise what it likes
            raise TargetError(
                f"output={quoted(output)} is not in what the model returned ({type(out).__name__})."
            ) from None
    elif not isinstance(out, Tensor):
        if getattr(out, "logits", None) is not None:
            out = out.logits
        elif isinstance(out, Mapping):
            out = out.get("logits", next(iter(out.values()), None))
        elif isinstance(out, (tuple, list)) and out:
            out = out[0]
    if not isinstance(out, Tensor):
        raise TargetError(
            f"the model returned {type(out).__name__}, in which no tensor of logits was found. "
            "Say where it is with output=, for example output=lambda out: out['scores']."
        )
    return out


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0].rstrip(".") + "."


def select(logits: Tensor, target: Target, batch: int) -> tuple[Tensor, Tensor]:
    """(f, class): one number per sample and the index it was taken at (−1 where there is none).

    ``f`` is (B,), or a scalar where a callable target returns one.
    """
    if callable(target) and not isinstance(target, Contrast):
        return _called(target, logits)
    shape = tuple(logits.shape)
    if shape == (batch,):
        logits = logits.unsqueeze(1)
    elif not shape and batch == 1:
        logits = logits.reshape(1, 1)
    with DisableTorchFunction():  # a look of the engine, no part of the model
        check_numbers(logits)
        if logits.ndim != 2 or logits.shape[0] != batch:
            raise TargetError(_misshapen(shape, batch))
    if isinstance(target, Contrast):
        return _contrasted(logits, target)
    with DisableTorchFunction():
        index = logits.detach().argmax(1) if target is None else _indices(target, logits)
        at = index.unsqueeze(1)
    return logits.gather(1, at).squeeze(1), index


def _contrasted(logits: Tensor, target: Contrast) -> tuple[Tensor, Tensor]:
    a = _indices(target.a, logits)
    if not isinstance(target.b, str):
        return _at(logits, a) - _at(logits, _indices(target.b, logits)), a
    return _at(logits, a) - (logits * target.against(logits)).sum(1), a


def _misshapen(shape: tuple[int, ...], batch: int) -> str:
    """What to say of an output that is not one row of logits for each sample."""
    said = (
        f"the output has the shape {shape}, but one row of logits for each of {batch} samples, "
        f"({batch}, classes), was expected. "
    )
    if len(shape) > 2 and shape[0] == batch:
        return said + (
            "Pass a callable as the target that picks one number per sample, for example "
            f"target=lambda out: {example(shape)}."
        )
    said += (
        "If the input has no batch dimension, give it one: x.unsqueeze(0). If the batch is one "
        "object (the nodes of a graph, for example), pass a target that returns a single number"
    )
    where = ", ".join(str(min(n - 1, 1)) for n in shape)
    return said + (f": target=lambda out: out[{where}]." if shape else ": target=lambda out: out.")


def example(shape: tuple[int, ...]) -> str:
    """Python that takes one number per sample from an output of more than two dimensions."""
    if len(shape) == 3:
        return f"out[:, -1, {min(shape[2] - 1, 42)}]"
    dims = ", ".join(str(d) for d in range(1, len(shape) - 1))
    return f"out[:, {min(shape[1] - 1, 1)}].sum(({dims}))"


def check_numbers(logits: Tensor) -> None:
    """Raises TargetError for an output that has no real numbers to be explained."""
    if logits.numel() == 0:
        raise TargetError(
            f"the output is empty: its shape is {tuple(logits.shape)}. There is no number to "
            "explain; check the model, and what output= takes from what it returns."
        )
    if logits.is_complex():
        raise TargetError(
            f"the output is complex ({logits.dtype}). Choose a real number of it with output=, for "
            "example output=lambda out: out.real."
        )
    if not logits.is_floating_point():
        raise TargetError(
            f"the output is made of whole numbers ({logits.dtype}), as those of an argmax or a "
            "comparison, which have no derivative. Explain the scores that they were made from: "
            "let the model return them, or explain a part of it that does."
        )


def check_finite(f: Tensor) -> None:
    """Raises TargetError for explained numbers that are not real, InputError if not finite."""
    check_numbers(f)
    if not bool(torch.isfinite(f.detach()).all()):
        raise InputError(
            "the model's output is not finite (NaN or infinite), so there is nothing to explain.",
            argument="inputs",
            remedy="Check the weights and the range of the input.",
        )


def _called(target: Callable[[Any], Any], logits: Tensor) -> tuple[Tensor, Tensor]:
    try:
        f = target(logits)
    except OmennError:
        raise
    except Exception as error:
        raise TargetError(
            f"the target function raised {type(error).__name__}: {_first_line(error)} It was given "
            f"an output of the shape {tuple(logits.shape)}."
        ) from error
    if not isinstance(f, Tensor) or f.ndim > 1:
        got = tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__
        raise TargetError(
            f"the target function returned {got}; it must return one number per sample, a tensor "
            "(B,), or a single number."
        )
    return f, torch.full(f.shape or (1,), -1, device=f.device)


def _at(logits: Tensor, index: Tensor) -> Tensor:
    return logits.gather(1, index.unsqueeze(1)).squeeze(1)


def _indices(target: Any, logits: Tensor) -> Tensor:
    batch, classes = logits.shape
    index = _whole(target, logits)
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TargetError(f"the target must be an integer, but has the type {index.dtype}.")
    if index.ndim > 1 or (index.ndim == 1 and index.shape[0] not in (1, batch)):
        raise TargetError(
            f"the target has the shape {tuple(index.shape)}; one class for each of {batch} samples "
            "was expected."
        )
    index = index.detach().to(logits.device).long().expand(batch)
    for bad in (int(index.max()), int(index.min())):
        _check_range(bad, classes)
    return index % classes


def _whole(target: Any, logits: Tensor) -> Tensor:
    """The target as an ordinary tensor: a number, a tensor, a list or an array of numbers."""
    batch, classes = logits.shape
    if isinstance(target, Tensor):
        if target.layout != torch.strided or target.is_meta or target.is_quantized:
            kind = "on the meta device" if target.is_meta else "sparse or quantised"
            raise TargetError(f"the target is {kind}; give an ordinary tensor of class indices.")
        return target
    try:
        if isinstance(target, bool):
            raise TypeError
        if hasattr(target, "__index__") and getattr(target, "ndim", 0) == 0:
            _check_range(number := operator.index(target), classes)
            return torch.tensor(number, device=logits.device)
        if not isinstance(target, (list, tuple)) and not hasattr(target, "__array__"):
            raise TypeError
        return torch.as_tensor(target, device=logits.device)
    except OmennError:
        raise
    except Exception:  # what an array may raise of itself is its own
        raise TargetError(
            f"the target must be a class index (int), a tensor of {batch} of them, a Contrast "
            f"or a callable, but {quoted(target)} was given."
        ) from None


def _check_range(index: int, classes: int) -> None:
    if not -classes <= index < classes:
        raise TargetError(
            f"target {index} is out of range: the model has {classes} outputs, 0 to {classes - 1}."
        )
