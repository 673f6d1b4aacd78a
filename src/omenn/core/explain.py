"""``explain``: freeze, run, pull back, wrap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omenn.core.autograd import last_pass, own_precision
from omenn.core.explanation import TOLERANCES, Explanation, located_shares
from omenn.core.graph import violations
from omenn.core.inputs import NOT_COLLECTED, Feed
from omenn.core.intercept import Interceptor
from omenn.core.models import check_model
from omenn.core.place import REASONS
from omenn.core.surroundings import alone, not_nested
from omenn.core.target import Target, pick_output, select
from omenn.errors import (
    InputError,
    ModelError,
    OmennError,
    TargetError,
    UnsupportedOperator,
    reason,
)

BIASES = ("spatial", "attention", "uniform", "separate")
PRODUCTS = ("half", "left", "right")


@alone()
def explain(
    model: nn.Module | Callable[..., Any],
    inputs: Any,
    target: Target = None,
    *,
    at: str | None = None,
    bias: str = "spatial",
    output: Callable[[Any], Tensor] | str | int | None = None,
    products: str = "half",
    channel_dim: int | None = None,
    create_graph: bool = False,
) -> Explanation:
    """The exact decomposition of one output: C = C_w ⊙ X + C_b with Σ C = f_c(x).

    The model runs once with every non-linear coefficient held at its value for this input, and
    one backward pass gives C_w = ∂f_c/∂X and C_b = ∂f_c/∂U ⊙ U of that frozen network, U being
    an image of ones that carries the constants. The model is not touched.

    Args:
        model: a module in evaluation mode, or a function of tensors.
        inputs: a tensor, a tuple (positional arguments) or a dict (keyword arguments); first
            dimension the batch. Floating-point tensors are explained, integer ids at their
            embedding. Images (B, C, H, W), sequences (B, T, D), tables (B, F).
        target: class index, tensor (B,), ``Contrast(a, b)``, a callable on the output that returns
            one number per sample, or None for the class with the largest logit. A callable that
            returns a single number explains the batch as one object (a graph, for example).
        at: dotted name of a module: explain with respect to its output instead of the input.
        bias: where constants go: ``"spatial"`` to the place of their operator; ``"attention"`` the
            same, and those of a class token along the frozen attention; ``"uniform"`` evenly over
            the input; ``"separate"`` kept apart as one number per sample.
        output: where the logits are in a structured output: callable, key or index.
        products: of two equally bounded factors ``"half"`` of each carries, or ``"left"`` or
            ``"right"`` alone.
        channel_dim: the channel dimension of the input, counted from the end (default −3 for
            images, −1 for sequences, none for tables).
        create_graph: keep the result differentiable with respect to the parameters.

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
    choose("bias", bias, BIASES)
    choose("products", products, PRODUCTS)
    options = {"products": products, "create_graph": create_graph}
    run = FrozenRun(model, inputs, at, bias, channel_dim, options)
    f, index = run.target(target, output)
    gradients = run.pull_back(f, create_graph=create_graph)
    return run.wrap(f, index, gradients)


