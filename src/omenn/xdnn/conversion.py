"""Converts a network into one without additive terms, and replaces what it is asked to replace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn.utils import parametrize

from omenn.check import SEEDS, choose, whole, wrong
from omenn.errors import ModelError
from omenn.xdnn.fixup import initialise, scales
from omenn.xdnn.model_scan import Found, scan
from omenn.xdnn.obstacle_check import (
    STAND_INS,
    biases_of,
    copied,
    function_kind,
    is_batch_norm,
    obstacles,
)
from omenn.xdnn.replacements import exchange, hinted, replace_modules, scale_norm, swap

__all__ = ["convert", "obstacles"]

Norm = Literal["fixup", "scale", "keep"]


def convert(
    model: nn.Module,
    norm: Norm = "fixup",
    *,
    stand_ins: str | Iterable[str] = (),
    inputs: Any = None,
    seed: int = 0,
) -> nn.Module:
    """A copy of a model without additive terms: the first step to F(αx) = α F(x) for all α ≥ 0.

    Biases of linear layers, convolutions, attention and norms other than BatchNorm become None;
    other names in the state dict stay. The model itself is left as it is.

    Args:
        model: any module; deep copied. What is in training mode stays so.
        norm: what becomes of BatchNorm. ``"scale"``: a
            :class:`~omenn.xdnn.homogeneous_layers.ScaleNorm`, which starts from γ/√(var + ε), so
            that each layer keeps its W. ``"fixup"``: it is removed,
            and as weights that were trained with it mean nothing without, all are drawn anew by
            Fixup (:mod:`omenn.xdnn.fixup`). ``"keep"``: it stays, and is not homogeneous. Without
            a BatchNorm all weights stay as they are.
        stand_ins: what else is replaced, any of ``"activations"`` (GELU and kin by ReLU),
            ``"attention"`` (softmax by normalised ReLU), ``"gates"`` (σ(z) by σ(z / rms(z))) and
            ``"norms"`` (LayerNorm and kin by ScaleNorm), or ``"all"``. The model must be trained
            again after it. :func:`obstacles` lists what there is to replace.
        inputs: as in :func:`omenn.explain`. The model runs once on them, so that residual branches
            are known as they are, parameters that are added as constants (position embedding, class
            token) are set to zero and frozen, and functions (``F.gelu``) can be exchanged.
        seed: of the weights that are drawn. The global generator is left as it is.

    Raises:
        ModelError: it is no module, cannot be copied, nothing in it can be converted, or a stand-in
            cannot be had without ``inputs``.
        InputError: an unknown norm, stand-in or seed, or ``inputs`` that the model cannot take.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(1),
        ...                     nn.Linear(32, 2)).eval()
        >>> free = convert(net, norm="scale")
        >>> x = torch.randn(2, 3, 4, 4)
        >>> assert torch.allclose(free(2 * x), 2 * free(x), atol=1e-6)
        >>> [name for name in net.state_dict() if name not in free.state_dict()]
        ['0.bias', '1.bias', '1.running_mean', '1.running_var', '4.bias']

    Source: Hesse et al. 2021, arXiv 2111.07668.
    """
    choose("norm", norm, get_args(Norm))
    kinds = _kinds(stand_ins)
    seed = whole("seed", seed, *SEEDS)
    fresh = copied(model)
    found = None if inputs is None else scan(copied(model), inputs)
    for new, old in zip(fresh.modules(), model.modules(), strict=True):
        new.training = old.training
    return _converted(fresh, norm, kinds, found, seed)


def _converted(
    fresh: nn.Module, norm: Norm, kinds: dict[str, bool], found: Found | None, seed: int
) -> nn.Module:
    factors = scales(fresh, found)
    norms = [m for m in fresh.modules() if is_batch_norm(m)]
    done = _without_biases(fresh) + (0 if found is None else _without_constants(fresh, found))
    if norm != "keep":
        make = scale_norm if norm == "scale" else _rest
        fresh = swap(fresh, {id(m): make(m) for m in norms})
        done += len(norms)
    fresh, there = _stood_in(fresh, kinds, found)
    if norm == "fixup" and norms:
        initialise(fresh, factors, seed)
    if not done and not there:
        raise ModelError(
            "there is nothing to convert: no bias"
            + (" or added parameter" if found is not None else "")
            + (" is left" if norm == "keep" and norms else " and no BatchNorm is there")
            + (", and nothing that a stand-in is for" if kinds else "; no stand-in was asked for")
            + (". With inputs= added parameters are found as well." if found is None else "."),
            argument="model",
            remedy="omenn.xdnn.check(model, inputs) tells whether the model is homogeneous, "
            "omenn.xdnn.obstacles(model) what keeps it from being so.",
        )
    return fresh


def _kinds(stand_ins: Any) -> dict[str, bool]:
    """Stand-in → whether it was asked for by its name."""
    try:
        names = [stand_ins] if isinstance(stand_ins, str) else list(stand_ins)
    except Exception:  # what it is made of may raise what it likes
        remedy = f"Choose from: {', '.join(STAND_INS)}, all."
        raise wrong("stand_ins", stand_ins, "names of stand-ins", remedy) from None
    for name in names:
        choose("stand_ins", name, (*STAND_INS, "all"))
    if "all" in names:
        return dict.fromkeys(STAND_INS, False)
    return dict.fromkeys(names, True)


# --- additive terms ------------------------------------------------------------------------------


def _without_biases(model: nn.Module) -> int:
    """Takes all biases away; how many."""
    count = 0
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module, "bias"):
            raise ModelError(
                f"the bias of module '{path or '(model)'}' is computed from other parameters.",
                module=path,
                remedy="Remove that first: torch.nn.utils.parametrize.remove_parametrizations.",
            )
        for key in list(biases_of(module)):
            module.register_parameter(key, None)
            count += 1
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):  # they call for them by position
            for key, parameter in module._parameters.items():
                if "bias" in key and parameter is not None:
                    count += _zero(parameter)
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # as PyTorch does it for layers without biases
    return count


def _without_constants(model: nn.Module, found: Found) -> int:
    """Sets parameters to zero that are added as constants and do nothing else."""
    names = {name for added in found.constants for name in added.origins} - found.weights
    left = dict(model.named_parameters(remove_duplicate=False))
    return sum(_zero(left[name]) for name in names & left.keys())


def _zero(parameter: nn.Parameter) -> int:
    with torch.no_grad():
        changed = parameter.requires_grad or bool(parameter.any())
        parameter.zero_()
    parameter.requires_grad_(False)
    return int(changed)


def _rest(norm: nn.Module) -> nn.Module:
    """What is left of a norm that is removed: what else it has inside."""
    inside = dict(norm.named_children())
    left: nn.Module = nn.Sequential() if inside else nn.Identity()
    for name, act in inside.items():
        left.add_module(name, act)
    left.training = norm.training
    return left


# --- stand-ins -----------------------------------------------------------------------------------


def _stood_in(
    model: nn.Module, kinds: dict[str, bool], found: Found | None
) -> tuple[nn.Module, set[str]]:
    """(the model with stand-ins, those that there was something for)."""
    before = {id(m): m for m in model.modules()}  # kept alive, so that no id is given out again
    model, there = replace_modules(model, kinds)
    if found is None:
        _refuse_unseen(model, kinds, there)
        return model, there
    named = dict(model.named_modules())
    callers: dict[str, tuple[set[str], set[str]]] = {}
    for call in found.calls:
        kind = function_kind(call.operator, call.name)
        # A module that was put there calls nothing of the kind.
        if kind in kinds and call.module in named and id(named[call.module]) in before:
            methods, wanted = callers.setdefault(call.module, (set(), set()))
            methods.add(call.method)
            wanted.add(kind)
    for path, (methods, wanted) in callers.items():
        exchange(named[path], methods, wanted)
        there |= wanted
    return model, there


def _refuse_unseen(model: nn.Module, kinds: dict[str, bool], there: set[str]) -> None:
    """Raises ModelError where functions would have to be exchanged, which only a run can find."""
    remedy = "Functions are found in a run of the model: give convert(inputs=...) an example."
    for path, kind, name in hinted(model, kinds):
        raise ModelError(
            f"stand_ins={kind!r}: module '{path or '(model)'}' calls {name}() as a function.",
            argument="stand_ins",
            got=repr(kind),
            operator=name,
            module=path,
            remedy=remedy,
        )
    for kind, asked in kinds.items():
        if asked and kind not in there:
            raise ModelError(
                f"stand_ins={kind!r}: there is no module of that kind.",
                argument="stand_ins",
                got=repr(kind),
                remedy=remedy,
            )
