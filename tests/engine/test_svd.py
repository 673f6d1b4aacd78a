"""Singular triplets of an operator, against the dense decomposition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import omenn
from nets.whole import NETWORKS, by_rows, close, made
from omenn.engine import svd
from omenn.engine.svd import leading_triplets
from opcases.case import draw

every_network = pytest.mark.parametrize("name", NETWORKS)


class Dense:
    """A dense matrix behind the interface of an operator, which counts its products."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.shape, self.products = matrix, tuple(matrix.shape), 0
        self.input = torch.ones(matrix.shape[1], dtype=matrix.dtype)

    def matmat(self, v: Tensor) -> Tensor:
        self.products += v.shape[1]
        return self.matrix @ v

    def rmatmat(self, u: Tensor) -> Tensor:
        self.products += u.shape[1]
        return self.matrix.T @ u


def spectrum(values: Tensor, rows: int, columns: int, seed: int = 0) -> Tensor:
    """A matrix with these singular values."""
    source = torch.Generator().manual_seed(seed)
    n = len(values)
    a, b = (torch.randn(s, n, generator=source, dtype=values.dtype) for s in (rows, columns))
    return torch.linalg.qr(a)[0] @ torch.diag(values) @ torch.linalg.qr(b)[0].T


def check_svd(found: tuple[Tensor, Tensor, Tensor], w: Tensor, k: int, tol: float = 1e-7) -> None:
    left, values, right = found
    assert (left.shape, values.shape, right.shape) == ((len(w), k), (k,), (w.shape[1], k))
    top = float(values[0]) + 1e-300
    dense = np.linalg.svd(w.numpy(), compute_uv=False)[:k]
    np.testing.assert_allclose(values.numpy(), dense, rtol=0, atol=tol * top)
    close(left.T @ left, torch.eye(k).to(w), tol)
    close(right.T @ right, torch.eye(k).to(w), tol)
    assert float((w @ right - left * values).norm()) <= 10 * tol * top
    assert float((w.T @ left - right * values).norm()) <= 10 * tol * top


@every_network
def test_svd_of_a_network(name: str) -> None:
    op, net, x = made(name, chunk=2)
    w = by_rows(net, x)
    for k in (1, 2, min(op.shape)):
        found = op.svd(k)
        check_svd(found, w, k)
        assert bool((op.input @ found.right >= -1e-12).all())
    close(found.left @ torch.diag(found.values) @ found.right.T, w, 1e-7)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (40, 900), (1, 50), (50, 1)])
def test_svd_of_a_matrix(shape: tuple[int, int]) -> None:
    n = min(shape)
    w = spectrum(torch.linspace(1, 0.01, n).double() ** 2, *shape)
    k = min(4, n)
    check_svd(leading_triplets(Dense(w), k, 1e-9, 500), w, k)


def test_svd_of_repeated_values() -> None:
    """A block of k finds a value that occurs k times, which a single vector would miss."""
    w = spectrum(torch.tensor([2.0, 2, 2, 1, 1, 1, 1, 1]).double(), 30, 40)
    check_svd(leading_triplets(Dense(w), 3, None, 50), w, 3)
    check_svd(leading_triplets(Dense(w), 5, None, 50), w, 5)
    eye = torch.eye(20).double()
    check_svd(leading_triplets(Dense(eye), 4, None, 50), eye, 4)


def test_svd_of_low_rank() -> None:
    w = spectrum(torch.tensor([3.0, 1]).double(), 30, 40)
    check_svd(leading_triplets(Dense(w), 4, None, 50), w, 4)


def test_svd_starts_again_where_the_space_is_full(monkeypatch) -> None:
    """A slowly falling spectrum needs more directions than are kept."""
    widths, ordinary = [], svd._orthonormal
    monkeypatch.setattr(
        svd, "_orthonormal", lambda v, basis: widths.append(basis.shape[1]) or ordinary(v, basis)
    )
    w = Dense(spectrum(1 - torch.arange(400).double() / 4000, 400, 500))
    check_svd(leading_triplets(w, 2, 1e-8, 400), w.matrix, 2)
    assert w.products > 2 * 32
    assert max(widths) <= 32


def test_new_directions_leave_the_space_in_one_step() -> None:
    """Also where almost all of them lies in it, and where there is less room than directions."""
    basis = torch.linalg.qr(draw(12, 10))[0]
    near = basis @ draw(10, 6) + 1e-9 * draw(12, 6)
    fresh = svd._orthonormal(near, basis)
    assert fresh.shape == (12, 2)
    close(fresh.T @ fresh, torch.eye(2).double(), 1e-12)
    close(basis.T @ fresh, torch.zeros(10, 2).double(), 1e-12)
    assert svd._orthonormal(draw(12, 3), torch.linalg.qr(draw(12, 12))[0]).shape == (12, 0)


def test_svd_in_single_precision() -> None:
    w = spectrum(torch.linspace(1, 0.1, 60), 60, 80)
    assert w.dtype == torch.float32
    check_svd(leading_triplets(Dense(w), 3, None, 200), w, 3, 1e-3)


def test_svd_that_does_not_converge() -> None:
    w = Dense(spectrum(torch.linspace(1, 0.9, 200).double(), 200, 200))
    remedy = r"svd\(3\): after 2 rounds the residual is .*e-0\d, above the tolerance 1\.0e-12 · σ"
    with pytest.raises(omenn.InputError, match=remedy):
        leading_triplets(w, 3, 1e-12, 2)


def test_svd_does_not_touch_the_random_state() -> None:
    op, _, _ = made("convnet")
    before = torch.random.get_rng_state()
    again = [op.svd(2), op.svd(2)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(again[0].right, again[1].right)
