"""Copies of a model with random parameters: layer after layer, one layer alone, or all of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn

from omenn.check import choose, whole
from omenn.errors import ModelError, reason

Order = Literal["top_down", "bottom_up", "independent"]
"""Layers are randomised one after the other and stay so, from the last or from the first as the
module lists them; or each one alone."""

SALT = 7_919_000_000
ORDERS = ("top_down", "bottom_up", "independent")


def layers(model: nn.Module) -> tuple[str, ...]:
    """The names of the modules that own parameters, or state that they can reset, in order.

    >>> layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.BatchNorm1d(2, affine=False)))
    ('0', '2')
    """
    return tuple(name for name, module in model.named_modules() if _has_state(module))


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy with random parameters in all layers.

    A module with ``reset_parameters`` draws as when it was made. Parameters of other modules become
    normal numbers with the mean and deviation that they have. A layer's numbers depend on the seed
    and on its place in the model, not on the order or the device.

    Raises:
        ModelError: as in :func:`parameter_randomisation`.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> assert not torch.equal(randomised(net).weight, net.weight)
    """
    return [random for _, random in randomisations(model, "bottom_up", seed)][-1]


def randomisations(
    model: nn.Module, order: Order, seed: int = 0
) -> Iterator[tuple[str, nn.Module]]:
    """(layer, copy of the model in which it, and what came before it, is random), in order.

    The cascading orders go on with the same copy: use each before the next one is taken.
    """
    whole("seed", seed, 0)
    choose("order", order, ORDERS)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"parameters can be randomised of a torch.nn.Module, got {type(model).__name__}.",
            argument="model",
            got=type(model).__name__,
            expected="torch.nn.Module",
            remedy="Give the module itself.",
        )
    names = layers(model)
    if not names:
        raise ModelError(
            "the model has no parameters that could be randomised.",
            argument="model",
            remedy="Give a model that learns.",
        )
    numbered = list(enumerate(names))
    found = _copy(model)
    for number, name in numbered[::-1] if order == "top_down" else numbered:
        found = _copy(model) if order == "independent" else found
        _randomise(found.get_submodule(name), layer_seed(seed, number))
        yield name, found


def layer_seed(seed: int, number: int) -> int:
    """The seed of a layer's numbers: none that a model is likely to be made with.

    >>> layer_seed(0, 1) - layer_seed(0, 0), layer_seed(1, 0) - layer_seed(0, 0)
    (1, 65537)
    """
    return (SALT + 65_537 * seed + number) % 2**63


def _has_state(module: nn.Module) -> bool:
    if next(module.parameters(recurse=False), None) is not None:
        return True
    buffers = next(module.buffers(recurse=False), None)
    return hasattr(module, "reset_parameters") and buffers is not None


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            f"the model cannot be copied, so it has no random twin: {reason(error)}.",
            argument="model",
            remedy=(
                "Take off what cannot be copied, such as hooks with locks or results of an "
                "earlier run."
            ),
        ) from error


def _randomise(layer: nn.Module, seed: int) -> None:
    """New parameters in place. They are drawn on the CPU, and no other random state is touched."""
    reset = getattr(layer, "reset_parameters", None)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        if reset is not None:
            fresh = copy.deepcopy(layer).cpu()
            fresh.reset_parameters()  # type: ignore[operator]
            layer.load_state_dict(fresh.state_dict())
            return
        for p in layer.parameters(recurse=False):
            mean, deviation = float(p.double().mean()), float(p.double().std(correction=0))
            p.copy_(mean + deviation * torch.randn(p.shape, dtype=torch.float64))
