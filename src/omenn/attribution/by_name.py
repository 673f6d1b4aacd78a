"""``omenn.explain``: the method by its name, its result with the name and the promise on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from omenn.attribution import method_file, registry
from omenn.attribution.depths import is_module
from omenn.check import quoted
from omenn.engine.target import Target
from omenn.errors import InputError
from omenn.explanation import PROMISES, Explanation


def explain(
    model: nn.Module | Callable[..., Any],
    inputs: Any,
    target: Target = None,
    *,
    method: str = "omenn",
    **options: Any,
) -> Explanation:
    """What a network did with its input: one map per sample, by the exact method or another.

    Args:
        model: a module in evaluation mode, or a function of tensors. It is not touched.
        inputs: a tensor, a tuple (positional arguments) or a dict (keyword arguments); first
            dimension the batch. Floating-point tensors are explained, integer ids at their
            embedding. Images (B, C, H, W), sequences (B, T, D), tables (B, F).
        target: class index, tensor (B,), :class:`~omenn.Contrast`, a callable on the output that
            returns one number per sample, or None for the class with the largest logit.
        method: a name of :func:`omenn.methods`. ``"omenn"`` is the exact one:
            C = C_w ⊙ X + C_b, Σ C = f_c(x); what the others promise is in the result. A path that
            ends in ``.toml``: the method and the options of that file, as ``omenn tune`` writes it.
        options: of the method, ``omenn.methods()[method].options``; for ``"omenn"`` they are
            those of :func:`omenn.attribution.depths.omenn` (``at``, ``mix``, ``resample``,
            ``bias``, ``output``, ``products``, ``channel_dim``, ``create_graph``).

    Raises:
        InputError, TargetError, ModelError: what was given cannot be explained.
        UnsupportedOperator: the model calls something that the method has no rule for.
        MissingExtra: the method needs a package that is not installed.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 3))
        >>> e = omenn.explain(net.eval(), torch.randn(2, 4), target=1)
        >>> assert e.exact and torch.allclose(e.matrix.sum(1), e.output, atol=1e-5)
        >>> other = omenn.explain(net, torch.randn(2, 4), target=1, method="abslrp")
        >>> assert other.promise == "none"

    Source: arXiv 2412.02399; of another method, ``omenn.methods()[method].source``.
    """
    if method != "omenn" and method_file.is_file(method):
        method, options = method_file.with_options(method, options)
    found = registry.find(method)
    at = options.get("at")
    several = isinstance(at, (list, tuple)) or (
        isinstance(at, str) and at == "auto" and not is_module(model, at)
    )
    if several and "at" in found.options and "mix" not in found.options:
        raise InputError(
            f"at={quoted(at)}: method {quoted(method)} does not mix depths.",
            argument="at",
            got=quoted(at),
            remedy=f"Give method {quoted(method)} the name of one module.",
        )
    e = found(model, inputs, target, **options)
    if not isinstance(e, Explanation):
        raise InputError(
            f"method {method!r} returned {type(e).__name__}, but a method returns an Explanation.",
            argument="method",
            got=type(e).__name__,
            expected="Explanation",
            remedy="omenn.attribution.propagate makes one, and so does answered_by of a Question.",
        )
    if method == "omenn":
        return e
    # An option may take a part of the promise back, as a lossy form of the map does.
    promise = max(e.promise, found.promised(options), key=PROMISES.index)
    return replace(e, method=method, promise=promise, own_steps=len(e.processing))
