"""``omenn.operator``: W(x) as a matrix that is never stored, against the dense one."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from nets.whole import IMAGE, NETWORKS, Recurrent, ViT, by_rows, close, convnet, made, mlp
from omenn.engine.operators.record import same
from omenn.engine.operators.table import OPERATORS, Operator
from opcases.case import Case, draw
from opcases.linear import seeded
from opdb import dense, each_case
from oracle import flat, unflat

every_network = pytest.mark.parametrize("name", NETWORKS)


# --- against the dense matrix --------------------------------------------------------------------


@each_case(few=True)
def test_every_operator_forward_and_back(case: Case) -> None:
    """One vector each way through every case of the database, against its oracle."""
    wanted = dense(case)
    op = omenn.operator(lambda v: case.call(*unflat(v, case.inputs)), flat(case.inputs))
    v, u = draw(op.shape[1], seed=3), draw(op.shape[0], seed=4)
    assert op.exact
    close(op.matvec(v), wanted.weight @ v, 10 * case.tolerance)
    close(op.rmatvec(u), wanted.weight.T @ u, 10 * case.tolerance)
    close(op.constant, wanted.bias, 10 * case.tolerance)


def test_mlp_by_its_formula() -> None:
    net, x = mlp(), draw(1, 4)
    first, last = net[0], net[2]
    gate = torch.diag((first(x)[0] > 0).double())
    weight = (last.weight @ gate @ first.weight).detach()
    constant = (last.weight @ gate @ first.bias + last.bias).detach()
    op = omenn.operator(net, x)
    close(op.to_dense(), weight)
    close(op.constant, constant)
    close(op.value, net(x)[0].detach())
    close(op.input, x[0])
    assert (op.shape, op.input_shape, op.output_shape) == ((5, 4), (1, 4), (1, 5))
    assert op.dtype == np.float64


@every_network
@pytest.mark.parametrize("chunk", [1, 4])
def test_dense_matrix(name: str, chunk: int) -> None:
    op, net, x = made(name, chunk=chunk)
    wanted = by_rows(net, x)
    close(op.rows(slice(None)), wanted)
    close(op.columns(slice(None)), wanted)
    close(op.to_dense(), wanted)
    v, u = draw(op.shape[1], 3), draw(op.shape[0], 3)
    close(op.matmat(v), wanted @ v)
    close(op.rmatmat(u), wanted.T @ u)
    close(op @ v, wanted @ v)
    close(op @ v[:, 0], wanted @ v[:, 0])
    close(op.matvec(v[:, :1]), wanted @ v[:, :1])


@every_network
def test_all_outputs_at_once(name: str) -> None:
    op, net, x = made(name)
    assert op.exact
    assert op.residual.shape == op.value.shape == op.constant.shape == op.shape[:1]
    close(op.value.reshape(op.output_shape), net(x).detach(), 1e-12)
    close(op @ op.input + op.constant, op.value, 1e-12)
    assert float(op.residual.abs().max()) < 1e-12


@every_network
def test_constant_is_that_of_the_rows(name: str) -> None:
    op, net, x = made(name)
    for k in (0, op.shape[0] - 1):
        e = omenn.explain(net, x, lambda z, k=k: z.reshape(-1)[k])
        close(op.constant[k], e.bias.sum())
        close(op.rows(k)[0].reshape(e.weight.shape), e.weight)


@settings(max_examples=25)
@given(name=st.sampled_from(sorted(NETWORKS)), seed=st.integers(0, 2**32 - 1),
       chunk=st.sampled_from([1, 3]), scale=st.sampled_from([1e-3, 1.0, 1e3]))  # fmt: skip
def test_back_is_the_transpose_of_forward(name: str, seed: int, chunk: int, scale: float) -> None:
    op, _, _ = made(name, chunk=chunk)
    source = torch.Generator().manual_seed(seed)
    v = torch.randn(op.shape[1], 3, generator=source, dtype=torch.float64)
    u = scale * torch.randn(op.shape[0], 3, generator=source, dtype=torch.float64)
    wv, wu = op.matmat(v), op.rmatmat(u)
    size = float(wv.norm() * u.norm() + 1)
    assert torch.allclose(u.T @ wv, wu.T @ v, rtol=1e-11, atol=1e-12 * size)
    assert torch.allclose(op @ (2 * v[:, 0] - v[:, 1]), 2 * wv[:, 0] - wv[:, 1], atol=1e-10)


def test_rows_and_columns_that_are_chosen() -> None:
    op, net, x = made("convnet")
    w = by_rows(net, x)
    for indices in (2, -1, [3, 0], slice(1, 3), range(2), torch.tensor([1, 1]), []):
        chosen = list(indices) if isinstance(indices, range) else indices
        rows = torch.arange(4)[chosen].reshape(-1)
        close(op.rows(indices), w[rows])
        close(op.columns(indices), w[:, torch.arange(72)[chosen].reshape(-1)])


def test_batch_is_one_object() -> None:
    """Independent samples are the blocks of one block-diagonal matrix."""
    net, x = mlp(), draw(2, 4)
    w = omenn.operator(net, x).to_dense()
    for k in (0, 1):
        block = omenn.operator(net, x[k : k + 1]).to_dense()
        close(w[5 * k : 5 * k + 5, 4 * k : 4 * k + 4], block)
    assert not w[:5, 4:].any()
    assert not w[5:, :4].any()


def test_rows_are_chosen_by_output() -> None:
    op, net, x = made("vit", output=lambda z: z[:, [3, 1]])
    close(op.to_dense(), by_rows(net, x)[[3, 1]])
    assert op.output_shape == (1, 2)


@pytest.mark.parametrize("products", ["half", "left", "right"])
def test_products(products: str) -> None:
    x = draw(1, 4)
    op = omenn.operator(lambda t: t[:, :2] * t[:, 2:], x, products=products)
    left, right = {"half": (0.5, 0.5), "left": (1, 0), "right": (0, 1)}[products]
    wanted = torch.cat([left * torch.diag(x[0, 2:]), right * torch.diag(x[0, :2])], 1)
    close(op.to_dense(), wanted)


def test_output_that_does_not_move() -> None:
    """Every unit is off: W is zero, and f is the constant."""
    net = seeded(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    net[0].bias.data.fill_(-100)
    op = omenn.operator(net, draw(1, 3))
    assert op.exact
    assert not op.to_dense().any()
    close(op.constant, net[2].bias.detach())
    assert op.svd(2).values.tolist() == [0, 0]


def test_gradients_that_are_zero_by_chance(monkeypatch) -> None:
    """What a rule leaves out because it is zero for one vector is there for another."""

    def rule(call):
        vjp = lambda g: torch.where(g.detach() != 0, -g, torch.zeros_like(g))  # noqa: E731
        return call.frozen(call.active[0], call.value(), vjp)

    x = draw(1, 4)
    centred = lambda t: F.layer_norm(torch.neg(t), (4,))  # noqa: E731  # W 1 = 0
    wanted = omenn.operator(centred, x).to_dense()
    monkeypatch.setitem(OPERATORS, "neg", Operator(rule, same))
    close(omenn.operator(centred, x).columns(slice(None)), wanted)


# --- from one module to another ------------------------------------------------------------------


def test_parts_multiply_to_the_whole() -> None:
    net = convnet()
    w = omenn.operator(net, IMAGE).to_dense()
    front = omenn.operator(net, IMAGE, to="1")
    middle = omenn.operator(net, IMAGE, from_="1", to="2.1")
    back = omenn.operator(net, IMAGE, from_="2.1")
    assert front.output_shape == middle.input_shape == (1, 4, 3, 3)
    assert middle.output_shape == back.input_shape == (1, 3, 1, 1)
    assert all(op.exact for op in (front, middle, back))
    close(back.to_dense() @ middle.to_dense() @ front.to_dense(), w)
    close(middle.input, front.value)
    constant = back @ (middle @ front.constant + middle.constant) + back.constant
    close(constant, omenn.operator(net, IMAGE).constant)


def test_parts_between_tokens() -> None:
    net = seeded(ViT())
    parts = [("blocks.0", None), ("blocks.1", "blocks.0"), (None, "blocks.1")]
    first, second, last = (omenn.operator(net, IMAGE, to=to, from_=a) for to, a in parts)
    close(second.to_dense() @ first.to_dense(), omenn.operator(net, IMAGE, to="blocks").to_dense())
    close(last.to_dense() @ second.to_dense(), omenn.operator(net, IMAGE, "blocks.0").to_dense())


def test_at_is_from() -> None:
    net = convnet()
    got = omenn.operator(net, IMAGE, "1").to_dense()
    close(got, omenn.operator(net, IMAGE, at="1").to_dense())
    close(got, omenn.operator(net, IMAGE, from_="1").to_dense())
    close(got, omenn.rows(net, IMAGE, range(4), at="1").weight.reshape(4, -1))


def test_output_that_is_written_into_later() -> None:
    """A batch norm whose output an in-place ReLU overwrites."""
    net = convnet()
    op = omenn.operator(net, IMAGE, to="0.1")
    close(op.value.reshape(op.output_shape), net[0][:2](IMAGE).detach())
    close(op.to_dense(), by_rows(net[0][:2].eval(), IMAGE))


def test_what_follows_need_not_be_supported() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.lgamma(self.a(x))
            history.append(y.requires_grad)
            return y

    history: list[bool] = []
    net = seeded(Net())
    close(omenn.operator(net, draw(1, 4), to="a").to_dense(), net.a.weight.detach())
    assert history == [False, False]  # of the frozen pass, and of the ordinary one beside it
    assert torch.is_grad_enabled()


def test_output_in_a_structure() -> None:
    net, x = seeded(Recurrent()), draw(1, 4, 3)
    first = omenn.operator(net, x, to="lstm")
    assert first.output_shape == (1, 4, 4)
    cell = omenn.operator(net, x, to="lstm", output=lambda out: out[1][1])
    close(cell.value, net.lstm(x)[1][1].detach().reshape(-1))
    assert cell.exact


# --- with NumPy and SciPy ------------------------------------------------------------------------


def test_scipy_takes_it_as_it_is() -> None:
    op, net, x = made("segmentation")
    w = by_rows(net, x).numpy()
    values = scipy.sparse.linalg.svds(op, k=3, return_singular_vectors=False)
    wanted = np.linalg.svd(w, compute_uv=False)[:3]
    np.testing.assert_allclose(np.sort(values)[::-1], wanted, rtol=1e-9)
    b = np.linspace(-1, 1, op.shape[0])
    got = scipy.sparse.linalg.lsqr(op, b, damp=0.1, atol=1e-13, btol=1e-13, iter_lim=2000)[0]
    normal = np.linalg.solve(w.T @ w + 0.01 * np.eye(w.shape[1]), w.T @ b)
    np.testing.assert_allclose(got, normal, atol=1e-7)


def test_as_a_linear_operator() -> None:
    op, net, x = made("convnet")
    w = by_rows(net, x).numpy()
    linear = scipy.sparse.linalg.aslinearoperator(op)
    assert linear.shape == op.shape
    assert linear.dtype == np.float64
    v, u = np.linspace(-1, 1, 72), np.linspace(1, 2, 4)
    np.testing.assert_allclose(linear @ v, w @ v, atol=1e-11)
    np.testing.assert_allclose(linear.H @ u, w.T @ u, atol=1e-11)
    np.testing.assert_allclose((linear @ linear.T) @ u, w @ w.T @ u, atol=1e-10)
    np.testing.assert_allclose(linear @ np.eye(72), w, atol=1e-11)
    np.testing.assert_allclose(linear.rmatmat(np.eye(4)), w.T, atol=1e-11)


def test_arrays_in_arrays_out() -> None:
    op, net, x = made("mlp")
    w = by_rows(net, x).numpy()
    for v in (np.arange(4), np.arange(4.0)[::-1], np.arange(4.0, dtype=np.float32)[:, None]):
        got = op @ v
        assert isinstance(got, np.ndarray)
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, w @ v, atol=1e-12)
    fixed = np.arange(5.0)
    fixed.setflags(write=False)
    np.testing.assert_allclose(op.rmatvec(fixed), w.T @ fixed, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_precisions(dtype: torch.dtype) -> None:
    """The vectors are float32, whatever less the network computes in."""
    net, x = mlp().to(dtype), draw(1, 4).to(dtype)
    op = omenn.operator(net, x)
    assert op.exact
    assert op.dtype == np.float32
    assert (op @ np.ones(4)).dtype == np.float32
    loose = 1e-5 if dtype == torch.float32 else 0.1
    close(op.to_dense(), omenn.operator(mlp(), x.double()).to_dense().float(), loose)
