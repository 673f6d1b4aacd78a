"""Norms and distances: homogeneous of degree one, so the gradient at fixed coefficients adds up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from omenn.engine import location as places
from omenn.engine.operators import degrees
from omenn.engine.operators.composed import composed
from omenn.engine.operators.linear import reduced
from omenn.engine.operators.record import Operator, same, unlocated
from omenn.engine.trace.autograd_nodes import scaled
from omenn.engine.trace.call import Call


def normed(call: Call) -> Any:
    """‖x‖ = Σ ⟦∂‖x‖/∂x⟧ x by Euler; for the Euclidean norm ⟦x/‖x‖⟧."""
    p, x = call.get("p", "fro"), call.active[0]
    if p == 0 and not isinstance(p, str):
        return call.freeze()  # a count
    value = call.value()
    true = call.true(x)
    if p not in (2, 2.0, "fro", None) or (p == 2 and _spectral(call, x)):
        return call.frozen(x, value, _spread(call, x), _gradient(call, x, true))
    keep = _keep(call, x, call.true_value())
    safe = torch.where(keep == 0, torch.ones_like(keep), keep)
    return call.frozen(x, value, _spread(call, x), true / safe)


def _gradient(call: Call, x: Tensor, true: Tensor) -> Tensor:
    """∂‖x‖/∂x for each norm of the output, zero where it has none."""
    further = call.context.create_graph
    with torch.enable_grad():
        at = true if further and true.requires_grad else true.detach().requires_grad_()
        norm = call.run(lambda t: at if t is x else call.constant(t))
        (found,) = torch.autograd.grad(norm.sum(), at, create_graph=further)
    return torch.where(found.isfinite(), found, torch.zeros_like(found))


def _spectral(call: Call, x: Tensor) -> bool:
    """Whether a 2 means the largest singular value: it does for matrices in ``torch.linalg``."""
    dim = call.get("dim")
    pair = len(dim) == 2 if isinstance(dim, (tuple, list)) else dim is None and x.ndim == 2
    return call.func is torch.linalg.matrix_norm or (call.func is torch.linalg.norm and pair)


def spread_out(call: Call) -> Any:
    """var = Σ ⟦(x − μ)/n⟧ x; std divides by ⟦std⟧ again."""
    x = call.active[0]
    value, true = call.value(), call.true(x)
    spread = call.true_value()
    keep = _keep(call, x, spread)
    dims = _dims(call, x)
    centred = true - true.mean(dims, keepdim=True)
    total = (centred * centred).sum(dims, keepdim=True)
    # The divisor (n or n − 1) is read off the value itself, whatever the spelling of it.
    target = keep if call.operator == "var" else keep * keep
    inverse = torch.where(total == 0, torch.zeros_like(total), target / total)
    if call.operator == "std":
        inverse = inverse / torch.where(keep == 0, torch.ones_like(keep), keep)
    return call.frozen(x, value, _spread(call, x), centred * inverse)


def mean_of_numbers(call: Call) -> Any:
    """``nanmean``: Σ ⟦1/n⟧ x over the n elements that are numbers."""
    if not call.context.how.finite:
        return call.run()
    x, dims = call.active[0], _dims(call, call.active[0])
    counted = call.true(x).isnan().logical_not()
    count = counted.sum(dims, keepdim=True)
    return call.frozen(x, call.value(), _spread(call, x), counted.to(x.dtype) / count)


def _dims(call: Call, x: Tensor) -> list[int]:
    dim = call.get("dim")
    if dim is None and call.func is torch.linalg.matrix_norm:
        dim = (-2, -1)
    if dim is None or isinstance(dim, bool) or (isinstance(dim, (list, tuple)) and not dim):
        return list(range(x.ndim))
    return [d % x.ndim for d in (dim if isinstance(dim, (list, tuple)) else [dim])]


def _keep(call: Call, x: Tensor, reduced_value: Tensor) -> Tensor:
    """The reduced value with the reduced dimensions kept as 1."""
    dims = _dims(call, x)
    return reduced_value.reshape([1 if d in dims else n for d, n in enumerate(x.shape)])


def _spread(call: Call, x: Tensor) -> Any:
    """The gradient at the norms, one for each group, times the coefficients in the group.

    The coefficients are laid out as x, whatever the order of the dimensions of a matrix norm.
    """
    dims = _dims(call, x)
    shape = [1 if d in dims else n for d, n in enumerate(x.shape)]
    return lambda grad, coefficient: grad.reshape(shape) * coefficient


def renormed(call: Call) -> Tensor:
    """x ⟦min(1, bound/‖x‖)⟧ for each slice along a dimension."""
    x = call.active[0]
    p, dim, bound = call.get("p"), call.get("dim"), call.get("maxnorm")
    true = call.true(x)
    norm = torch.linalg.vector_norm(
        true, p, [d for d in range(x.ndim) if d != dim % x.ndim], keepdim=True
    )
    factor = torch.where(norm > bound, bound / (norm + 1e-7), torch.ones_like(norm))
    return call.frozen(x, call.value(), scaled, factor)


def paired(call: Call) -> Tensor:
    """``cdist``: D = ‖a − b‖ for all pairs of rows; at fixed D its gradients are two products."""
    a, b = call.get("x1"), call.get("x2")
    p = call.get("p", 2.0)
    euclidean = p == 2 and not a.is_complex()
    if euclidean and not (call.is_active(a) and call.is_active(b)):
        return _to_constant(call, a, b)
    with call.context:  # back in force
        if not euclidean:
            out = torch.linalg.vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, -1)
            mark = call.context.worn(out)
            call.places = [None if mark is None else mark.place]
            return out
        lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        both = torch.cat([t.expand(*lead, *t.shape[-2:]) for t in (a, b)], -2)
    value, (a, b) = call.value(), (call.true(t) for t in (a, b))
    vjp = lambda grad, *inner: torch.cat(_differences(grad, *inner), -2)  # noqa: E731
    return call.frozen(both, value, vjp, a, b, call.true_value())


def _differences(grad: Tensor, a: Tensor, b: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients Σ_j g_ij (a_i − b_j)/D_ij and Σ_i g_ij (b_j − a_i)/D_ij."""
    c = _divided(grad, distance)
    return c.sum(-1, keepdim=True) * a - c @ b, c.sum(-2).unsqueeze(-1) * b - c.mT @ a


