"""An exact explanation at one depth, at several of them mixed, or at those that a rule chooses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from omenn.attribution.contributions import mixed_shares
from omenn.attribution.question import Question
from omenn.attribution.registry import method
from omenn.check import quoted
from omenn.engine.depth import levels_of
from omenn.engine.explainable import check_model
from omenn.engine.target import Target
from omenn.engine.trace.guards import alone
from omenn.errors import InputError
from omenn.explanation import Explanation, leaves, rebuilt

INPUT = "input"  # the name of the input itself among depths
FINE = 16  # cells along a dimension of the input that a level of ``at="auto"`` has at least


@method(
    "omenn",
    promise="exact",
    summary="C = C_w ⊙ X + C_b of the frozen network, constants sent to their locations",
    source="arXiv 2412.02399",
)
def omenn(
    model: nn.Module | Callable[..., Any],
    inputs: Any,
    target: Target = None,
    *,
    at: str | Sequence[str] | None = None,
    mix: Sequence[float] | None = None,
    resample: str = "bilinear",
    bias: str = "spatial",
    output: Callable[[Any], Tensor] | str | int | None = None,
    products: str = "half",
    channel_dim: int | None = None,
    create_graph: bool = False,
) -> Explanation:
    """The exact decomposition at the input, at a module's output, or a mixture over depths.

    Each depth has a map that sums to f_c(x); so has any convex mixture Σ_k m_k C⁽ᵏ⁾ of them.

    Args:
        at: a module's name; several of them, ``"input"`` being the input itself; or ``"auto"``,
            see :func:`auto`. Of several, ``weight``, ``contribution`` and ``inputs`` are dicts,
            depth → tensor, and ``matrix``, ``bias``, ``sources`` the mixture.
        mix: the weights of several depths, not negative, of sum one; evenly if not given.
        resample, bias, output, products, channel_dim, create_graph: see
            :func:`omenn.engine.explain.explain`.

    Raises:
        InputError: weights that are no convex mixture; a depth that has no place on the input.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.ReLU(),
        ...     torch.nn.Conv2d(4, 4, 3, 2, 1), torch.nn.ReLU(), torch.nn.Flatten(),
        ...     torch.nn.Linear(16, 2)).eval()
        >>> e = omenn.explain(net, torch.rand(1, 3, 8, 8), at=["input", "1"], mix=[0.25, 0.75])
        >>> assert e.exact and e.matrix.shape == (1, 8, 8) and e.weight["1"].shape == (1, 4, 4, 4)

    Source: arXiv 2412.02399, section 3; a mixture is exact because each of its parts is.
    """
    question = Question(model, inputs, target, at, resample, output, channel_dim)
    options = {"bias": bias, "products": products, "create_graph": create_graph}
    return at_depths(question, mix, **options)


def at_depths(question: Question, mix: Sequence[float] | None, **options: Any) -> Explanation:
    """The exact explanation at the depths that are asked for with ``at``, mixed.

    Each depth has a map that sums to f_c(x); so has any convex mixture Σ_k m_k C⁽ᵏ⁾ of them.
    ``options``: of :func:`omenn.engine.explain.explain`.
    """
    names = _names(question, question.at, mix)
    weights = _weights(names, mix)
    if len(names) == 1:
        return question.exact(at=names[0], **options)
    if question.resample == "none":
        raise _not_at_the_input()
    parts = [question.exact(at=_module(question.model, name), **options) for name in names]
    return _mixed(names, weights, parts)


def _not_at_the_input() -> InputError:
    return InputError(
        "resample='none' leaves maps where their modules are, but depths are mixed at the input.",
        argument="resample",
        got="'none'",
        remedy="Choose 'bilinear' or 'nearest'.",
    )


def _names(question: Question, at: Any, mix: Any) -> list[Any]:
    """The depths that are asked for: modules by name, None for the input alone."""
    model = question.model
    if isinstance(at, str) and at == "auto" and not is_module(model, "auto"):
        if mix is not None:
            raise _no_mixture(mix, "at='auto' chooses its own depths.", "Omit it, or name them.")
        at = auto(model, question.inputs, channel_dim=question.channel_dim)
    elif not isinstance(at, (list, tuple)):
        if mix is not None:
            raise _no_mixture(mix, "there is one depth.", "Give at= a list of as many names.")
        return [_module(model, at)]
    return [_module(model, at[0])] if len(at) == 1 else list(at)


def _no_mixture(mix: Any, why: str, remedy: str) -> InputError:
    text = f"mix={quoted(mix)} does not fit: {why}"
    return InputError(text, argument="mix", got=quoted(mix), remedy=remedy)


@alone()
def auto(model: Any, inputs: Any, *, channel_dim: int | None = None) -> list[str]:
    """The depths that ``at="auto"`` mixes evenly: the input, and every level that is fine enough.

    A level is the last module of a resolution (:func:`omenn.engine.depth.levels_of`): a stage of a
    convolutional network, the blocks of a transformer. It is fine enough with at least 16 cells
    along each dimension of the input, 256 for an image. So a transformer with 14 × 14 patches is
    explained at its input, a network of stages also at the first of them. The rule was chosen on
    training scenes, see docs/depth.md.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.ReLU(),
        ...     torch.nn.Conv2d(4, 4, 3, 2, 1), torch.nn.Flatten(), torch.nn.Linear(256, 2)).eval()
        >>> auto(net, torch.rand(1, 3, 32, 32))  # 16 × 16 cells behind "1", 8 × 8 behind "2"
        ['input', '1']
    """
    check_model(model, None)
    levels = levels_of(model, inputs, channel_dim)
    given = [t for t in _values(inputs) if isinstance(t, Tensor)]
    axes = max(1, given[0].ndim - 2) if given else 1
    return [INPUT, *(name for name, cells in levels.items() if cells >= FINE**axes)]


def _values(inputs: Any) -> list[Any]:
    if isinstance(inputs, (tuple, list)):
        return list(inputs)
    return list(inputs.values()) if isinstance(inputs, dict) else [inputs]


def is_module(model: Any, name: str) -> bool:
    named = isinstance(model, nn.Module) and isinstance(name, str)
    return named and name in dict(model.named_modules())


def _module(model: Any, name: Any) -> Any:
    """The module of a depth, None for the input; what is no name is refused by the engine."""
    return None if isinstance(name, str) and name == INPUT and not is_module(model, INPUT) else name


def _weights(names: Sequence[str], mix: Sequence[float] | None) -> list[float]:
    """The weights of a convex mixture."""
    if not names or any(names.count(name) > 1 for name in names):
        raise InputError(
            f"at={quoted(names)} names {'a depth twice' if names else 'no depth'}.",
            argument="at",
            got=quoted(names),
            remedy="Give at least one module, or 'input', and each once.",
        )
    if mix is None:
        return [1 / len(names)] * len(names)
    try:
        weights = [float(w) for w in mix]
    except (TypeError, ValueError):
        raise _no_mixture(mix, "it is no list of numbers.", "Give one for each depth.") from None
    if len(weights) != len(names):
        why = f"it has {len(weights)} weights for {len(names)} depths."
        raise _no_mixture(mix, why, "Give one for each.")
    if not all(math.isfinite(w) and w >= 0 for w in weights) or abs(sum(weights) - 1) > 1e-6:
        why = f"its weights have the sum {sum(weights):g}, and the least is {min(weights):g}."
        raise _no_mixture(mix, why, "Give weights of at least 0 with the sum 1.")
    return weights


def _mixed(names: Sequence[str], weights: Sequence[float], parts: list[Explanation]) -> Explanation:
    first, keys = parts[0], list(names)
    maps = [leaves(p.matrix) for p in parts]
    for key, part, own in zip(keys, parts, maps, strict=True):
        apart = part.at is not None and part.resample == "none"
        if apart or len(own) > 1 or own[0].shape != maps[0][0].shape:
            raise InputError(
                f"the map at '{key}' cannot be mixed with the others: it is not at the "
                "locations of one explained input.",
                argument="at",
                got=quoted(key),
                module=key,
                remedy="Name modules whose output has places on the input, of a model with one "
                "explained input.",
            )
    matrix = _sum(weights, [own[0] for own in maps])
    bias = _sum(weights, [leaves(p.bias)[0] for p in parts])
    return first.with_matrix(
        rebuilt(first.matrix, iter([matrix])),
        inputs=dict(zip(keys, [p.inputs for p in parts], strict=True)),
        weight=dict(zip(keys, [p.weight for p in parts], strict=True)),
        contribution=dict(zip(keys, [p.contribution for p in parts], strict=True)),
        bias=rebuilt(first.bias, iter([bias])),
        sources=_sources(weights, parts),
        located=sum(w * p.located for w, p in zip(weights, parts, strict=True)),
        unlocated=mixed_shares(zip(weights, (p.unlocated for p in parts), strict=True)),
        tolerance=max(p.tolerance for p in parts),
        at=tuple(keys),
        mix=tuple(weights),
        resample=next((p.resample for p in parts if p.at is not None), "none"),
        frozen_constants=tuple(sorted({name for p in parts for name in p.frozen_constants})),
    )


def _sum(weights: Iterable[float], values: Iterable[Tensor]) -> Tensor:
    return torch.stack([w * v for w, v in zip(weights, values, strict=True)]).sum(0)


def _sources(weights: Sequence[float], parts: Sequence[Explanation]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for w, part in zip(weights, parts, strict=True):
        for module, share in part.sources.items():
            found[module] = found[module] + w * share if module in found else w * share
    return found
