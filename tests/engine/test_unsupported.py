"""What is not provably linear is refused, by operator, module and remedy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import omenn
from nets.small import ROWS
from opcases.case import draw
from opcases.linear import seeded

IN = "in module '(model)': "
RULE = "Give it a rule with omenn.rule(...), or explain at a later module with at=."


def refusal(model: Any, inputs: Any = ROWS, **options) -> omenn.UnsupportedOperator:
    with pytest.raises(omenn.UnsupportedOperator) as caught:
        omenn.explain(model, inputs, lambda y: y.sum(), **options)
    assert "\n" not in str(caught.value)
    return caught.value


class Inner(nn.Module):
    def __init__(self, f) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


def test_unknown_operator_names_operator_module_and_remedy() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), Inner(torch.lgamma)))
    error = refusal(seeded(net))
    assert error.operator == "lgamma"
    assert error.module == "1.1"
    assert str(error) == (
        "operator 'lgamma' in module '1.1': there is no rule that makes it linear at fixed "
        "coefficients. Give it one with omenn.rule('lgamma', ...), or explain a later module "
        "with at=."
    )


def test_unknown_operator_does_not_matter_before_the_module() -> None:
    net = seeded(nn.Sequential(Inner(torch.lgamma), nn.Linear(4, 2)))
    assert omenn.explain(net, ROWS, 1, at="0").exact


def test_unknown_operator_on_a_constant_does_not_matter() -> None:
    weights = draw(4, low=1, high=2)
    assert omenn.explain(lambda x: x * torch.lgamma(weights), ROWS, 1).exact


UNKNOWN = {
    "prod": lambda x: x.prod(1),
    "cumprod": lambda x: x.cumprod(1),
    "fractional_max_pool2d": lambda x: F.fractional_max_pool2d(
        x.expand(1, 1, *x.shape), 2, output_size=1
    ),
    "mse_loss": lambda x: F.mse_loss(x, torch.zeros_like(x), reduction="none"),
    "i0": torch.i0,
    "det": lambda x: torch.linalg.det(x @ x.T),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_operators(name: str) -> None:
    error = refusal(UNKNOWN[name])
    assert name in error.operator
    assert "there is no rule that makes it linear at fixed coefficients" in str(error)


def leaves_by_hand(x: Tensor) -> Tensor:
    return x * float(x.sum())


LEAVING = {
    "numpy": lambda x: x + torch.from_numpy(np.tanh(x.detach().numpy())),
    "item": lambda x: x * x.sum().item(),
    "tolist": lambda x: x + torch.tensor(x.tolist()),
    "__float__": leaves_by_hand,
    "__array__": lambda x: x + torch.from_numpy(np.asarray(x)),
}


@pytest.mark.parametrize("name", LEAVING)
def test_values_that_leave_torch(name: str) -> None:
    error = refusal(LEAVING[name])
    assert error.operator == name
    assert str(error).endswith(
        "its value leaves PyTorch, where it cannot be followed. Keep it a tensor, or explain a "
        "later module with at=."
    )


def test_decisions_and_indices_are_frozen() -> None:
    """Comparisons, arg-max, truth values and lengths are fine: they are held."""

    def model(x: Tensor) -> Tensor:
        if x.sum() > 1e9 or bool((x > 1e9).any()) or int(x.argmax()) < 0:
            return x.prod(1, keepdim=True)
        picked = F.one_hot(x.argmax(1), 4).double()
        return x * (x > 0) + picked @ draw(4, 4) + torch.zeros_like(x) + x.new_ones(4)

    assert omenn.explain(model, ROWS, 1).exact
    assert omenn.certify(model, ROWS, 1).exact


DROPOUT = "is active. Call model.eval() before explaining."
ACTIVE = {
    "dropout": (F.dropout, "dropout " + DROPOUT),
    "dropout in training": (lambda x: F.dropout(x, 0.3, training=True), "dropout " + DROPOUT),
    "torch.dropout": (lambda x: torch.dropout(x, 0.3, True), "dropout " + DROPOUT),
    "alpha dropout": (lambda x: F.alpha_dropout(x, 0.3, training=True), "dropout " + DROPOUT),
    "fused attention": (
        lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1),
        "dropout " + DROPOUT,
    ),
    "batch statistics": (
        lambda x: F.batch_norm(x, None, None, training=True),
        "batch normalisation uses the statistics of the batch, so samples depend on each other. "
        "Call model.eval(), and keep running statistics (track_running_stats=True).",
    ),
    "no running statistics": (
        nn.BatchNorm1d(4, track_running_stats=False).double().eval(),
        "batch normalisation uses the statistics of the batch",
    ),
}


@pytest.mark.parametrize("name", ACTIVE)
def test_randomness_and_batch_statistics(name: str) -> None:
    model, text = ACTIVE[name]
    assert text in str(refusal(model))


def test_active_dropout_inside_attention_and_recurrence() -> None:
    class Attention(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:
            return F.multi_head_attention_forward(
                x, x, x, 4, 2, self.in_proj_weight, self.in_proj_bias, None, None, False, 0.5,
                self.out_proj.weight, self.out_proj.bias, training=True,
            )[0]  # fmt: skip

    assert "dropout is active" in str(refusal(seeded(Attention(4, 2)), draw(2, 3, 4)))
    lstm = seeded(nn.LSTM(4, 3, 2, dropout=0.5))

    def recurrent(x: Tensor) -> Tensor:
        state = torch.zeros(2, 3, 3).double()
        weights = [p for group in lstm.all_weights for p in group]
        return torch.lstm(x, (state, state), weights, True, 2, 0.5, True, False, False)[0]

    assert "dropout is active" in str(refusal(recurrent, draw(2, 3, 4)))


LIMITS = {
    "exponent": (lambda x: x.abs() ** x, "an exponent that depends on the input"),
    "bases": (
        lambda x: torch.arange(1, 5) ** x,
        "a function that differs between elements is not pointwise",
    ),
    "exponents": (lambda x: x ** torch.arange(4), "an exponent that differs between elements"),
    "bound": (lambda x: x.clamp(min=x.mean()), "a bound that depends on the input"),
    "bounded constant": (
        lambda x: torch.clamp(torch.zeros(3, 4).double(), min=x),
        "a bound that depends on the input",
    ),
    "slope": (lambda x: F.prelu(x, x[0]), "a slope that depends on the input"),
    "rounding": (
        lambda x: torch.div(x, 2, rounding_mode="floor"),
        "a division that rounds is not linear",
    ),
    "three factors": (
        lambda x: torch.einsum("bi,bi,bi->b", x, x, x),
        "a product of more than two tensors that depend on the input",
    ),
    "summand and factor": (
        lambda x: torch.addcmul(x, x, x + 1),
        "the same tensor as summand and as factor",
    ),
    "out=": (lambda x: torch.add(x, 1, out=torch.empty(3, 4).double()), "out= is not supported"),
    "scattered product": (
        lambda x: x.scatter_reduce(1, torch.zeros(3, 4).long(), x + 1, "prod"),
        "a product of scattered values",
    ),
    "scattered maximum": (
        lambda x: torch.ones(3, 4).double().scatter_reduce(1, torch.zeros(3, 4).long(), x, "amax"),
        "the largest of scattered values and of constants",
    ),
    "weighted observations": (
        lambda x: torch.cov(x, aweights=torch.ones(4).double()),
        "weighted observations have no rule",
    ),
    "part of a coefficient": (
        lambda x: x * x.softmax(1).index_fill(1, torch.tensor([0]), 0.0)[:, :1].copy_(x[:, :1]),
        "it writes into a part of a tensor that is a frozen coefficient",
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits(name: str) -> None:
    model, why = LIMITS[name]
    error = refusal(model)
    assert error.why == why
    assert error.module == ""
    assert error.remedy == ("Write it as c + a * b." if name == "summand and factor" else RULE)


@pytest.mark.filterwarnings("ignore:The reduce argument")  # as the model itself warns
def test_scatter_that_has_no_derivative() -> None:
    def model(x: Tensor) -> Tensor:
        index = torch.zeros(3, 4).long()
        return torch.zeros(3, 4).double().scatter(1, index, x, reduce="add")

    error = refusal(model)
    assert str(error).endswith("PyTorch has no derivative for reduce='add'. Use scatter_add.")


HEADS = {
    "softmax": lambda x: x.softmax(1),
    "reciprocal": lambda x: x.reciprocal(),
    "div": lambda x: 1 / x,
    "logsumexp": lambda x: torch.logsumexp(x, 1),
    "pow": lambda x: x.abs() ** -0.5,
}


@pytest.mark.parametrize("name", HEADS)
def test_frozen_coefficient_at_the_head(name: str) -> None:
    assert str(refusal(HEADS[name])) == (
        f"operator '{name}' {IN}the output is a frozen coefficient (a softmax, a logarithm, 1/x), "
        "which has no linear part. Explain the logits before it: output=... or a model without "
        "the last operator."
    )


# --- code that cannot be seen ----------------------------------------------------------------


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return 2 * grad * ctx.saved_tensors[0]


UNSEEN = "a tensor comes from code that cannot be seen"


@pytest.mark.parametrize(
    "model",
    [Squared.apply, lambda x: Squared.apply(x) + 1, lambda x: x + Squared.apply(2 * x).tanh()],
    ids=["last", "followed", "in between"],
)
def test_custom_autograd_function(model: Any) -> None:
    error = refusal(model)
    assert error.operator == "Squared"
    assert UNSEEN in str(error)
    assert not omenn.certify(model, ROWS, 1).exact


def test_custom_autograd_function_after_the_last_operator_seen() -> None:
    """Only the walk over the graph can find it: nothing is called on what it returns."""

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return {"logits": Squared.apply(x + 1)}

    error = refusal(Net().eval())
    assert "Squared" in str(error)


def scripted():
    @torch.jit.script
    def half(x):
        return torch.tanh(x) * 0.5

    return half


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_function() -> None:
    half = scripted()
    for model in (half, lambda x: half(x) + 1, lambda x: half(x @ draw(4, 4)).relu()):
        error = refusal(lambda x, model=model: model(x))
        assert UNSEEN in str(error)
        assert "Use the plain Python form of it" in str(error)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_module() -> None:
    with pytest.raises(
        omenn.ModelError, match="is a TorchScript module, which hides its operators"
    ):
        omenn.explain(torch.jit.script(seeded(nn.Linear(4, 2))), ROWS)


def test_checkpointing() -> None:
    def model(x: Tensor) -> Tensor:
        return checkpoint(torch.tanh, x, use_reentrant=True)

    assert refusal(model).operator == "CheckpointFunction"

    def recomputed(x: Tensor) -> Tensor:
        return checkpoint(torch.tanh, 2 * x, use_reentrant=False) + x

    plain = omenn.explain(lambda x: torch.tanh(2 * x) + x, ROWS, 1)
    torch.testing.assert_close(omenn.explain(recomputed, ROWS, 1).weight, plain.weight)


# --- the model's own memory ------------------------------------------------------------------


class Cache(nn.Module):
    def __init__(self, write) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(3, 4).double())
        self.weight = nn.Parameter(torch.ones(4).double(), requires_grad=False)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        self.write(self, x)
        return 2 * x


WRITES = {
    "copy_": lambda m, x: m.seen.copy_(x),
    "__setitem__": lambda m, x: m.seen.__setitem__((slice(None), 1), x[:, 1]),
    "add_": lambda m, x: m.seen.add_(x),
    "mul_": lambda m, x: m.weight.mul_(x[0]),
    "index_copy_": lambda m, x: m.seen.index_copy_(1, torch.tensor([2]), x[:, :1]),
    "part": lambda m, x: m.seen[:, 2:].copy_(x[:, 2:]),
}


@pytest.mark.parametrize("name", WRITES)
def test_writing_into_the_model(name: str) -> None:
    net = Cache(WRITES[name]).eval()
    error = refusal(net)
    assert str(error).endswith(
        "it writes an input-dependent value into a parameter or buffer of the model. Let the "
        "module work on a copy (.clone()) of it."
    )
    assert not net.seen.any()
    assert not net.seen.requires_grad
    assert torch.equal(net.weight, torch.ones(4).double())


def test_counting_calls_is_fine() -> None:
    """A buffer that does not depend on the input may change; afterwards it is as it was."""
    net = Cache(lambda m, x: m.seen.add_(1)).eval()
    assert omenn.explain(net, ROWS, 1).exact
    assert torch.equal(net.seen, torch.zeros(3, 4).double())