def choose(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raises InputError for a value of an option that is none of the allowed ones."""
    if value not in allowed:
        raise InputError(f"{name}={value!r} is not known. Choose one of: {', '.join(allowed)}.")


@dataclass
class Gradients:
    """What one explained number has at inputs, at their ones and, by module, at constants."""

    inputs: list[Tensor]
    ones: list[Tensor]
    sources: dict[str, Tensor]


class FrozenRun:
    """One forward pass of the frozen model, from which outputs are pulled back.

    With ``bias`` in ``NOT_COLLECTED`` constants are not carried along, as the other books want it.
    ``options`` go to the interceptor, which may be another than the engine's own.
    """

    def __init__(
        self,
        model: Any,
        inputs: Any,
        at: str | None,
        bias: str,
        channel_dim: int | None,
        options: dict[str, Any],
        interceptor: type[Interceptor] = Interceptor,
    ) -> None:
        check_model(model, at)
        self.interceptor = interceptor
        self.model, self.raw, self.at, self.bias = model, inputs, at, bias
        self.channel_dim, self.options = channel_dim, options
        self._forward(batched=True)

    def _forward(self, batched: bool) -> None:
        module = self.model if isinstance(self.model, nn.Module) else None
        self.mode = self.interceptor(module, **self.options)
        self.feed = Feed(self.mode, self.raw, self.bias, self.channel_dim, batched)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                self.out = self.feed.run(self.model, self.at)
        except (OmennError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise self._blame(error) from error

    def _blame(self, error: Exception) -> OmennError:
        """Whose exception it was: the ordinary model's on this input, or that of freezing it."""
        args, kwargs = self.feed.arguments()
        try:
            with torch.no_grad():
                self.model(*args, **kwargs)
        except Exception as own:
            return InputError(f"the model cannot take {self.feed.described()}: {reason(own)}.")
        return ModelError(
            f"the model runs, but not in its frozen form: {reason(error)}. Explain at a later "
            "module with at=, or report it with the model."
        )

    def target(self, target: Target, output: Any = None) -> tuple[Tensor, Tensor]:
        """(f, class index): the explained numbers (B,), checked to be finite and affine."""
        f, index = self._select(target, output)
        if f.ndim == 0 and self.feed.batched:
            # One number for the whole batch: the samples are one object.
            self._forward(batched=False)
            f, index = self._select(target, output)
        if self.feed.mismatch is not None:
            raise InputError(
                f"a tensor of the shape {self.feed.mismatch} has no dimension for the batch of "
                f"{self.feed.samples} samples. Give all inputs the same first dimension, or a "
                "target that returns one number for the whole batch."
            )
        self._check(f)
        if f.ndim == 0:
            with torch.enable_grad(), self.mode:
                f = f.reshape(-1)
        if f.shape[0] != self.feed.samples:
            raise TargetError(
                f"the target gives {f.shape[0]} numbers for {self.feed.samples} samples. Return "
                "one number per sample, or a single one to explain the batch as one object."
            )
        return f, index

    def _select(self, target: Target, output: Any) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad(), self.mode:
            return select(pick_output(self.out, output), target, self.feed.samples)

    def _check(self, f: Tensor) -> None:
        if not bool(torch.isfinite(f.detach()).all()):
            raise InputError(
                "the model's output is not finite (NaN or infinite), so there is nothing to "
                "explain. Check the weights and the range of the input."
            )
        mark = self.mode.mark_of(f)
        if mark is None or not f.is_floating_point():
            where = f"the output of '{self.at}'" if self.at else "the input"
            raise TargetError(f"the explained output does not depend on {where}.")
        if mark.kind != "carried":
            raise UnsupportedOperator(
                self.mode.held or "softmax",
                "",
                "the output is a frozen coefficient (a softmax, a logarithm, 1/x), which has no "
                "linear part",
                "Explain the logits before it: output=... or a model without the last operator.",
            )
        bad = violations(f, self.feed.leaves)
        if bad:
            raise UnsupportedOperator(
                bad[0].strip("'"),
                "",
                "the autograd graph has a node that is not linear at fixed coefficients",
                "It was reached by code that the interceptor cannot see; use its plain form.",
            )

    def pull_back(self, f: Tensor, retain: bool = False, create_graph: bool = False) -> Gradients:
        """∂Σf/∂(inputs, ones, sources) of the frozen network."""
        return self._sorted(self._gradients(f, torch.ones_like(f), retain, create_graph))

    def pull_back_together(self, rows: Sequence[Tensor], retain: bool) -> list[Gradients]:
        """The gradients of several explained numbers in one pass, which holds them all."""
        if len(rows) == 1:
            return [self.pull_back(rows[0], retain)]
        with torch.enable_grad():
            f = torch.stack(list(rows))
        each = torch.eye(len(f), dtype=f.dtype, device=f.device).unsqueeze(-1).expand(-1, *f.shape)
        grads = self._gradients(f, each, retain, batched=True)
        return [
            self._sorted([None if g is None else g[k] for g in grads]) for k in range(len(rows))
        ]

    def _leaves(self) -> list[Tensor]:
        """Explained inputs, then their ones, as far as these are wanted."""
        return [*self.feed.leaves, *(u for u in self.feed.ones if u.requires_grad)]

    def _gradients(
        self,
        f: Tensor,
        grad: Tensor,
        retain: bool,
        create_graph: bool = False,
        batched: bool = False,
    ) -> Sequence[Tensor | None]:
        wrt = [*self._leaves(), *self.mode.constants.ones()]
        keep = retain or create_graph
        try:
            with own_precision(f), last_pass(not (keep or batched)):
                return torch.autograd.grad(
                    f, wrt, grad, keep, create_graph, allow_unused=True, is_grads_batched=batched
                )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            remedy = "Pull rows back one by one with chunk=1; turn" if batched else "Turn"
            raise ModelError(
                f"the model runs, but cannot be pulled back: {reason(error)}. {remedy} gradient "
                "checkpointing off; write in place only into what no other operator needs."
            ) from error

    def _sorted(self, grads: Sequence[Tensor | None]) -> Gradients:
        """Gradients at the leaves, zero where none arrived; those at the constants summed."""
        leaves, n = self._leaves(), len(self.feed.leaves)
        filled = [
            torch.zeros_like(w) if g is None else g
            for g, w in zip(grads[: len(leaves)], leaves, strict=True)
        ]
        terms = list(grads[len(leaves) :])
        sources = self.mode.constants.by_module(terms, self.feed.samples)
        return Gradients(filled[:n], filled[n:], sources)

    def wrap(self, f: Tensor, index: Tensor, g: Gradients) -> Explanation:
        """The explanation from one set of gradients."""
        feed, samples = self.feed, self.feed.samples
        wide = torch.float64 if f.dtype == torch.float64 else torch.float32
        contribution, matrix, bias = [], [], []
        # Rows: located, and one for each reason why not.
        none = torch.zeros(0, (1 + len(REASONS)) * samples, dtype=wide, device=f.device)
        rows = torch.stack(list(g.sources.values())) if g.sources else none
        split = rows.reshape(len(rows), 1 + len(REASONS), samples)
        located, unlocated = located_shares(list(g.sources), split.detach())
        summed = split.sum(1)
        sources = dict(zip(g.sources, summed.unbind(), strict=True))
        apart = self.bias == "separate"
        constant = summed.sum(0)
        for k, (x, w) in enumerate(zip(feed.values, g.inputs, strict=True)):
            c = w.to(wide) * x.to(wide)
            total = feed.located_sum(c, k)
            if self.bias in NOT_COLLECTED:
                b = torch.zeros_like(total)
            elif apart:
                b = constant / len(feed.values)
            else:
                b = feed.batch_first(g.ones[k], k)  # U is one: C_b = ∂f/∂U ⊙ U
            contribution.append(c)
            bias.append(b)
            matrix.append(total if apart else total + b)
        residual, magnitude = _sums(f, matrix, bias if apart else [], samples)
        # A model that computes in float32 inside float64 is exact to float32.
        dtype = self.mode.coarsest or feed.values[0].dtype
        return Explanation(
            output=self._ordinary(f),
            target=index,
            inputs=feed.shaped(feed.values),
            weight=feed.shaped(g.inputs),
            contribution=feed.shaped(contribution),
            bias=constant if apart else feed.shaped(bias),
            matrix=feed.shaped(matrix),
            residual=residual,
            magnitude=magnitude,
            sources=sources,
            located=located,
            unlocated=unlocated,
            tolerance=TOLERANCES.get(dtype, 1e-5),
            at=self.at,
            bias_placement=self.bias,
            products=self.options.get("products", "half"),
            frozen_constants=tuple(sorted(self.mode.frozen_constants)),
        )

    def _ordinary(self, f: Tensor) -> Tensor:
        """f without history; or as the ordinary network gives it, where derivatives are wanted."""
        mark = self.mode.mark_of(f) if self.options.get("create_graph") else None
        return f.detach() if mark is None or mark.true is None else mark.true


def _sums(
    f: Tensor, matrix: list[Tensor], apart: list[Tensor], samples: int
) -> tuple[Tensor, Tensor]:
    """(f − ΣC, Σ|C|) per sample, in double precision."""
    flat = [m.detach().double().reshape(samples, -1) for m in [*matrix, *apart]]
    total = torch.stack([m.sum(1) for m in flat]).sum(0)
    magnitude = torch.stack([m.abs().sum(1) for m in flat]).sum(0)
    return f.detach().double() - total, magnitude


@contextmanager
def frozen(
    *inputs: Tensor,
    model: nn.Module | None = None,
    products: str = "half",
    create_graph: bool = False,
) -> Iterator[Interceptor]:
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
    check_model(model, None)
    for x in inputs:
        if not (isinstance(x, Tensor) and x.requires_grad) or x.is_inference():
            raise InputError(
                "omenn.frozen needs the tensors to differentiate by, each with requires_grad=True; "
                "call x.requires_grad_() first, outside of torch.inference_mode."
            )
    mode = Interceptor(model, products=products, create_graph=create_graph)
    Feed.register(mode, inputs)
    not_nested()
    with alone(), torch.enable_grad(), mode:
        yield mode