def _divided(t: Tensor, distance: Tensor) -> Tensor:
    return torch.where(distance == 0, 0, t / torch.where(distance == 0, 1, distance))


def _to_constant(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Distances to constant rows c (prototypes), which every sample uses: D = ⟦(x − c)/D⟧ (x − c).

    The constant term of each pair lies with the row of x, and not with that of c.
    """
    first = call.is_active(a)
    x, dim = (a, -2) if first else (b, -1)
    shape, a, b, distance = x.shape, call.true(a), call.true(b), call.true_value()
    pull = lambda grad, *inner: _differences(grad, *inner)[not first].sum_to_size(shape)  # noqa: E731
    out = call.frozen(x, call.value(), pull, a, b, distance)
    c = b if first else a
    return call.attach(out, _divided((c * c).sum(-1).unsqueeze(dim) - a @ b.mT, distance))


def paired_place(call: Call, out: Tensor) -> Any:
    """No known place, but of the sample of its row of a; of b, where only that has a place."""
    b = call.get("x2")
    place = call.place(b)
    if place is None or call.place(call.get("x1")) is not None:
        return unlocated(call, out)
    there = places.nowhere(place, b.shape, out.mT.shape)
    return there.with_cells(there.cells.mT)


# --- written out -------------------------------------------------------------------------------


def _pairwise(
    x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    return torch.linalg.vector_norm(x1 - x2 + eps, p, -1, keepdim)


def _dist(input: Tensor, other: Tensor, p: float = 2) -> Tensor:
    return torch.linalg.vector_norm(input - other, p)


def _pdist(input: Tensor, p: float = 2) -> Tensor:
    i, j = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return torch.linalg.vector_norm(input[i] - input[j], p, -1)


def _frobenius(input: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    return torch.linalg.vector_norm(input, 2, dim or None, keepdim)


def _nuclear(input: Tensor, dim: Any = (-2, -1), keepdim: bool = False) -> Tensor:
    return torch.linalg.matrix_norm(input, "nuc", dim, keepdim)


_OVER = "input dim correction keepdim"

RECORDS: dict[str, Operator] = {
    "norm": Operator(
        normed,
        reduced,
        degrees.norm,
        names="vector_norm matrix_norm",
        arguments="input p dim keepdim dtype",
    ),
    "var": Operator(spread_out, reduced, 2, arguments=_OVER),
    "std": Operator(spread_out, reduced, 1, arguments=_OVER),
    "nanmean": Operator(
        mean_of_numbers, reduced, 1, arguments="input dim keepdim", true=True, kind="sum"
    ),
    "renorm": Operator(
        renormed, same, degrees.joining("input", "maxnorm"), arguments="input p dim maxnorm"
    ),
    "cdist": Operator(paired, paired_place, degrees.distance, arguments="x1 x2 p", terms=True),
    "pairwise_distance": composed(_pairwise),
    "dist": composed(_dist),
    "pdist": composed(_pdist),
    "frobenius_norm": composed(_frobenius),
    "nuclear_norm": composed(_nuclear),
}
