"""A prior on attributions as a term of a loss."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from omenn.check import SEEDS, choose, misshapen, positive, quoted, real, whole, wrong
from omenn.engine.explain import BIASES, PRODUCTS
from omenn.engine.trace.guards import alone
from omenn.errors import InputError, did_you_mean
from omenn.xdnn.priors import attributions as by
from omenn.xdnn.priors.attributions import Samples, rows_of
from omenn.xdnn.priors.penalties import PRIORS, Prior, find

# Method → its options and their defaults.
METHODS: dict[str, dict[str, Any]] = {
    "gradient": {},
    "xgradient": {},
    "integrated-gradients": {"steps": 16, "baseline": 0.0, "chunk": 1024},
    "expected-gradients": {"steps": 1, "references": None, "chunk": 1024},
    "omenn": {"bias": "spatial", "products": "half", "channel_dim": None},
}


class TermNotFinite(InputError):
    """The weight makes the term of the loss infinite: a training stops at this step."""


class AttributionPrior:
    """weight · prior(attributions of the model), to be added to a loss.

    ``loss = criterion(model(x), y) + prior(model, x, y)``. The attributions are shaped like x and
    belong to output y of each sample. Their derivative by the parameters is the true one: that of
    ``"omenn"`` passes through the frozen coefficients as they depend on the parameters. The model
    runs in evaluation mode and without autocast for it; its flags are as before afterwards. Under
    ``torch.no_grad`` the term is a mere number.

    Args:
        prior: a name of :data:`~omenn.xdnn.priors.PRIORS`, or a function ``prior(attributions,
            **context)`` that returns one number; it gets the part of the context that it names.
        weight: of the prior in the loss, 0 or more; with 0 nothing is computed.
        method: ``"gradient"`` ∂f/∂x; ``"xgradient"`` x ⊙ ∂f/∂x; ``"integrated-gradients"``
            (x − x₀) ⊙ mean_k ∂f/∂x(x₀ + (k + ½)/K · (x − x₀)); ``"expected-gradients"``
            mean_k (x − r_k) ⊙ ∂f/∂x(r_k + α_k (x − r_k)), references r and α ~ U(0, 1) drawn anew
            for each sample; ``"omenn"`` C_w ⊙ X + C_b, C_b spread over the channels, exact for any
            architecture that :func:`omenn.explain` takes.
        fraction: of the batch, ⌈fraction · B⌉ random samples, to which the term is confined. Half
            of them cost half of the time, and the term stays right on average.
        seed: of these samples, and of references and α.
        output: where the logits are in a structured output: callable, key or index.
        options: ``steps``, K: points (16), or references for each sample (1). ``baseline``, x₀:
            0, a number or a tensor. ``references`` (N, …): rows of the training data. ``chunk``:
            so many points go through the model together (1024). Of ``"omenn"``: ``bias``,
            ``products`` and ``channel_dim``, see :func:`omenn.engine.explain.explain`.

    Raises:
        InputError: an unknown prior, method or option, a value that does not fit, attributions
            that are not finite, a prior that returns no number or has no derivative.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 3))
        >>> x, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0])
        >>> prior = AttributionPrior("sparsity", 0.1, "omenn")
        >>> loss = torch.nn.functional.cross_entropy(net(x), y) + prior(net, x, y)
        >>> loss.backward()
        >>> assert net.training and net[0].weight.grad.any()

    Source: Ross et al. 2017, arXiv 1703.03717 (gradient); Erion et al. 2021, arXiv 1906.10670
    (expected gradients); Hesse et al. 2021, arXiv 2111.07668 (x ⊙ gradient).
    """

    def __init__(
        self,
        prior: str | Prior,
        weight: float,
        method: str = "xgradient",
        *,
        fraction: float = 1.0,
        seed: int = 0,
        output: Any = None,
        **options: Any,
    ) -> None:
        self.prior, self.takes = find(prior), _takes(find(prior))
        self.name = prior if isinstance(prior, str) else getattr(prior, "__name__", "prior")
        if method not in METHODS:
            raise InputError(
                f"unknown method {method!r} of attributions:",
                argument="method",
                got=quoted(method),
                remedy=did_you_mean(str(method), METHODS),
            )
        self.weight = real("weight", weight, 0)
        self.fraction = real("fraction", positive("fraction", fraction), 0, 1)
        seed = whole("seed", seed, *SEEDS)
        self.method, self.output = method, output
        self.options = _checked(method, options)
        self._generator = torch.Generator().manual_seed(seed)

    def __repr__(self) -> str:
        part = "" if self.fraction == 1 else f", fraction={self.fraction:g}"
        return f"AttributionPrior({self.name!r}, {self.weight:g}, {self.method!r}{part})"

    def __call__(self, model: Any, x: Any, y: Any = None, **context: Any) -> Tensor:
        """The term of the loss, a scalar.

        Args:
            model: a module that takes x, in any mode.
            x: (B, …), or a mapping of keyword arguments, of which one is of real numbers. If it
                has a history (vectors from an embedding), the term has a derivative there, too.
            y: index of an output for each sample (B,), or one for all; None for the largest one,
                which is the output itself of a model that has a single one.
            context: for the prior (``mask=``, ``sign=``). Tensors whose first dimension is B have
                a row for each sample, and with ``fraction`` the same samples are taken of them.
        """
        batch = Samples.of(model, x, y, self.output)
        self._known(context)
        if not self.weight:
            return torch.zeros((), device=batch.x.device)
        samples, whole = len(batch.x), tuple(batch.x.shape)
        count = max(1, math.ceil(self.fraction * samples - 1e-9))
        if count < samples:
            rows = torch.randperm(samples, generator=self._generator)[:count]
            batch = batch.rows(rows)
            if self.prior in PRIORS.values():  # of a prior of one's own nothing is known
                _check_rows(context, whole)
            context = {k: _subset(k, v, rows, whole) for k, v in context.items()}
        return self._judged(self._attributed(batch), {"target": batch.index, **context})

    def attributions(self, model: Any, x: Any, y: Any = None) -> Tensor:
        """What the prior is a function of, for all samples: shaped like x, differentiable."""
        return self._attributed(Samples.of(model, x, y, self.output))

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed training needs to draw the same samples as an uninterrupted one."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken. Raises InputError for another kind of state."""
        try:
            self._generator.set_state(state["generator"].cpu())
        except (KeyError, TypeError, AttributeError, RuntimeError):
            raise InputError(
                "this is not the state of an attribution prior.",
                argument="state",
                got=quoted(state),
                remedy="Give what its state_dict() returned.",
            ) from None

    # --- attributions ----------------------------------------------------------------------

    @alone()
    def _attributed(self, batch: Samples) -> Tensor:
        graph, x = torch.is_grad_enabled(), batch.x
        if self.method != "omenn" and not x.is_floating_point():
            raise InputError(
                f"x holds {str(x.dtype)[6:]} ids, which have no gradient.",
                argument="x",
                got=str(x.dtype)[6:],
                expected="real numbers",
                remedy="Give what they are embedded to, or choose method='omenn', which explains "
                "them at their embedding.",
            )
        dtype = by.own_type(batch.model, x) if x.is_floating_point() else x.dtype
        with by.evaluating(batch.model, x.device):
            batch.x = by.ordinary(x if graph else x.detach()).to(dtype)
            batch.y = by.ordinary(batch.y)
            batch.beside = {k: by.ordinary(v) for k, v in batch.beside.items()}
            found = self._found(batch, graph)
        if found.dtype in (torch.float16, torch.bfloat16):
            found = found.float()
        bad = int((~torch.isfinite(found.detach())).sum())
        if bad:
            raise InputError(
                f"the attributions have {bad} values that are NaN or infinite, of {found.numel()}.",
                argument="x",
                remedy="Check the weights and the input; a training that has diverged needs a "
                "smaller learning rate or weight of the prior.",
            )
        return found

    def _found(self, batch: Samples, graph: bool) -> Tensor:
        x, options = batch.x, self.options
        if self.method == "omenn":
            return by.explained(batch, options, graph)
        if self.method in ("gradient", "xgradient"):
            found = by.gradient(batch, graph)
            return found if self.method == "gradient" else found * x
        steps = options["steps"]
        if self.method == "integrated-gradients":
            starts = _expanded(options["baseline"], x)
            shares = (torch.arange(steps, dtype=x.dtype, device=x.device) + 0.5) / steps
            shares = shares.expand(len(x), steps)
        else:
            starts, shares = self._drawn(x, steps)
        return by.along(batch, starts, shares, options["chunk"], graph)

    def _drawn(self, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """References (B, K, …) and shares (B, K)."""
        rows = self.options["references"]
        if rows.shape[1:] != x.shape[1:]:
            expected = f"(N, {', '.join(map(str, x.shape[1:]))})"
            raise misshapen("references", rows, expected)
        drawn = torch.randint(len(rows), (len(x), steps), generator=self._generator)
        shares = torch.rand(len(x), steps, generator=self._generator, dtype=torch.float64)
        return rows[drawn.to(rows.device)].to(x), shares.to(x)

    # --- the prior -------------------------------------------------------------------------

    def _known(self, context: dict[str, Any]) -> None:
        """Raises InputError for what the prior would never see."""
        if self.takes is None:
            return
        for name in context:
            if name not in self.takes:
                hint = did_you_mean(name, self.takes)
                text = f"the prior {self.name!r} does not take {name}=:"
                raise InputError(text, argument=name, remedy=hint)

    def _judged(self, attributions: Tensor, context: dict[str, Any]) -> Tensor:
        takes = self.takes
        given = context if takes is None else {k: v for k, v in context.items() if k in takes}
        with torch.autocast(attributions.device.type, enabled=False):
            value = self.prior(attributions, **given)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            got = type(value).__name__
            if isinstance(value, Tensor):
                got = f"a tensor {tuple(value.shape)} of {str(value.dtype)[6:]}"
            raise InputError(
                f"the prior {self.name!r} returned {got}; it must return one real number as a "
                "tensor, for example a mean.",
                argument="prior",
                got=got,
                expected="one real number as a tensor",
            )
        if attributions.requires_grad and not value.requires_grad:
            raise InputError(
                f"the prior {self.name!r} has no derivative: its value does not depend on the "
                "attributions by differentiable operators (detach, item, argmax, rounding).",
                argument="prior",
                got=self.name,
            )
        term = self.weight * value.reshape(())
        if not bool(torch.isfinite(term.detach())):
            said = (
                f"the prior {self.name!r} is {float(value.detach()):g} at finite attributions, "
                f"times the weight {self.weight:g}"
            )
            if bool(torch.isfinite(value.detach())):
                text = f"{said}, which is too large: the loss would not be finite."
                raise TermNotFinite(text, argument="weight", got=f"{self.weight:g}")
            raise InputError(f"{said}: the loss would not be finite.", argument="prior")
        return term


def _takes(prior: Prior) -> tuple[str, ...] | None:
    """The names of the context that a prior takes; None if it takes any."""
    try:
        function = prior.forward if isinstance(prior, nn.Module) else prior
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a function that does not tell
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return tuple(p.name for p in named if p is not parameters[0])


def _checked(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a method, complete."""
    own = METHODS[method]
    for name in options:
        if name not in own:
            known = {k for table in METHODS.values() for k in table}
            has = f"its options are {', '.join(own)}." if own else "it has none."
            hint = has if name in known else did_you_mean(name, sorted(own or known))
            text = f"method {method!r} has no option {name!r}:"
            raise InputError(text, argument=name, expected=", ".join(own), remedy=hint)
    found = own | options
    for name in ("steps", "chunk"):
        whole(name, found.get(name, 1), 1)
    if "references" in own:
        _check_references(found["references"])
    if method == "omenn":
        choose("bias", found["bias"], BIASES)
        choose("products", found["products"], PRODUCTS)
    return found


def _check_references(rows: Any) -> None:
    if not isinstance(rows, Tensor) or not rows.is_floating_point() or not rows.numel():
        remedy = "Expected gradients draw their starting points from training rows."
        raise wrong("references", rows, "a tensor (N, …) of real numbers", remedy)
    if not bool(torch.isfinite(rows).all()):
        raise InputError("references have values that are NaN or infinite.", argument="references")


def _expanded(baseline: Any, x: Tensor) -> Tensor:
    """The baseline as starts (B, 1, …)."""
    try:
        return torch.as_tensor(baseline).to(x).expand(x.shape).unsqueeze(1)
    except (RuntimeError, TypeError, ValueError):
        expected = f"a number, or a tensor that expands to {tuple(x.shape)}"
        raise wrong("baseline", baseline, expected) from None


def _check_rows(context: Mapping[str, Any], whole: tuple[int, ...]) -> None:
    """Refuse a tensor with rows for other samples than the batch has.

    Of a part of the batch it would be taken as it is: its rows might belong to none of them.
    """
    for name, value in context.items():
        if not isinstance(value, Tensor) or not value.ndim:
            continue
        one = name == "sign" and value.ndim < len(whole)
        if not one and len(value) not in (1, whole[0]):
            raise InputError(
                f"{name} {tuple(value.shape)} has {len(value)} rows for a batch of {whole[0]} "
                "samples.",
                argument=name,
                got=f"{len(value)} rows",
                expected=f"{whole[0]} rows",
                remedy="Give one for each sample of the whole batch, also with fraction below 1.",
            )


def _subset(name: str, value: Any, rows: Tensor, whole: tuple[int, ...]) -> Any:
    """The rows of some samples, where a tensor of the context has a row for each."""
    samples = whole[0]
    if isinstance(value, Tensor) and value.shape == whole[1:] and value.shape[:1] == (samples,):
        raise InputError(
            f"{name} {tuple(value.shape)} may be one sample or a row for each of {samples}.",
            argument=name,
            got=str(tuple(value.shape)),
            remedy="With fraction below 1 give it with a dimension more: (1, …) for all samples "
            "alike.",
        )
    return rows_of(value, rows, samples)
