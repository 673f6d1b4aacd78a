"""Leading singular triplets of a matrix that is known by its products alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from omenn.check import quoted
from omenn.errors import InputError


class SVD(NamedTuple):
    """Singular triplets: W ≈ left · diag(values) · rightᵀ, the largest value first."""

    left: Tensor
    values: Tensor
    right: Tensor

    # Tensors have no truth value to compare tuples by.
    __eq__, __ne__ = object.__eq__, object.__ne__
    __hash__ = object.__hash__


class Products(Protocol):
    """A matrix (outputs, inputs) that can be multiplied from both sides."""

    shape: tuple[int, int]
    input: Tensor

    def matmat(self, v: Any) -> Any: ...
    def rmatmat(self, u: Any) -> Any: ...


def leading_triplets(w: Products, k: int, tolerance: float | None, rounds: int) -> SVD:
    """The k leading singular triplets of ``w``.

    Rayleigh and Ritz on a block Krylov space of the shorter side (q, in what follows; p is the
    longer one): the space grows by the residuals of the k leading triplets. A block of k finds
    singular values that occur up to k times, which a single vector would miss. When it is wide,
    it is started again from its best half ("thick restart").
    """
    outputs, inputs = w.shape
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= min(w.shape):
        raise InputError(
            f"svd({quoted(k)}): a matrix of {outputs} × {inputs} has 1 to {min(w.shape)} singular "
            "triplets. Choose k among them."
        )
    wide = outputs <= inputs
    forth, back = (w.rmatmat, w.matmat) if wide else (w.matmat, w.rmatmat)
    eps = torch.finfo(w.input.dtype).eps
    p, values, q = _iterate(
        forth, back, _start(min(w.shape), k, w.input), eps**0.5 if tolerance is None else tolerance,
        rounds,
    )  # fmt: skip
    return SVD(q, values, p) if wide else SVD(p, values, q)


def _start(size: int, k: int, like: Tensor) -> Tensor:
    """k orthonormal columns, the same every time; the global random state is not touched."""
    source = torch.Generator().manual_seed(0)
    start = torch.randn(size, k, generator=source, dtype=torch.float64)
    return torch.linalg.qr(start)[0].to(like)


def _iterate(
    forth: Callable[[Tensor], Tensor],
    back: Callable[[Tensor], Tensor],
    basis: Tensor,
    tolerance: float,
    rounds: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(p, values, q): ``forth`` takes q-vectors to p-vectors, ``back`` is its transpose."""
    size, k = basis.shape
    most = max(8 * k, 32)
    image, missed = forth(basis), float("inf")
    for _ in range(rounds):
        p, values, mix = torch.linalg.svd(image, full_matrices=False)
        q = basis @ mix.T
        residual = back(p[:, :k]) - q[:, :k] * values[:k]
        missed = float(residual.norm(dim=0).max())
        if missed <= tolerance * float(values[0]):
            return p[:, :k], values[:k], q[:, :k]
        if basis.shape[1] + k > most and basis.shape[1] < size:
            kept = most // 2
            basis, image = q[:, :kept], p[:, :kept] * values[:kept]
        fresh = _orthonormal(residual, basis)
        basis, image = torch.cat([basis, fresh], 1), torch.cat([image, forth(fresh)], 1)
    raise InputError(
        f"svd({k}): after {rounds} rounds the residual is {missed:.1e}, above the tolerance "
        f"{tolerance:.1e} · σ. Pass a higher rounds= or tolerance=."
    )


def _orthonormal(vectors: Tensor, basis: Tensor) -> Tensor:
    """The part of ``vectors`` that is not in the span of ``basis``, as orthonormal columns."""
    room = basis.shape[0] - basis.shape[1]
    for _ in range(2):  # twice is enough
        vectors = vectors - basis @ (basis.T @ vectors)
        vectors, sizes, _ = torch.linalg.svd(vectors, full_matrices=False)
        vectors = vectors[:, sizes > sizes[:1] * torch.finfo(vectors.dtype).eps * 100][:, :room]
    return vectors
