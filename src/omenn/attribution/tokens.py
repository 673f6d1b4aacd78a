"""Which tokens an attention stands between: the places of its queries and of its values.

Attention weights A (…, L, S) times values (…, S, D). The tracer knows where on the input each
row of either lies. So it is known whether queries and keys are the same tokens in the same
order, the same for every head, which is what a map over tokens takes for granted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omenn.engine.location import Place, compacted, full
from omenn.engine.trace.call import Call
from omenn.errors import UnsupportedOperator

_LETTERS = "abcdefghijklmnopqrstuvw"
_SPARE = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, eq=False)
class Product:
    """Attention weights (B · …, tokens, tokens) as they met their values; places (B, tokens)."""

    operator: str
    module: str
    weights: Tensor
    keys: Place
    queries: Place

    def refused(self, why: str) -> UnsupportedOperator:
        return refused(self.operator, self.module, why)


def refused(operator: str, module: str, why: str) -> UnsupportedOperator:
    """The error for an attention that is no map between the tokens of the input."""
    remedy = "Attention maps follow one sequence of tokens through all layers; use another method."
    return UnsupportedOperator(operator, module, why, remedy)


def same_places(a: Place, b: Place, ones: Sequence[Tensor]) -> bool:
    """Whether two places (B, tokens) are the same means of the locations of the inputs.

    Of two grids the means of a random image are compared: J r for U at the place = J U.
    """
    if a.grid is b.grid:
        return torch.equal(a.cells, b.cells)
    if not torch.equal(a.located(), b.located()):
        return False
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(u.shape, generator=generator).to(u) for u in ones]
    first, second = (_means(place, ones, drawn) for place in (a, b))
    return torch.allclose(first, second, rtol=1e-4, atol=1e-5)


def _means(place: Place, ones: Sequence[Tensor], image: Sequence[Tensor]) -> Tensor:
    with torch.enable_grad():
        u = place.ones()
        rows = torch.zeros_like(u, requires_grad=True)
        back = torch.autograd.grad(u, ones, rows, create_graph=True, allow_unused=True)
        terms = [(g * r).sum() for g, r in zip(back, image, strict=True) if g is not None]
    return torch.autograd.grad(torch.stack(terms).sum(), rows)[0]


def matmul_product(call: Call, left: Tensor, right: Tensor) -> Product:
    """A v, batched as ``torch.matmul`` does it."""
    lead = _LETTERS[: max(left.ndim, right.ndim) - 2]
    column = "" if right.ndim == 1 else "z"
    behind = lead[len(lead) - max(right.ndim - 2, 0) :]
    return _product(
        call, left, right, lead[len(lead) - left.ndim + 2 :] + "xy", behind + "y" + column
    )


def einsum_product(call: Call, attends: Callable[[Tensor], bool]) -> Product | None:
    """A v as an Einstein sum over the last letter of A; None if it is no such product."""
    equation, *operands = call.args
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    if not isinstance(equation, str) or "->" not in equation or len(operands) != 2:
        return None
    terms, out = _terms(equation, operands)
    for k in (0, 1):
        a, v = terms[k], terms[1 - k]
        if attends(operands[k]) and len(set(a)) == len(a) and len(set(v)) == len(v):
            summed = a[-1] in v and a[-1] not in out
            if summed and a[-2] in out and a[-2] not in v:
                return _product(call, operands[k], operands[1 - k], a, v)
    return None


def _terms(equation: str, operands: list[Tensor]) -> tuple[list[str], str]:
    """Letters of the operands and of the output; an ellipsis becomes letters, the last one Z."""
    left, _, out = equation.replace(" ", "").partition("->")
    terms, most = left.split(","), ""
    for k, (term, x) in enumerate(zip(terms, operands, strict=True)):
        if "..." in term:
            letters = _SPARE[len(_SPARE) - (x.ndim - len(term) + 3) :]
            terms[k], most = term.replace("...", letters), max(most, letters, key=len)
    return terms, out.replace("...", most)


def _product(call: Call, left: Tensor, right: Tensor, a: str, v: str) -> Product:
    """Checks that A (letters ``a``) stands between the tokens of v, and tells their places."""
    operator, module = call.operator, call.context.module_path()
    no = lambda why: refused(operator, module, why)  # noqa: E731
    queries, keys = left.shape[-2:]
    there, rows = call.place(right), call.place(left)
    if there is None:
        raise no("its values do not come from the input")
    cells = compacted(full(there.cells, right.shape))
    if any(cells.shape[d] > 1 for d, letter in enumerate(v) if letter not in a):
        raise no("it weighs channels and not tokens (cross-covariance attention)")
    if queries != keys:
        raise no(f"{queries} queries look at {keys} keys (cross-attention, pooling, reduced keys)")
    lead = left.shape[:-2]
    tokens = _by_sample(there, cells, v, a[:-2] + a[-1], (*lead, keys))
    if tokens is None:
        raise no("its weights are not laid out sample by sample, heads behind the batch")
    if not bool((tokens == tokens[:, :1]).all()):
        raise no("it looks at windows, not at all tokens of the input")
    if not bool((there.grid.reason[tokens[:, 0]] == 0).any()):
        raise no("its tokens have no known place on the input")
    if rows is None:
        raise no("its queries do not come from the input")
    cells = compacted(full(rows.cells, left.shape)).narrow(-1, 0, 1)
    asking = _by_sample(rows, cells, a, a[:-1], (*lead, queries))
    if asking is None:
        raise no("its weights are not laid out sample by sample, heads behind the batch")
    places = there.with_cells(tokens[:, 0]), rows.with_cells(asking[:, 0])
    return Product(operator, module, left, *places)


def _by_sample(
    place: Place, cells: Tensor, letters: str, order: str, shape: Sequence[int]
) -> Tensor | None:
    """Cells (…) as (B, heads, tokens), the letters in ``order``; None if B does not come first."""
    gone = [d for d, letter in enumerate(letters) if letter not in order]
    for d in reversed(gone):  # constant along these
        cells = cells.select(d, 0)
    kept = [letter for letter in letters if letter in order]
    cells = cells.permute([kept.index(letter) for letter in order if letter in kept])
    for d, letter in enumerate(order):
        if letter not in kept:
            cells = cells.unsqueeze(d)
    cells = cells.expand(torch.broadcast_shapes(cells.shape, tuple(shape)))
    samples = place.grid.samples
    if cells.shape[0] % samples:
        return None
    cells = cells.reshape(samples, -1, cells.shape[-1])
    own = torch.arange(samples, device=cells.device).reshape(-1, 1, 1)
    return cells if bool((place.grid.sample[cells] == own).all()) else None
