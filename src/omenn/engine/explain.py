"""``explain``: freeze, run, pull back, wrap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from omenn.check import choose, choose_each, flag, wrong
from omenn.engine.depth import RESAMPLINGS
from omenn.engine.explainable import check_model
from omenn.engine.run import FrozenRun
from omenn.engine.target import Target
from omenn.engine.trace.attempt import Pass
from omenn.engine.trace.guards import alone, not_nested
from omenn.engine.trace.tracer import Tracer
from omenn.errors import InputError
from omenn.explanation import Explanation

BIASES = ("spatial", "bilinear", "attention", "uniform", "separate")
PRODUCTS = ("half", "left", "right")


class Rules(Protocol):
    """A table of rules, as the tracer takes it: see :class:`omenn.attribution.RuleTable`."""

    @property
    def freeze_bounded(self) -> bool: ...

    def table(self) -> Any: ...


def tracer_options(products: str, create_graph: bool, rules: Rules | None) -> dict[str, Any]:
    """What the tracer is made with."""
    options: dict[str, Any] = {"products": products, "create_graph": create_graph}
    if not (rules is None or hasattr(rules, "table")):
        raise wrong("rules", rules, "a table of rules, such as omenn.attribution.lrp.gamma()")
    if rules is not None:
        options |= {"rules": rules.table(), "freeze_bounded": rules.freeze_bounded}
    return options


@alone()
def explain(
    model: nn.Module | Callable[..., Any],
    inputs: Any,
    target: Target = None,
    *,
    at: str | None = None,
    resample: str = "bilinear",
    bias: str = "spatial",
    output: Callable[[Any], Tensor] | str | int | None = None,
    products: str = "half",
    channel_dim: int | None = None,
    create_graph: bool = False,
    rules: Rules | None = None,
) -> Explanation:
    """The exact decomposition of one output: C = C_w ⊙ X + C_b with Σ C = f_c(x).

    The model runs with every non-linear coefficient held at its value for this input, and one
    backward pass gives C_w = ∂f_c/∂X and C_b = ∂f_c/∂U ⊙ U of that frozen network, U being
    an image of ones that carries the constants. The ordinary model runs once beside it, as both
    must have the same output (``fidelity``). Further passes are taken where they are needed:
    for the places of a module's output (``at``), and where a target returns one number for the
    batch, constants are differentiated or numbers leave PyTorch. Each starts from the state in
    which the model is given, with copies of the inputs, and the model is left in it.

    Args:
        model: a module in evaluation mode, or a function of tensors.
        inputs: a tensor, a tuple (positional arguments) or a dict (keyword arguments); first
            dimension the batch. Floating-point tensors are explained, integer ids at the rows of
            a table that they stand for (an embedding, ``param[ids]``), 8-bit pictures at their
            pixels; what else is made of integers is a constant of theirs. Images (B, C, H, W),
            sequences (B, T, D), tables (B, F).
        target: class index, tensor (B,), ``Contrast(a, b)``, a callable on the output that returns
            one number per sample, or None for the class with the largest logit. A callable that
            returns a single number explains the batch as one object (a graph, for example).
            Of a model that ends in a sigmoid, a softmax over the classes or a logarithm of one, the
            logit in front of it is explained, and ``explains`` says so; a callable gets what the
            model returned.
        at: dotted name of a module: explain with respect to its output instead of the input.
            ``weight`` and ``contribution`` have the shape of that output; ``matrix`` and ``bias``
            are brought to the locations of the input, if it has a place there.
        resample: how: ``"bilinear"``, ``"nearest"`` (each cell evenly over its block; both keep
            the sum), or ``"none"``: they stay at the locations of the module's output.
        bias: where constants go: ``"spatial"`` to the place of their operator, those of a coarse
            map evenly over blocks; ``"bilinear"`` the same, with smooth kernels that overlap for
            blocks; ``"attention"`` as ``"spatial"``, and those of a class token along the frozen
            attention; ``"uniform"`` evenly over the input; ``"separate"`` kept apart as one number
            per sample. What has no place, and what is spread evenly, goes to the locations that
            act on the output alone.
        output: where the logits are in a structured output: callable, key or index.
        products: of two equally bounded factors ``"half"`` of each stays active, or ``"left"`` or
            ``"right"`` alone.
        channel_dim: the channel dimension of the input, counted from the end, over which the map
            is summed (default −3 for images, −1 for sequences, none for tables and ids, until a
            convolution tells otherwise); 0 keeps all dimensions.
        create_graph: keep the result differentiable with respect to the parameters.
        rules: another table of rules than the frozen one, for example
            ``omenn.attribution.lrp.gamma()``. What its rules keep goes to the places of their
            operators, as constants do, so that the sum is exact whatever the rules are.

    Raises:
        InputError, TargetError, ModelError: what was given cannot be explained.
        UnsupportedOperator: the model calls something that is not provably linear.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 3))
        >>> e = omenn.explain(net.eval(), torch.randn(2, 4), target=1)
        >>> assert e.exact and torch.allclose(e.matrix.sum(1), e.output, atol=1e-5)

    Source: arXiv 2412.02399.
    """
    choose_each(
        bias=(bias, BIASES), products=(products, PRODUCTS), resample=(resample, RESAMPLINGS)
    )
    flag("create_graph", create_graph)
    options = tracer_options(products, create_graph, rules)
    run = FrozenRun(model, inputs, at, bias, channel_dim, options, resample=resample)
    f, index = run.target(target, output)
    run.compare(output)
    gradients = run.pull_back(f, create_graph=create_graph)
    return run.wrap(f, index, gradients)


@contextmanager
def frozen(
    *inputs: Tensor,
    model: nn.Module | None = None,
    products: str = "half",
    create_graph: bool = False,
) -> Iterator[Tracer]:
    """Inside, a model runs frozen: autograd with respect to ``inputs`` is W(x).

    Each of ``inputs`` must require gradients. Constants are not collected (see :func:`explain`).

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 5, bias=False), torch.nn.GELU()).eval()
        >>> x = torch.randn(1, 3, requires_grad=True)
        >>> with omenn.frozen(x):
        ...     y = net(x).sum()
        >>> (w,) = torch.autograd.grad(y, x)
        >>> assert torch.allclose((w * x).sum(), y, atol=1e-6)
    """
    choose("products", products, PRODUCTS)
    flag("create_graph", create_graph)
    if model is not None and not isinstance(model, nn.Module):
        raise InputError("model= is the torch.nn.Module that runs inside, or None for any code.")
    check_model(model, None)
    for x in inputs:
        plain = isinstance(x, Tensor) and not isinstance(x, UninitializedParameter)
        if not (plain and x.requires_grad) or x.is_inference():
            raise InputError(
                "omenn.frozen needs the tensors to differentiate by, each with requires_grad=True; "
                "call x.requires_grad_() first, outside of torch.inference_mode."
            )
    not_nested()
    with alone():
        how = Pass(keep_history=True)  # what is made here is differentiated by the caller
        mode = Tracer(model, products=products, create_graph=create_graph, how=how)
        for x in inputs:
            mode.follow_own(x)
        with torch.enable_grad(), mode:
            yield mode
