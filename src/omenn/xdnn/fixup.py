"""Initialisation of residual networks without normalisation (Fixup), without scalar biases.

With L residual blocks of m layers each: the last layer of every branch and the head are zero, the
other layers of a branch have He's initialisation times L^(−1/(2m−2)), all others He's:
N(0, 2/fan_in). So a step of training changes the output as much as in a network of few layers.

Source: Zhang, Dauphin and Ma, arXiv 1901.09321; He et al., arXiv 1502.01852. Without scalar biases
and multiplier as in Hesse et al., arXiv 2111.07668.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from omenn.errors import ModelError
from omenn.xdnn.model_scan import Branch, Found
from omenn.xdnn.obstacle_check import kind_of

_CHANNELS = ("in_channels", "out_channels")
_CONV = nn.modules.conv._ConvNd
_TRANSPOSED = nn.modules.conv._ConvTransposeNd
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def scales(model: nn.Module, found: Found | None) -> dict[str, float]:
    """Name of a weight → the factor on He's initialisation, where it is not one.

    With what a run has ``found`` branches are the deeper sides of the additions of two tensors that
    depend on the input, the head is the last layer. Without, a block is a module (no
    ``Sequential``, and not the model itself) that directly owns two or more convolutions, or two or
    more linear layers, in this order, and whose input has the form of its output, or is brought to
    it by another layer in it; the head is the last linear layer outside of all.
    """
    if found is None:
        branches = _by_tree(model)
        inside = {w for b in branches for w in b.weights}
        linear = [
            f"{path}.weight" if path else "weight"
            for path, m in model.named_modules()
            if isinstance(m, nn.Linear)
        ]
        head = frozenset([w for w in linear if w not in inside][-1:])
    else:
        branches, head = found.branches, found.head
    made: dict[str, float] = {}
    for branch in branches:
        for name in branch.weights:
            scale = 1.0 if branch.depth < 2 else len(branches) ** (-1 / (2 * branch.depth - 2))
            made.setdefault(name, 0.0 if name in branch.last else scale)
    return made | dict.fromkeys(head, 0.0)


def _by_tree(model: nn.Module) -> list[Branch]:
    """The blocks of a model by what its modules own."""
    owned: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        if path and not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            for types in (_CONV, nn.Linear):
                layers = {n: m for n, m in module._modules.items() if isinstance(m, types)}
                if len(layers) > 1 and _may_skip(module, [*layers.values()]):
                    owned.setdefault(path, [f"{path}.{name}.weight" for name in layers])
    # One block inside of another is a gate of it; one around several is the network's body.
    inside = {p: [q for q in owned if q.startswith(f"{p}.")] for p in owned}
    blocks = {p: names for p, names in owned.items() if len(inside[p]) < 2}
    return [
        Branch(path, tuple(names), frozenset(names[-1:]), len(names))
        for path, names in blocks.items()
        if not any(path.startswith(f"{p}.") for p in blocks)
    ]


def _may_skip(block: nn.Module, layers: list[nn.Module]) -> bool:
    """Whether its input can be added to its output: of the same form, or brought to it.

    What ends in a gate of its own (squeeze and excitation) is multiplied.
    """
    if any(kind_of(m) == "gates" for m in block.children()):
        return False
    sizes = _channels(layers[0])[0], _channels(layers[-1])[1]
    if sizes[0] == sizes[1] and all(set(getattr(m, "stride", (1,))) == {1} for m in layers):
        return True
    others = (m for m in block.modules() if not any(m is layer for layer in layers))
    return any(_channels(m) == sizes for m in others)


def _channels(layer: nn.Module) -> tuple[Any, Any]:
    sizes = ("in_features", "out_features") if isinstance(layer, nn.Linear) else _CHANNELS
    return getattr(layer, sizes[0], None), getattr(layer, sizes[1], None)


def initialise(model: nn.Module, factors: Mapping[str, float], seed: int) -> None:
    """Draws, in place, the weights of all linear layers, convolutions and projections.

    A weight that several modules share is drawn once, and is zero if one of them wants it so.

    Raises ModelError for a weight that is computed from others (parametrised).
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[int, tuple[nn.Parameter, float, list[float]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for key in _weights(module, path):
            name = f"{path}.{key}" if path else key
            weight = module._parameters[key]
            if weight is not None:
                entry = drawn.setdefault(id(weight), (weight, _fan_in(module, weight), []))
                entry[2].append(factors.get(name, 1.0))
    with torch.no_grad():
        for weight, fan_in, wanted in drawn.values():
            values = torch.randn(weight.shape, generator=generator)
            scale = min(wanted) * math.sqrt(2 / max(fan_in, 1.0))
            weight.copy_((values * scale).to(weight))


def _weights(module: nn.Module, path: str) -> tuple[str, ...]:
    if isinstance(module, nn.MultiheadAttention):
        return tuple(k for k in _PROJECTIONS if module._parameters.get(k) is not None)
    if not isinstance(module, (nn.Linear, nn.Bilinear, _CONV)):
        return ()
    if parametrize.is_parametrized(module, "weight") or "weight" not in module._parameters:
        raise ModelError(
            f"the weight of module '{path or '(model)'}' is computed from other parameters, so "
            "that it cannot be initialised.",
            module=path,
            remedy="Remove the parametrisation "
            "(torch.nn.utils.parametrize.remove_parametrizations), or use norm='scale'.",
        )
    return ("weight",)


def _fan_in(module: nn.Module, weight: Tensor) -> float:
    """How many inputs are summed to one output."""
    if isinstance(module, _TRANSPOSED):
        inputs = weight.shape[0] / module.groups
        return inputs * math.prod(weight.shape[2:]) / math.prod(module.stride)
    return float(math.prod(weight.shape[1:]))
