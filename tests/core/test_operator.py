"""``omenn.operator``: W(x) as a matrix that is never stored, against the dense one."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from opcases.case import Case, draw
from opcases.linear import seeded
from opcases.networks import Two
from opdb import CASES
from oracle import flat, unflat

# --- networks --------------------------------------------------------------------------------


class Block(nn.Module):
    """A pre-norm transformer block with one projection for query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(4), nn.LayerNorm(4)
        self.qkv, self.proj = nn.Linear(4, 12), nn.Linear(4, 4)
        self.mlp = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).reshape(*x.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0))
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, 4, 2, 2)
        self.token, self.position = (
            nn.Parameter(torch.zeros(1, 1, 4)),
            nn.Parameter(torch.zeros(10, 4)),
        )
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Embedding(7, 4), Block(), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.block(self.embed(ids)).mean(1))


def mlp() -> nn.Module:
    return seeded(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)))


def convnet() -> nn.Module:
    """No bypass, so that the operators of its parts multiply to that of the whole."""
    return seeded(
        nn.Sequential(
            nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
            nn.MaxPool2d(2),
            nn.Sequential(nn.Conv2d(4, 3, 3), nn.SiLU(), nn.GroupNorm(1, 3)),
            nn.Flatten(),
            nn.Linear(3, 4),
        )
    )  # fmt: skip


def segmentation() -> nn.Module:
    return seeded(
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.GELU(), nn.AvgPool2d(2),
                      nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(3, 2, 1))
    )  # fmt: skip


IMAGE = draw(1, 2, 6, 6)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (mlp, draw(1, 4)),
    "convnet": (convnet, IMAGE),
    "vit": (lambda: seeded(ViT()), IMAGE),
    "lstm": (lambda: seeded(Recurrent()), draw(1, 4, 3)),
    "segmentation": (segmentation, IMAGE),
    "token ids": (lambda: seeded(Tokens()), torch.tensor([[1, 4, 2, 6]])),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def made(name: str, **options) -> tuple[omenn.Operator, nn.Module, Tensor]:
    build, x = NETWORKS[name]
    net = build()
    return omenn.operator(net, x, **options), net, x


def by_rows(net: nn.Module, x: Tensor) -> Tensor:
    """The dense W: one explanation for each number of the output."""
    count = net(x).numel()
    r = omenn.rows(net, x, [lambda z, k=k: z.reshape(-1)[k] for k in range(count)])
    return r.weight.reshape(count, -1)


