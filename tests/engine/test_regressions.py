"""Values that once escaped: each is now followed, told in the result, or refused by name."""

import pytest
import torch
from torch import Tensor, nn

import omenn


def _layer(inputs: int, outputs: int, seed: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(inputs, outputs).double().eval()


HEAD, BODY = _layer(4, 3, 0), _layer(4, 4, 1)
X = torch.tensor([[0.3, -1.2, 0.7, 2.0], [1.1, 0.4, -0.6, -0.2]], dtype=torch.float64)


def _data_written(x: Tensor) -> Tensor:
    w = torch.empty(0, dtype=x.dtype)
    w.data = BODY(x)
    return HEAD(w) + HEAD(x)


REFUSED = {
    "torch.vmap": lambda x: HEAD(x) + torch.vmap(lambda row: HEAD(row.tanh()))(x),
    "__set__": _data_written,
    "__int__": lambda x: HEAD(x) + int(BODY(x).sum() * 1e9) / 1e9,
    "view": lambda x: HEAD(x) + HEAD(x).view(torch.int64).view(torch.float64),
}


@pytest.mark.parametrize("operator", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(operator):
    with pytest.raises(omenn.UnsupportedOperator) as caught:
        omenn.explain(REFUSED[operator], X)
    assert caught.value.operator == operator


def _frozen_written(x: Tensor) -> Tensor:
    b = torch.zeros(2, 3, dtype=x.dtype)
    b[:] = torch.softmax(HEAD(x), 1)
    return HEAD(x) + b


def _frozen_written_in_part(x: Tensor) -> Tensor:
    b = torch.zeros(2, 3, dtype=x.dtype)
    b[:, 0].copy_(torch.softmax(HEAD(x), 1)[:, 0])
    return HEAD(x) + b


TOLD = {
    "rounded": lambda x: HEAD(x) + (BODY(x)[:, :3] * 1e6).long().double() / 1e6,
    "item": lambda x: HEAD(x) + torch.softmax(BODY(x), 1).max().item(),
    "setitem": _frozen_written,
    "written in part": _frozen_written_in_part,
    "log softmax": lambda x: torch.log_softmax(HEAD(x), 1),
}


@pytest.mark.parametrize("case", TOLD)
def test_constants_that_depend_on_the_input_are_told(case):
    e = omenn.explain(TOLD[case], X)
    assert e.exact
    assert e.frozen_constants
    assert not omenn.explain(lambda x: HEAD(x), X).frozen_constants


@pytest.mark.parametrize("spelling", ["masked_fill", "add", "where"])
def test_masking_with_minus_infinity_is_exact(spelling):
    mask = torch.tensor([[[False], [True]], [[True], [False]]])

    def masked(x: Tensor) -> Tensor:
        both = torch.stack([HEAD(x), HEAD(BODY(x))], 1)
        if spelling == "masked_fill":
            both = both.masked_fill(mask, -torch.inf)
        elif spelling == "add":
            both = both + torch.zeros(2, 2, 1, dtype=x.dtype).masked_fill(mask, -torch.inf)
        else:
            both = torch.where(mask, -torch.inf, both)
        return both.max(1).values

    e = omenn.explain(masked, X)
    assert e.exact
    assert torch.allclose(e.output[0], HEAD(X)[0].max())
    index = int(e.target[0])
    assert torch.allclose(e.weight[0], HEAD.weight[index])


def test_inputs_inside_inputs_are_refused():
    with pytest.raises(omenn.InputError, match="input 0 is a tuple of tensors"):
        omenn.explain(lambda pair, y: HEAD(pair[0]) + HEAD(y), ((X, X), X))


def test_a_batch_of_images_as_one_object_keeps_its_locations():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).double().eval()
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    e = omenn.explain(net, images, lambda out: out[:, 0].sum())
    assert e.exact
    assert e.matrix.shape == (1, 2, 4, 4)


def test_errors_of_the_callers_functions_are_named():
    with pytest.raises(omenn.TargetError, match="target function raised IndexError"):
        omenn.explain(HEAD, X, lambda out: out[:, 99])
    with pytest.raises(omenn.TargetError, match="output function raised"):
        omenn.explain(HEAD, X, output=lambda out: out["scores"])
    with pytest.raises(omenn.ModelError, match="dotted name"):
        omenn.explain(HEAD, X, at=0)  # pyright: ignore[reportArgumentType]


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_a_weight_is_not_written_behind_its_back():
    class Writer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            self.layer.weight.data.copy_(HEAD(x)[0].expand(3, 3))
            return self.layer(HEAD(x))

    model = Writer().eval()
    before = model.layer.weight.clone()
    with pytest.raises(omenn.UnsupportedOperator, match="parameter or buffer"):
        omenn.explain(model, X)
    assert torch.equal(model.layer.weight, before)
    with pytest.raises(omenn.ModelError, match="TorchScript"):
        omenn.explain(torch.jit.trace(HEAD, X), X)


@pytest.mark.parametrize("name", ["relu_", "tanh_", "abs_", "sigmoid_"])
@pytest.mark.parametrize("write", [lambda y, x: y.add_(x), lambda y, x: y[:, :2].mul_(0.5)])
def test_written_over_after_an_activation(name: str, write) -> None:
    """Runs without gradients, and PyTorch itself cannot differentiate some of it."""
    w, x = torch.randn(4, 4).double(), torch.randn(2, 4).double()

    def in_place(x: Tensor) -> Tensor:
        y = x @ w
        getattr(y, name)()
        write(y, x)
        return y / torch.tensor([3, 2])[:, None]

    def apart(x: Tensor) -> Tensor:
        y = getattr(torch, name[:-1])(x @ w).clone()
        write(y, x)
        return y / torch.tensor([3, 2])[:, None]

    got, wanted = omenn.explain(in_place, x, 1), omenn.explain(apart, x, 1)
    assert got.exact
    assert torch.equal(got.output, in_place(x)[:, 1])
    torch.testing.assert_close(got.weight, wanted.weight)
    torch.testing.assert_close(got.matrix, wanted.matrix)
    rows = omenn.rows(in_place, x, [0, 1, 2], chunk=2)
    torch.testing.assert_close(rows.weight[:, 1], wanted.weight)
    with omenn.operator(in_place, x) as op:
        torch.testing.assert_close(op.rows([1])[0].reshape(2, 4)[:1], wanted.weight[:1])


@pytest.mark.parametrize("eps", [0.0, 1e-30])
def test_log_softmax_written_out(eps: float) -> None:
    """The logit less a constant, as ``log_softmax`` and ``logsumexp`` have it."""
    w, x = torch.randn(4, 3).double(), torch.randn(2, 4).double()

    def by_hand(x: Tensor) -> Tensor:
        y = x @ w
        return y - torch.log(torch.exp(y).sum(-1, keepdim=True) + eps)

    e = omenn.explain(by_hand, x, lambda out: out[:, 1])
    assert e.exact
    torch.testing.assert_close(e.weight, w[:, 1].expand(2, 4))
