"""What has no operator, or no product with it, and what an operator leaves untouched."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import omenn
from nets.small import Two
from nets.whole import IMAGE, ViT, by_rows, close, convnet, made, mlp
from omenn.engine.operators.record import same
from omenn.engine.operators.table import OPERATORS, Operator
from opcases.case import draw
from opcases.linear import seeded

# --- what is refused -----------------------------------------------------------------------------


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
        lambda: omenn.operator(lambda x: x.softmax(0), X),
        "operator 'softmax' in module '(model)': the output is a frozen coefficient (a softmax, a "
        "logarithm, 1/x), which has no linear part. Explain the logits before it: output=... or a "
        "model without the last operator."),
    "complex": (omenn.TargetError, lambda: omenn.operator(torch.fft.rfft, X),
        "the output is complex. Choose a real part of it with output=."),
    "chunk": (omenn.InputError, lambda: omenn.operator(mlp(), X, chunk=0),
        "chunk must be an integer of at least 1, but 0 was given."),
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

    (x,) = call.active
    return call.frozen(x, call.value(), vjp)


@pytest.fixture
def own_rule(monkeypatch):
    monkeypatch.setitem(OPERATORS, "neg", Operator(hidden, same))


def test_kernel_without_a_derivative(monkeypatch) -> None:
    def rule(call):
        return call.frozen(call.active[0], call.value(), lambda g: Once.apply(g))

    monkeypatch.setitem(OPERATORS, "neg", Operator(rule, same))
    with pytest.raises(omenn.ModelError) as caught:
        omenn.operator(torch.neg, X)
    assert str(caught.value) == (
        "a vector cannot go through the model: the kernel has no derivative. Use omenn.rows, which "
        "goes back alone, or begin at a later module with from_=."
    )


def test_rule_that_takes_one_vector_at_a_time(monkeypatch) -> None:
    def rule(call):
        vjp = lambda g: -g if bool((g < 1e9).all()) else g  # noqa: E731
        return call.frozen(call.active[0], call.value(), vjp)

    monkeypatch.setitem(OPERATORS, "neg", Operator(rule, same))
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


def test_wrong_constant_is_noticed(monkeypatch) -> None:
    """b is carried through the network, and not taken as f − W x."""

    def rule(call):
        out = call.frozen(call.active[0], call.value(), lambda g: -g)
        return call.attach(out, torch.ones(4, dtype=torch.float64))

    monkeypatch.setitem(OPERATORS, "neg", Operator(rule, same))
    op = omenn.operator(torch.neg, X)
    close(op.constant, torch.ones(4).double())
    close(op.residual, -torch.ones(4).double())
    assert not op.exact


def test_passes_that_disagree_are_noticed(monkeypatch) -> None:
    """A kernel that is used without gradients alone, as that of the layer norm, must agree."""

    def rule(call):
        vjp = lambda g: -g if torch.is_grad_enabled() else -1.01 * g  # noqa: E731
        return call.frozen(call.active[0], call.value(), vjp)

    monkeypatch.setitem(OPERATORS, "neg", Operator(rule, same))
    op = omenn.operator(torch.neg, X)
    assert not op.residual.any()
    assert not op.exact


# --- what is left untouched ----------------------------------------------------------------------


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