def close(got: Tensor, wanted: Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


# --- against the dense matrix ----------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_every_operator_forward_and_back(case: Case) -> None:
    """One vector each way through every case of the database, against its oracle."""
    wanted = case.oracle(case.call, case.inputs)
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


# --- from one module to another --------------------------------------------------------------


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
            return torch.lgamma(self.a(x))

    net = seeded(Net())
    close(omenn.operator(net, draw(1, 4), to="a").to_dense(), net.a.weight.detach())
    assert torch.is_grad_enabled()


def test_output_in_a_structure() -> None:
    net, x = seeded(Recurrent()), draw(1, 4, 3)
    first = omenn.operator(net, x, to="lstm")
    assert first.output_shape == (1, 4, 4)
    cell = omenn.operator(net, x, to="lstm", output=lambda out: out[1][1])
    close(cell.value, net.lstm(x)[1][1].detach().reshape(-1))
    assert cell.exact


# --- singular triplets -----------------------------------------------------------------------


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
    from omenn.core.svd import leading_triplets

    n = min(shape)
    w = spectrum(torch.linspace(1, 0.01, n).double() ** 2, *shape)
    k = min(4, n)
    check_svd(leading_triplets(Dense(w), k, 1e-9, 500), w, k)


def test_svd_of_repeated_values() -> None:
    """A block of k finds a value that occurs k times, which a single vector would miss."""
    from omenn.core.svd import leading_triplets

    w = spectrum(torch.tensor([2.0, 2, 2, 1, 1, 1, 1, 1]).double(), 30, 40)
    check_svd(leading_triplets(Dense(w), 3, None, 50), w, 3)
    check_svd(leading_triplets(Dense(w), 5, None, 50), w, 5)
    eye = torch.eye(20).double()
    check_svd(leading_triplets(Dense(eye), 4, None, 50), eye, 4)


def test_svd_of_low_rank() -> None:
    from omenn.core.svd import leading_triplets

    w = spectrum(torch.tensor([3.0, 1]).double(), 30, 40)
    check_svd(leading_triplets(Dense(w), 4, None, 50), w, 4)


def test_svd_starts_again_where_the_space_is_full() -> None:
    """A slowly falling spectrum needs more directions than are kept."""
    from omenn.core.svd import leading_triplets

    w = Dense(spectrum(1 - torch.arange(400).double() / 4000, 400, 500))
    check_svd(leading_triplets(w, 2, 1e-8, 400), w.matrix, 2)
    assert w.products > 2 * 32


def test_svd_in_single_precision() -> None:
    from omenn.core.svd import leading_triplets

    w = spectrum(torch.linspace(1, 0.1, 60), 60, 80)
    assert w.dtype == torch.float32
    check_svd(leading_triplets(Dense(w), 3, None, 200), w, 3, 1e-3)


def test_svd_that_does_not_converge() -> None:
    from omenn.core.svd import leading_triplets

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


# --- with NumPy and SciPy --------------------------------------------------------------------


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


# --- what is refused -------------------------------------------------------------------------


class Twice(nn.Module):
    """One layer that is called twice, one that is never, and one that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.unused, self.apart = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(torch.relu(self.a(x))) + self.apart(torch.ones(1, 4).double())


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.words, self.split = Words(), Split()

    def forward(self, x: Tensor) -> Tensor:
        self.words(x)
        return sum(self.split(self.a(x)))  # type: ignore[return-value]


class Words(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "no tensor"


class Split(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :2], x[:, 2:]


X = draw(1, 4)
REFUSED: dict[str, tuple[type[Exception], Callable[[], object], str]] = {
    "two names": (omenn.InputError, lambda: omenn.operator(mlp(), X, at="0", from_="1"),
        "at='0' and from_='1' are two spellings of one argument. Give one of them."),
    "one module": (omenn.InputError, lambda: omenn.operator(mlp(), X, at="0", to="0"),
        "at='0' and to='0' are one module: W is the identity."),
    "unknown start": (omenn.ModelError, lambda: omenn.operator(seeded(ViT()), IMAGE, "block.0"),
        "at='block.0' is not a module of the model: did you mean 'blocks.0' or 'blocks.1' or "
        "'blocks'?"),
    "unknown end": (omenn.ModelError, lambda: omenn.operator(mlp(), X, to="head"),
        "to='head' is not a module of the model: known are 0, 1, 2."),
    "no name": (omenn.ModelError, lambda: omenn.operator(mlp(), X, from_=2),  # type: ignore[arg-type]
        "from_=2 is not a module of the model: Give its dotted name."),
    "function": (omenn.ModelError, lambda: omenn.operator(lambda x: x, X, to="0"),
        "to= needs a torch.nn.Module; a function has no modules."),
    "training": (omenn.ModelError, lambda: omenn.operator(mlp().train(), X, to="1"),
        "the model is in training mode (4 modules, first '(model)'), where dropout and batch "
        "statistics make its output random. Call model.eval() first."),
    "called twice": (omenn.ModelError, lambda: omenn.operator(seeded(Twice()), X, to="a"),
        "module 'a' is called 2 times for this input, so its output is not one tensor. Choose a "
        "module around it, or another one."),
    "starts twice": (omenn.ModelError, lambda: omenn.operator(seeded(Twice()), X, "a"),
        "module 'a' is called 2 times for this input, so its output is not one tensor. Choose a "
        "module around it, or another one."),
    "never called": (omenn.ModelError, lambda: omenn.operator(seeded(Twice()), X, to="unused"),
        "module 'unused' is never called for this input, so its output is not one tensor. Choose "
        "a module around it, or another one."),
    "apart": (omenn.TargetError, lambda: omenn.operator(seeded(Twice()), X, to="apart"),
        "the explained output does not depend on the input."),
    "backwards": (omenn.TargetError, lambda: omenn.operator(mlp(), X, from_="2", to="0"),
        "to='0' runs before '2', so its output does not depend on it."),
    "no tensor": (omenn.TargetError, lambda: omenn.operator(seeded(Pair()), X, to="words"),
        "to='words': the model returned str, in which no tensor of logits was found. Say where "
        "it is with output=, for example output=lambda out: out['scores']."),
    "two tensors": (omenn.InputError, lambda: omenn.operator(seeded(Pair()), X, "split"),
        "an operator has one explained input, but here are 2: 0, 1. Let a function hold the "
        "others, for example lambda x: model(x, other)."),
    "two inputs": (omenn.InputError,
        lambda: omenn.operator(seeded(Two()), {"left": X, "right": draw(1, 3)}),
        "an operator has one explained input, but here are 2: 'left', 'right'. Let a function "
        "hold the others, for example lambda x: model(x, other)."),
    "frozen output": (omenn.UnsupportedOperator,
        lambda: omenn.operator(lambda x: x.softmax(-1), X),
        "operator 'softmax' in module '(model)': the output is a frozen coefficient (a softmax, a "
        "logarithm, 1/x), which has no linear part. Explain the logits before it: output=... or a "
        "model without the last operator."),
    "complex": (omenn.TargetError, lambda: omenn.operator(torch.fft.rfft, X),
        "the output is complex. Choose a real part of it with output=."),
    "chunk": (omenn.InputError, lambda: omenn.operator(mlp(), X, chunk=0),
        "chunk must be a positive integer, but 0 was given."),
    "products": (omenn.InputError, lambda: omenn.operator(mlp(), X, products="both"),
        "products='both' is not known. Choose one of: half, left, right."),
    "length": (omenn.InputError, lambda: omenn.operator(mlp(), X) @ draw(5),
        "a vector of the length 4 is needed here, but the shape (5,) was given; the operator is "
        "5 × 4. Flatten with .reshape(-1); for several columns use matmat or rmatmat."),
    "length back": (omenn.InputError, lambda: omenn.operator(mlp(), X).rmatvec(draw(1, 5)),
        "a vector of the length 5 is needed here, but the shape (1, 5) was given; the operator is "
        "5 × 4. Flatten with .reshape(-1); for several columns use matmat or rmatmat."),
    "matrix": (omenn.InputError, lambda: omenn.operator(mlp(), X).rmatmat(draw(4, 5)),
        "a matrix of the shape (5, K) is needed here, but (4, 5) was given; the operator is "
        "5 × 4."),
    "type": (omenn.InputError, lambda: omenn.operator(mlp(), X) @ torch.ones(4),
        "the vector is float32 on cpu, the operator float64 on cpu. Convert it with "
        ".to(op.input)."),
    "complex vector": (omenn.InputError, lambda: omenn.operator(mlp(), X) @ np.ones(4, complex),
        "a vector of real numbers is needed, a torch tensor or a NumPy array, but complex128 was "
        "given."),
    "list": (omenn.InputError, lambda: omenn.operator(mlp(), X) @ [1.0, 2, 3, 4],
        "a vector of real numbers is needed, a torch tensor or a NumPy array, but list was "
        "given."),
    "nan": (omenn.InputError, lambda: omenn.operator(mlp(), X) @ np.array([1, np.nan, 2, np.inf]),
        "the vector has 2 values that are NaN or infinite."),
    "row": (omenn.InputError, lambda: omenn.operator(mlp(), X).rows([1, 5]),
        "[1, 5] does not choose from 5 outputs, 0 to 4: index 5 is out of bounds for dimension 0 "
        "with size 5."),
    "column": (omenn.InputError, lambda: omenn.operator(mlp(), X).columns("all"),  # type: ignore[arg-type]
        "'all' does not choose from 4 inputs, 0 to 3: "),
    "too large": (omenn.InputError, lambda: omenn.operator(mlp(), X).to_dense(limit=19),
        "the dense matrix would have 5 × 4 = 20 entries, 1.49e-07 GiB, above the limit of 19. Use "
        "rows, columns or svd, or pass a higher limit=."),
    "k": (omenn.InputError, lambda: omenn.operator(mlp(), X).svd(5),
        "svd(5): a matrix of 5 × 4 has 1 to 4 singular triplets. Choose k among them."),
    "k zero": (omenn.InputError, lambda: omenn.operator(mlp(), X).svd(0),
        "svd(0): a matrix of 5 × 4 has 1 to 4 singular triplets. Choose k among them."),
    "not finite": (omenn.InputError, lambda: omenn.operator(lambda x: x / 0.0, X),
        "the model's output is not finite (NaN or infinite), so there is nothing to explain. "
        "Check the weights and the range of the input."),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    kind, call, text = REFUSED[name]
    with pytest.raises(kind) as caught:
        call()
    assert isinstance(caught.value, omenn.OmennError)
    assert "\n" not in str(caught.value)
    assert str(caught.value) == text or (text.endswith(": ") and str(caught.value).startswith(text))


def test_closed() -> None:
    with omenn.operator(mlp(), X) as op:
        assert op.exact
    closed = (
        "this operator was closed and its graph freed; only its vectors remain. Make it anew with "
        "omenn.operator(...)."
    )
    for use in (lambda: op @ X[0], lambda: op.rmatvec(draw(5)), op.to_dense, lambda: op.svd(1)):
        with pytest.raises(omenn.ModelError) as caught:
            use()
        assert str(caught.value) == closed
    assert op.value.shape == (5,)
    assert repr(op).endswith("exact, closed)")


class Once(torch.autograd.Function):
    """Twice the gradient, by a kernel that has no derivative of its own."""

    @staticmethod
    def forward(ctx, grad: Tensor) -> Tensor:
        return 2 * grad

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: Tensor) -> Tensor:
        raise RuntimeError("the kernel has no derivative.\nMore of it")


def hidden(call):
    """A rule whose backward cannot be differentiated."""

    def vjp(grad: Tensor) -> Tensor:
        return 2 * grad.detach()

    (x,) = call.carried
    return call.frozen(x, call.value(), vjp)


@pytest.fixture
def own_rule(monkeypatch):
    from omenn.core.rules import OPERATORS, Row
    from omenn.core.rules.row import same

    monkeypatch.setitem(OPERATORS, "neg", Row(hidden, same))


def test_kernel_without_a_derivative(monkeypatch) -> None:
    from omenn.core.rules import OPERATORS, Row
    from omenn.core.rules.row import same

    def rule(call):
        return call.frozen(call.carried[0], call.value(), lambda g: Once.apply(g))

    monkeypatch.setitem(OPERATORS, "neg", Row(rule, same))
    with pytest.raises(omenn.ModelError) as caught:
        omenn.operator(torch.neg, X)
    assert str(caught.value) == (
        "a vector cannot go through the model: the kernel has no derivative. Use omenn.rows, which "
        "goes back alone, or begin at a later module with from_=."
    )


def test_rule_that_takes_one_vector_at_a_time(monkeypatch) -> None:
    from omenn.core.rules import OPERATORS, Row
    from omenn.core.rules.row import same

    def rule(call):
        vjp = lambda g: -g if bool((g < 1e9).all()) else g  # noqa: E731
        return call.frozen(call.carried[0], call.value(), vjp)

    monkeypatch.setitem(OPERATORS, "neg", Row(rule, same))
    close(omenn.operator(torch.neg, X).to_dense(), -torch.eye(4).double())
    remedy = r"through the model: .*\. Pass chunk=1: an operator of the model cannot take several"
    with pytest.raises(omenn.ModelError, match=remedy):
        omenn.operator(torch.neg, X, chunk=2).to_dense()


@pytest.mark.usefixtures("own_rule")
def test_rule_that_hides_its_gradient() -> None:
    with pytest.raises(omenn.ModelError, match="a rule gives a gradient that cannot be diff"):
        omenn.operator(torch.neg, X)


@pytest.mark.usefixtures("own_rule")
def test_wrong_rule_is_noticed() -> None:
    op = omenn.operator(lambda x: torch.neg(x) + 3 * x, X)
    assert not op.exact
    assert "NOT EXACT" in repr(op)


def test_passes_that_disagree_are_noticed(monkeypatch) -> None:
    """A kernel that is used without gradients alone, as that of the layer norm, must agree."""
    from omenn.core.rules import OPERATORS, Row
    from omenn.core.rules.row import same

    def rule(call):
        vjp = lambda g: -g if torch.is_grad_enabled() else -1.01 * g  # noqa: E731
        return call.frozen(call.carried[0], call.value(), vjp)

    monkeypatch.setitem(OPERATORS, "neg", Row(rule, same))
    op = omenn.operator(torch.neg, X)
    assert not op.residual.any()
    assert not op.exact


# --- what is left untouched ------------------------------------------------------------------


def hooks_of(net: nn.Module) -> list[int]:
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]


def test_model_is_left_as_it_was() -> None:
    net = convnet().requires_grad_()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    kept = [sorted(m.__dict__) for m in net.modules()]
    x = IMAGE.clone()
    op = omenn.operator(net, x, from_="1", to="2.1")
    op.svd(1)
    for bad in ({"to": "3", "from_": "4"}, {"to": "1", "output": lambda out: out[99]}):
        with pytest.raises(omenn.OmennError):
            omenn.operator(net, x, **bad)
        assert torch.is_grad_enabled()
    assert not any(hooks_of(net))
    assert kept == [sorted(m.__dict__) for m in net.modules()]
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert torch.equal(x, IMAGE)
    assert not x.requires_grad


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_without_gradients_around(around) -> None:
    op, net, x = made("vit")
    w = op.to_dense()
    with around():
        inside = omenn.operator(net, x * 1, to="head")
        close(inside.to_dense(), w)
        v = draw(op.shape[1]) * 1
        close(op @ v, w @ v)
        close(op.rmatmat(torch.ones(5, 2).double()), w.T @ torch.ones(5, 2).double())
    assert not (op @ draw(op.shape[1])).requires_grad


def test_vectors_with_a_history() -> None:
    op, net, x = made("mlp")
    v = draw(4).requires_grad_()
    assert not (op @ v).requires_grad
    close(op @ v, by_rows(net, x) @ v.detach())


def test_in_many_threads() -> None:
    """One operator, and one model from module to module, in four threads at once."""
    op, net, x = made("convnet")
    w, failed = by_rows(net, x), []
    part = omenn.operator(net, x, from_="0", to="2").to_dense()

    def use(seed: int) -> None:
        try:
            for _ in range(3):
                v = draw(72, seed=seed)
                close(op @ v, w @ v)
                close(op.rmatvec(draw(4, seed=seed)), w.T @ draw(4, seed=seed))
                close(omenn.operator(net, x, from_="0", to="2").to_dense(), part)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=use, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failed
    assert not any(hooks_of(net))


def test_memory_is_freed() -> None:
    """By the last reference alone, and the graph by ``close``: there are no cycles."""
    gc.collect()
    gc.disable()
    try:
        op, net, x = made("vit", from_="patches")
        op.svd(2)
        leaf = weakref.ref(op._open()[0])
        op.close()
        assert leaf() is None
        op = omenn.operator(net, x, to="norm")
        leaf, gone = weakref.ref(op._open()[0]), weakref.ref(op)
        del op
        assert gone() is None
        assert leaf() is None
    finally:
        gc.enable()


def test_repr() -> None:
    op, _, _ = made("mlp")
    assert repr(op).startswith("Operator(5 outputs × 4 inputs, float64, residual=")
    assert repr(op).endswith(", exact)")
