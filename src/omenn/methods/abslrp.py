"""absLRP: relative absolute magnitude, contrastive, each input of an operator normalised alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from omenn.core.call import Call, substitute
from omenn.core.explain import FrozenRun, Gradients, choose
from omenn.core.explanation import Explanation
from omenn.core.place import Place
from omenn.core.rules import OPERATORS
from omenn.core.surroundings import alone
from omenn.core.target import Contrast, Target, pick_output
from omenn.methods.attnlrp import joint
from omenn.methods.propagation import Book, book_run, ruled, stabilised
from omenn.methods.registry import method

TINY = 1e-9
POOLING = ("auto", "divided", "undivided")

# What is not listed here moves or selects numbers, or is a constant factor: it passes R on.
_ELEMENTWISE = (
    "relu leaky_relu rrelu prelu clamp abs gelu silu elu softplus mish tanh sigmoid logsigmoid "
    "hardsigmoid hardswish softsign erf tanhshrink softshrink"
)
_MIXING = "linear conv conv_transpose matmul bmm einsum addmm baddbmm addbmm bilinear"
_AVERAGING = "sum mean avg_pool interpolate"

Values = Sequence[Tensor]
Function = Callable[[Values], Tensor]


def relevance(
    xs: Values, k: int, grad: Tensor, function: Function, absolute: Function, divide: bool = True
) -> Tensor:
    """g at the k-th input: R_in / x = ∂/∂x Σ s (h + h_a), s = R_out / (|h| + 1e-9), R_out = g h.

    The other inputs are constants. ``divide=False``: s = R_out.
    """
    with torch.enable_grad():
        leaf = xs[k].detach().requires_grad_()
        here = [leaf if i == k else t.detach() for i, t in enumerate(xs)]
        h, h_a = function(here), absolute([t.abs() for t in here])
        s = grad * h.detach()
        s = s / (h.detach().abs() + TINY) if divide else s
        return torch.autograd.grad((s * (h + h_a)).sum(), leaf)[0]


def normalised(x: Tensor, grad: Tensor, place: Place | None) -> Tensor:
    """g scaled so that Σ|x ⊙ g| is one in each sample."""
    size = (x * grad).abs()
    if place is None:
        total = size.flatten(1).sum(1) if size.ndim > 1 else size
        return grad / (total.reshape(-1, *[1] * (grad.ndim - 1)) + TINY)
    sample = place.grid.sample[place.cells]
    total = torch.zeros(place.grid.samples, dtype=size.dtype, device=size.device)
    total = total.index_add(0, sample.expand(size.shape).reshape(-1), size.reshape(-1))
    return grad / (total + TINY)[sample]


def relative(
    call: Call, function: Function, absolute: Function, divide: Callable[[], bool] | None = None
) -> Any:
    """The rule of absLRP for a call: each input that carries, alone."""
    xs = list({id(t): t for t in call.carried}.values())
    where = [call.place(t) for t in xs]

    def vjp(grad: Tensor, *inner: Tensor) -> tuple[Tensor, ...]:
        divided = divide is None or divide()
        found = [relevance(inner, k, grad, function, absolute, divided) for k in range(len(inner))]
        return tuple(map(normalised, inner, found, where))

    return joint(call, vjp, xs)


def _called(call: Call, absolute: bool) -> Function:
    """The call as a function of its inputs; ``absolute``: its constants by their magnitudes."""
    xs = list({id(t): t for t in call.carried}.values())

    def function(values: Values) -> Tensor:
        known = {id(x): v for x, v in zip(xs, values, strict=True)}

        def sub(t: Tensor) -> Tensor:
            if id(t) in known:  # a copy, where the operator writes into it
                return known[id(t)].clone() if call.inplace else known[id(t)]
            return t.detach().abs() if absolute and t.is_floating_point() else t.detach()

        return call.func(*substitute(call.args, sub), **substitute(call.kwargs, sub))

    return function


def general(call: Call) -> Any:
    """h_a = f(|x|; |W|, |b|)."""
    return relative(call, _called(call, False), _called(call, True))


def pooled(pooling: str) -> Callable[[Call], Any]:
    """Max pooling, divided by |h| or not; ``auto``: not, if the model adds no two branches."""

    def rule(call: Call) -> Any:
        if "with_indices" in getattr(call.func, "__name__", "") or call.get("return_indices"):
            return OPERATORS["max_pool"].rule(call)
        owner = call.owner
        divide = lambda: pooling == "divided" or (pooling == "auto" and "added" in owner.notes)  # noqa: E731
        return relative(call, _called(call, False), _called(call, True), divide)

    return rule


def added(call: Call) -> Any:
    """a ± α b: h_a = |a| + |α b|, also for a difference; an infinite constant is a mask."""
    a, b = call.get("input"), call.get("other")
    a, b = (b, a) if call.reverse else (a, b)
    constant = b if call.is_carried(a) else a
    if len(call.carried) == 2:
        call.owner.notes["added"] = True
    elif isinstance(constant, Tensor) and not bool(torch.isfinite(constant).all()):
        return OPERATORS[call.operator].rule(call)
    if a is b or not isinstance(b, Tensor) or not isinstance(a, Tensor):
        return OPERATORS[call.operator].rule(call)
    alpha = call.get("alpha") if call.get("alpha") is not None else 1
    alpha = -alpha if call.operator == "sub" else alpha
    xs = list({id(t): t for t in call.carried}.values())

    def total(values: Values, factor: Any, constant: Callable[[Tensor], Tensor]) -> Tensor:
        known = {id(x): v for x, v in zip(xs, values, strict=True)}
        first, second = (known.get(id(t), constant(t.detach())) for t in (a, b))
        return first + factor * second

    return relative(
        call,
        lambda values: total(values, alpha, lambda t: t),
        lambda values: total(values, abs(alpha), torch.abs),
    )


def multiplied(call: Call) -> Any:
    """Two factors that carry are two inputs; a constant factor only rescales, R passes it."""
    if len(call.carried) < 2 or call.get("input") is call.get("other"):
        return OPERATORS[call.operator].rule(call)
    return general(call)


def softmax(call: Call) -> Any:
    """exp(x − max) / Σ with the sum held constant; h_a is that of |x|."""
    dim = call.get("dim", -1)
    dtype = call.get("dtype")
    negative = getattr(call.func, "__name__", "") == "softmin"

    def function(values: Values, sign: int = -1 if negative else 1) -> Tensor:
        x = values[0] if dtype is None else values[0].to(dtype)
        return _exponentials(sign * x, dim)

    masked = torch.isinf(call.carried[0].detach())

    def absolute(values: Values) -> Tensor:
        return function([values[0].masked_fill(masked, -torch.inf)], 1)

    return relative(call, function, absolute if bool(masked.any()) else lambda v: function(v, 1))


def _exponentials(x: Tensor, dim: int) -> Tensor:
    e = torch.exp(x - x.detach().amax(dim, keepdim=True))
    return (e / e.detach().sum(dim, keepdim=True)).nan_to_num()


def normalisation(call: Call) -> Any:
    """γ (x − μ)/σ + β with μ and σ held constant: h_a = |γ/σ| |x| + |β − γ μ/σ|."""
    if len(call.carried) > 1 or call.get("training"):
        return OPERATORS[call.operator].rule(call)
    x = call.carried[0]
    scale = _scale(call, call.true(x))
    value = call.value()

    def function(values: Values) -> Tensor:
        # h as it is; what depends on the leaf is scale · x.
        return scale * values[0] + (value - scale * values[0]).detach()

    return relative(call, function, lambda values: scale.abs() * values[0])


def _scale(call: Call, x: Tensor) -> Tensor:
    """γ/σ for each element of x."""
    weight = call.get("weight")
    eps: float | None = call.get("eps")
    if eps is None:
        eps = torch.finfo(x.dtype).eps if call.operator == "rms_norm" else 1e-5
    column = (-1, *[1] * (x.ndim - 2))
    if call.operator == "batch_norm" or call.get("use_input_stats") is False:
        rstd = torch.rsqrt(call.constant(call.get("running_var")) + eps).reshape(column)
    elif call.operator in ("layer_norm", "rms_norm"):
        dims, column = list(range(-len(call.get("normalized_shape")), 0)), None
        if call.operator == "layer_norm":
            rstd = torch.rsqrt(x.var(dims, unbiased=False, keepdim=True) + eps)
        else:
            rstd = torch.rsqrt((x * x).mean(dims, keepdim=True) + eps)
    else:
        groups = x.shape[1] if call.operator == "instance_norm" else call.get("num_groups")
        flat = x.reshape(x.shape[0], groups, -1)
        rstd = torch.rsqrt(flat.var(-1, unbiased=False, keepdim=True) + eps)
        rstd = rstd.expand(flat.shape).reshape(x.shape)
    if weight is None:
        return rstd
    weight = call.constant(weight)
    return rstd * (weight if column is None else weight.reshape(column))


def attention(call: Call) -> Any:
    """Fused attention in its parts: q kᵀ, softmax and A V, each by the rule."""
    if call.get("dropout_p"):
        raise call.refuse("attention dropout is active", "Call model.eval() before explaining.")
    given = [call.get(name) for name in ("query", "key", "value")]
    if call.get("enable_gqa") or not all(map(call.is_carried, given)):
        return OPERATORS[call.operator].rule(call)
    scale, mask = call.get("scale"), call.get("attn_mask")
    scale = 1 / math.sqrt(given[0].shape[-1]) if scale is None else scale
    mask = call.true(mask) if isinstance(mask, Tensor) else None
    where = [call.place(t) for t in given]
    samples = where[0] and _of_rows(where[0], given[0])

    def vjp(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        logits = q @ k.transpose(-2, -1) * scale
        if call.get("is_causal"):
            seen = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).tril()
            logits = logits.masked_fill(~seen, -torch.inf)
        if mask is not None:
            boolean = mask.dtype == torch.bool
            logits = logits.masked_fill(~mask, -torch.inf) if boolean else logits + mask
        weights = _exponentials(logits, -1)
        product: Function = lambda t: t[0] @ t[1]  # noqa: E731
        pair = [weights, v]
        to_weights = relevance(pair, 0, grad, product, product)
        to_weights = normalised(weights, to_weights, samples)
        to_v = normalised(v, relevance(pair, 1, grad, product, product), where[2])
        hidden = torch.isinf(logits)
        to_logits = relevance(
            [logits],
            0,
            to_weights,
            lambda t: _exponentials(t[0], -1),
            lambda t: _exponentials(t[0].masked_fill(hidden, -torch.inf), -1),
        )
        logits = logits.masked_fill(hidden, 0)
        to_logits = normalised(logits, to_logits.masked_fill(hidden, 0), samples) * scale
        scores: Function = lambda t: t[0] @ t[1].transpose(-2, -1)  # noqa: E731
        back = [relevance([q, k], i, to_logits, scores, scores) for i in (0, 1)]
        return normalised(q, back[0], where[0]), normalised(k, back[1], where[1]), to_v

    return joint(call, vjp, given)


def _of_rows(place: Place, x: Tensor) -> Place:
    """The place of something with the rows of x, and other columns: only samples matter."""
    return place.with_cells(place.cells.expand(x.shape)[..., :1])


def abslrp_book(pooling: str = "auto") -> Book:
    rows = ruled(f"{_ELEMENTWISE} {_MIXING} {_AVERAGING}", general)
    rows |= ruled("add sub", added) | ruled("mul div", multiplied)
    rows |= ruled("softmax", softmax) | ruled("max_pool", pooled(pooling))
    rows |= ruled("layer_norm group_norm instance_norm rms_norm batch_norm", normalisation)
    rows |= ruled("scaled_dot_product_attention", attention)
    return Book(rows, ranked=False)


@method(
    "abslrp",
    promise="none",
    summary="relative absolute magnitude of contributions, target against the other classes",
    source="arXiv 2412.09311",
)
@alone()
def abslrp(
    model: Any,
    inputs: Any,
    target: Target = None,
    *,
    pooling: str = "auto",
    contrastive: bool = True,
    at: str | None = None,
    output: Any = None,
    channel_dim: int | None = None,
) -> Explanation:
    """Relevance by relative absolute magnitude, R_i = 2 Σ_j max(x_i w_ij, 0) R_j / |h_j|.

    After every operator Σ|R| = 1 for each of its inputs alone, so that both branches of a residual
    addition count the same. The result is R₊ − R₋ over its largest magnitude, where R₊ starts at
    the target, and R₋ evenly at all other classes; ``Contrast(a, b)`` starts R₋ at b. A map of
    shares, not of the logit: its sum means nothing.

    Args:
        pooling: max pooling ``"divided"`` by |h| (ResNet), ``"undivided"`` (VGG), or ``"auto"``:
            divided if the model adds two branches anywhere.
        contrastive: without it the result is R₊. A target that is a callable has no other classes.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(),
        ...                           torch.nn.Linear(4, 2)).eval()
        >>> e = omenn.explain(net, torch.rand(1, 3), method="abslrp", contrastive=False)
        >>> assert abs(float(e.matrix.abs().max()) - 1) < 1e-6

    Source: Vukadin et al. 2024, arXiv 2412.09311, section 3.
    """
    choose("pooling", pooling, POOLING)
    book = abslrp_book(pooling)
    run = book_run(model, inputs, book, at=at, channel_dim=channel_dim, places=True)
    f, index = run.target(target, output)
    starts = _starts(run, f, index, target, output, contrastive)
    found = [run.pull_back(start, retain=k + 1 < len(starts)) for k, start in enumerate(starts)]
    first = found[0].inputs
    if len(found) > 1:
        first = [a - b for a, b in zip(first, found[1].inputs, strict=True)]
    return run.wrap(f, index, Gradients(_largest_one(run, first), [], {}))


def _starts(
    run: FrozenRun, f: Tensor, index: Tensor, target: Target, output: Any, contrastive: bool
) -> list[Tensor]:
    """What to pull back: R₊ and R₋ of one unit each, as numbers whose gradient is R / z."""
    if callable(target) and not isinstance(target, Contrast):
        return [f / stabilised(f.detach(), TINY)]
    logits = pick_output(run.out, output)
    logits = logits.unsqueeze(1) if logits.ndim == 1 else logits
    chosen = torch.nn.functional.one_hot(index, logits.shape[1]).to(logits.dtype)
    shares = [chosen]
    if contrastive and logits.shape[1] > 1:
        against = target if isinstance(target, Contrast) else Contrast(index, "rest")
        shares.append(against.against(logits.detach()))
    with torch.enable_grad():
        unit = logits / stabilised(logits.detach(), TINY)
        return [(unit * share).sum(1) for share in shares]


def _largest_one(run: FrozenRun, weights: list[Tensor]) -> list[Tensor]:
    """Weights scaled so that the largest |R| of each sample is one."""
    feed = run.feed
    dims = [feed.batch[k] if feed.batched else None for k in range(len(weights))]
    tops = []
    for w, x, dim in zip(weights, feed.values, dims, strict=True):
        size = (w * x).abs()
        size = size.unsqueeze(0) if dim is None else size.movedim(dim, 0)
        tops.append(size.reshape(feed.samples, -1).amax(1))
    top = torch.stack(tops).amax(0)
    top = torch.where(top == 0, torch.ones_like(top), top)
    return [
        w / top
        if dim is None
        else (w.movedim(dim, -1) / top.repeat_interleave(w.shape[dim] // len(top))).movedim(-1, dim)
        for w, dim in zip(weights, dims, strict=True)
    ]
