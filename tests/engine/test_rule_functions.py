"""Rules for ``autograd.Function`` classes and custom operators, which torch does not dispatch.

The right values are those of the same function in operators of torch.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import omenn
from nets.small import ROWS
from opcases.case import draw


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(w)
        return x @ w

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:
        (w,) = ctx.saved_tensors
        return grads[0] @ w.t(), None


class TanhGELU(torch.autograd.Function):
    """As BLOOM has it: the derivative written out."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.gelu(x, approximate="tanh")

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        return grads[0] * ctx.saved_tensors[0].sign()


class BoundedSqrt(torch.autograd.Function):
    """As RecurrentGemma has it: a derivative that does not grow without bound."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return torch.sqrt(x)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        return grads[0].clamp(-1, 1)


class Simplex(torch.autograd.Function):
    """As TabNet's sparsemax: a mask that sums to one; with setup_context and a default."""

    @staticmethod
    def forward(x: Tensor, dim: int = -1) -> Tensor:
        return x.relu() / x.relu().sum(dim, keepdim=True).clamp_min(1e-3)

    @staticmethod
    def setup_context(ctx, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.saved_tensors[0], None


class Spike(torch.autograd.Function):
    """As snntorch's surrogates: a step forward, something smooth backward."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        return grads[0] / (1 + ctx.saved_tensors[0].abs()) ** 2


WEIGHT = draw(4, 2)
simplex = Simplex.apply  # kept under another name before there is a rule, as TabNet does

FUNCTIONS: dict[str, tuple[Any, Any, Any, Any]] = {
    "linear": (Product, "linear", lambda x: Product.apply(x, WEIGHT), lambda x: x @ WEIGHT),
    "native": (
        Product,
        lambda call: call.run(),
        lambda x: Product.apply(x, WEIGHT) + x[:, :2],
        lambda x: x @ WEIGHT + x[:, :2],
    ),
    "pointwise": (
        TanhGELU,
        "pointwise",
        lambda x: TanhGELU.apply(x + 1) @ WEIGHT,
        lambda x: F.gelu(x + 1, approximate="tanh") @ WEIGHT,
    ),
    "pointwise, without derivative at zero": (
        BoundedSqrt,
        "pointwise",
        lambda x: x * BoundedSqrt.apply(x.abs()).softmax(1) + BoundedSqrt.apply(x.abs()),
        lambda x: x * x.abs().sqrt().softmax(1) + x.abs().sqrt(),
    ),
    "frozen": (
        Simplex,
        "frozen",
        lambda x: x * simplex(x, -1) + x * Simplex.apply(2 * x),
        lambda x: Simplex.forward(x) * 2,
    ),
    "held": (
        TanhGELU,
        lambda call: call.freeze(),
        lambda x: x * TanhGELU.apply(x.roll(1, 1)),
        lambda x: F.gelu(x.roll(1, 1), approximate="tanh"),
    ),
}


@pytest.mark.parametrize("by", ["class", "apply", "name", "name in the error"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_rule_for_an_autograd_function(name: str, by: str) -> None:
    function, kind, model, twin = FUNCTIONS[name]
    given = {"class": function, "apply": function.apply, "name": function.__name__}.get(by)
    with pytest.raises(omenn.UnsupportedOperator) as caught:
        omenn.explain(model, ROWS, 1)
    with omenn.rules({given or caught.value.operator: kind}):
        e = omenn.explain(model, ROWS, 1)
        assert e.exact
        assert omenn.certify(model, ROWS, 1).exact
        x = ROWS.clone().requires_grad_()
        with omenn.frozen(x):
            y = model(x)[:, 1].sum()
        torch.testing.assert_close(torch.autograd.grad(y, x)[0], e.weight)
    if name in ("frozen", "held"):  # the twin is the coefficient
        torch.testing.assert_close(e.weight[:, 1], twin(ROWS)[:, 1])
    else:
        right = omenn.explain(twin, ROWS, 1)
        torch.testing.assert_close(e.weight, right.weight)
        torch.testing.assert_close(e.matrix, right.matrix)
    torch.testing.assert_close(e.output, model(ROWS)[:, 1])
    with pytest.raises(omenn.UnsupportedOperator):
        omenn.explain(model, ROWS, 1)


def test_other_functions_and_ordinary_calls_are_as_they_were() -> None:
    with omenn.rules({Product: "linear"}):
        x = ROWS.clone().requires_grad_()
        (g,) = torch.autograd.grad(Product.apply(x, WEIGHT).sum(), x)
        torch.testing.assert_close(g, WEIGHT.sum(1).expand(3, 4))
        (g,) = torch.autograd.grad(Spike.apply(x).sum(), x)
        torch.testing.assert_close(g, 1 / (1 + ROWS.abs()) ** 2)
        with pytest.raises(omenn.UnsupportedOperator) as caught:
            omenn.explain(lambda x: Simplex.apply(x) + x, ROWS, 1)
        assert caught.value.operator == "Simplex"


@torch.library.custom_op("omenn_tests::product", mutates_args=())
def product(x: Tensor, w: Tensor) -> Tensor:
    return x @ w


product.register_autograd(
    lambda ctx, grad: (grad @ ctx.w.t(), None),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "w", inputs[1]),
)
PRODUCTS: dict[str, Any] = {
    "function": product,
    "packet": torch.ops.omenn_tests.product,
    "name": "product",
    "name and overload": "product.default",
    "namespace": "omenn_tests::product",
    "all": "omenn_tests.product.default",
}


@pytest.mark.parametrize("kind", ["linear", "native"])
@pytest.mark.parametrize("given", PRODUCTS)
def test_a_rule_for_a_custom_operator(given: str, kind: str) -> None:
    calls = (product, torch.ops.omenn_tests.product, torch.ops.omenn_tests.product.default)
    rule = (lambda call: call.run()) if kind == "native" else kind
    with omenn.rules():
        omenn.rule(PRODUCTS[given], rule)
        for call in calls:
            e = omenn.explain(lambda x, call=call: call(x, WEIGHT) * 2, ROWS, 1)
            assert e.exact
            torch.testing.assert_close(e.weight, 2 * WEIGHT[:, 1].expand(3, 4))
    for call in calls:
        with pytest.raises(omenn.UnsupportedOperator) as caught:
            omenn.explain(lambda x, call=call: call(x, WEIGHT), ROWS, 1)
        assert caught.value.operator in ("product", "product.default")


def test_a_name_that_several_have() -> None:
    first = type("Twice", (torch.autograd.Function,), {})
    second = type("Twice", (torch.autograd.Function,), {})
    with pytest.raises(omenn.InputError):
        omenn.rule("Twice", "linear")
    with omenn.rules({first: "linear", second: "linear"}):
        pass
