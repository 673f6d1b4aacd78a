"""Derivatives that replace PyTorch's: each against the ordinary operator differentiated twice.

Where the call is another than the usual one PyTorch's own must run, and give the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from nets import draw
from omenn.xdnn import AttributionPrior
from omenn.xdnn.double_backward import Convolved, Normalised, Ordinary, PulledBack, Rectified


def leaves(*shapes: Sequence[int]) -> list[Tensor]:
    return [draw(*shape, seed=k).requires_grad_() for k, shape in enumerate(shapes)]


def curved(t: Tensor) -> Tensor:
    """Something smooth with a curve in it, so that no derivative vanishes."""
    return (torch.tanh(t) * draw(*t.shape, seed=7)).sum() + (t**2).sum() / 8


def twice(function: Callable[..., Tensor], x: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """∂/∂(x, parameters) of a curved function of ∂f/∂x, by PyTorch alone."""
    (g,) = torch.autograd.grad(curved(function(x)), x, create_graph=True)
    return list(torch.autograd.grad(curved(g), [x, *parameters], materialize_grads=True))


def twice_replaced(
    function: Callable[..., Tensor], x: Tensor, parameters: list[Tensor]
) -> list[Tensor]:
    mode = Ordinary(graph=True)
    with mode.running():
        y = function(x)
    g = mode.gradient(curved(y), x)
    assert g is not None
    return list(torch.autograd.grad(curved(g), [x, *parameters], materialize_grads=True))


def check(function: Callable[..., Tensor], x: Tensor, parameters: list[Tensor]) -> None:
    got = twice_replaced(function, x, parameters)
    for g, w in zip(got, twice(function, x, parameters), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-11)


def kinds(y: Tensor) -> set[str]:
    """The names of the nodes in the graph of y."""
    found, todo = set(), [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None:
            found.add(type(node).__name__)
            todo += [below for below, _ in node.next_functions]
    return found


REPLACED = {"RectifiedBackward", "ConvolvedBackward", "NormalisedBackward"}


def replaced(function: Callable[..., Tensor], x: Tensor) -> set[str]:
    with Ordinary(graph=True).running():
        return kinds(function(x)) & REPLACED


# --- each on its own


CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


@given(
    n=st.integers(1, 3),
    size=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    uneven=st.booleans(),
)
def test_convolutions(
    n: int, size: int, stride: int, padding: int, dilation: int, groups: int, bias: bool,
    uneven: bool,
) -> None:  # fmt: skip
    x, w, b = leaves((2, 4, *[6, 5, 5][:n]), (4, 4 // groups, *[size] * n), (4,))
    options: dict[str, Any] = {"padding": padding, "dilation": dilation, "groups": groups}
    options["stride"] = (stride, 1, 2)[:n] if uneven else stride

    def function(x: Tensor) -> Tensor:
        return CONVOLUTIONS[n - 1](x, w, b if bias else None, **options)

    assert replaced(function, x) == {"ConvolvedBackward"}
    check(function, x, [w, *[b] * bias])
    mode = Ordinary(graph=True)
    with mode.running():
        y = function(x)
    g = mode.gradient(y.sum(), x)
    assert g is not None
    assert "PulledBackBackward" in kinds(g)  # and not the convolution's own second derivative


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("affine", ["both", "weight", "bias", "none"])
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 2, 3, 4)])
def test_batch_norm(shape: tuple[int, ...], affine: str, channels_last: bool) -> None:
    (x,) = leaves(shape)
    if channels_last:
        kind = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape))
        if kind is None:
            return
        x = x.detach().to(memory_format=kind).requires_grad_()
    mean, var = draw(3, seed=4), draw(3, seed=5).exp()
    weight = draw(3, seed=6).requires_grad_() if affine in ("both", "weight") else None
    bias = draw(3, seed=7).requires_grad_() if affine in ("both", "bias") else None

    def function(x: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, weight, bias, eps=0.1)

    assert replaced(function, x) == {"NormalisedBackward"}
    check(function, x, [t for t in (weight, bias) if t is not None])


@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format])
def test_a_network_in_another_order_of_memory(memory: torch.memory_format) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
            nn.Conv2d(6, 4, 3, stride=2, groups=2, bias=False), nn.ReLU(), nn.Flatten(),
        ).double().eval().to(memory_format=memory)  # fmt: skip
    x = draw(2, 4, 7, 6).to(memory_format=memory).requires_grad_()
    function = lambda x: net(x.clone())  # noqa: E731
    assert replaced(function, x) == REPLACED
    check(function, x, list(net.parameters()))


RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "function": F.relu,
    "in place": lambda x: F.relu(x, inplace=True),
    "in place, by position": lambda x: F.relu(x, True),
    "torch": torch.relu,
    "torch in place": torch.relu_,
    "method": lambda x: x.relu(),
    "method in place": lambda x: x.relu_(),
    "of a view, in place": lambda x: (torch.relu_(x[:, 2:]), x)[1],
}


@pytest.mark.parametrize("name", RELUS)
def test_relu(name: str) -> None:
    x, w = leaves((4, 6), (6, 6))

    def function(x: Tensor) -> Tensor:
        h = x @ w
        y = torch.tanh(RELUS[name](h)) @ w
        return y if name.endswith("in place") or "position" in name else y + h**2

    if "view" not in name:  # there it is a part of CopySlices
        assert replaced(function, x) == {"RectifiedBackward"}
    check(function, x, [w])
    zero = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (at_zero,) = torch.autograd.grad(Rectified.apply(zero, False).sum(), zero)
    assert not at_zero.any()  # PyTorch's choice


# --- as functions of all their arguments: first, second and third derivatives by differences


class Mode:
    """What a node needs to know: whether the gradient by the input alone is wanted."""

    def __init__(self, pulling: bool) -> None:
        self.pulling = pulling


def test_derivatives_by_differences() -> None:
    x, w, b = leaves((2, 4, 6), (2, 2, 3), (2,))
    options = ([2], [1], [1], False, [0], 2)
    mean, var = draw(4, seed=4), draw(4, seed=5).exp()
    still = Mode(pulling=False)
    convolved = lambda *t: Convolved.apply(*t, options, still)  # noqa: E731
    normalised = lambda x, w, b: Normalised.apply(x, (mean, var, 0.1), still, w, b)  # noqa: E731
    rectified = lambda x: Rectified.apply(x, False)  # noqa: E731
    weight, bias = leaves((4,), (4,))
    for function, arguments in [
        (convolved, (x, w, b)),
        (normalised, (x, weight, bias)),
        (rectified, (x,)),
    ]:
        assert torch.autograd.gradcheck(function, arguments)
        assert torch.autograd.gradgradcheck(function, arguments)
    grad = draw(2, 2, 3, seed=8).requires_grad_()
    pulled = lambda g, w: PulledBack.apply(g, w, x.detach(), options)  # noqa: E731
    assert torch.autograd.gradcheck(pulled, (grad, w))
    assert torch.autograd.gradgradcheck(pulled, (grad, w))


@pytest.mark.parametrize("kind", ["convolution", "norm"])
def test_the_gradient_by_the_input_has_a_derivative_by_differences(kind: str) -> None:
    x, w = leaves((2, 3, 5), (3, 3, 3) if kind == "convolution" else (3,))
    mean, var = draw(3, seed=4), draw(3, seed=5).exp()

    def gradient(x: Tensor, w: Tensor) -> Tensor:
        mode = Ordinary(graph=True)
        with mode.running():
            y = F.conv1d(x, w) if kind == "convolution" else F.batch_norm(x, mean, var, w)
        found = mode.gradient(torch.tanh(y).pow(2).sum(), x)
        assert found is not None
        return found

    assert torch.autograd.gradcheck(gradient, (x, w))
    assert torch.autograd.gradgradcheck(gradient, (x, w))


# --- what is another call runs as it is


NUMBERS = {"conv": draw(3, 3, 3, 3, seed=11).requires_grad_(), "norm": draw(3, seed=12)}
NORM = (torch.zeros(3).double(), torch.ones(3).double())

OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "padding in words": lambda x: F.conv2d(x, NUMBERS["conv"], padding="same"),
    "no batch": lambda x: F.conv2d(x[0], NUMBERS["conv"]),
    "transposed": lambda x: F.conv_transpose2d(x, NUMBERS["conv"]),
    "a kernel made of the input": lambda x: F.conv2d(x, NUMBERS["conv"] * x.mean()),
    "a bias made of the input": lambda x: F.conv2d(x, NUMBERS["conv"], x.mean((0, 2, 3))),
    "a scale made of the input": lambda x: F.batch_norm(x, *NORM, x.mean((0, 2, 3))),
    "a shift made of the input": lambda x: F.batch_norm(
        x, *NORM, NUMBERS["norm"], x.mean((0, 2, 3)) ** 2
    ),
    "statistics of the batch": lambda x: F.batch_norm(x, None, None, training=True),
    "statistics of the batch beside others": lambda x: F.batch_norm(
        x, NORM[0].clone(), NORM[1].clone(), training=True
    ),
    "a name": lambda x: torch.relu(input=x),
    "complex": lambda x: F.conv2d(torch.complex(x, x), NUMBERS["conv"] * (1 + 1j)).abs(),
    "a derivative inside": lambda x: torch.func.grad(
        lambda z: F.softplus(F.relu(F.conv2d(z, NUMBERS["conv"]))).sum()
    )(x),
    "vmap inside": lambda x: torch.vmap(lambda z: F.relu(F.conv2d(z[None], NUMBERS["conv"])))(x),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_another_call_is_pytorchs(name: str) -> None:
    (x,) = leaves((2, 3, 5, 5))
    assert replaced(OTHERS[name], x) == set()
    check(OTHERS[name], x, [NUMBERS["conv"]])


def test_a_weight_that_is_computed() -> None:
    """Of parameters alone, and right all the same."""
    with torch.random.fork_rng(devices=[]):
        net = weight_norm(nn.Conv2d(3, 4, 3)).double()
    check(net, *leaves((2, 3, 5, 5)), list(net.parameters()))


def test_autocast_inside_of_the_model() -> None:
    w, (mean, var) = NUMBERS["conv"].detach().float().requires_grad_(), map(Tensor.float, NORM)

    def function(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.relu(F.batch_norm(F.conv2d(x, w), mean, var)).float()

    x = draw(2, 3, 5, 5).float().requires_grad_()
    assert replaced(function, x) == set()
    check(function, x, [w])


def test_a_forward_derivative_inside() -> None:
    from torch.autograd import forward_ad

    (x,) = leaves((2, 3, 5, 5))

    def function(x: Tensor) -> Tensor:
        with forward_ad.dual_level():
            y = F.relu(F.conv2d(forward_ad.make_dual(x, x.detach() ** 2), NUMBERS["conv"]))
            return forward_ad.unpack_dual(y).tangent + forward_ad.unpack_dual(y).primal

    check(function, x, [NUMBERS["conv"]])


class Sevenfold(Tensor):
    """A kind of tensor with a convolution of its own."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, types, args, kwargs or {})
        return found * 7 if func is torch.conv2d else found


def test_a_kind_of_tensor_with_ways_of_its_own() -> None:
    (x,) = leaves((2, 3, 5, 5))
    other = lambda x: F.conv2d(x.as_subclass(Sevenfold), NUMBERS["conv"]).as_subclass(Tensor)  # noqa: E731
    assert replaced(other, x) == set()
    check(other, x, [NUMBERS["conv"]])
    torch.testing.assert_close(other(x), 7 * F.conv2d(x, NUMBERS["conv"]))


def test_what_pytorch_refuses_is_refused_as_ever() -> None:
    (x,) = leaves((2, 3, 5, 5))
    calls: list[Callable[[], Any]] = [
        lambda: torch.conv2d(x),  # pyright: ignore
        lambda: F.batch_norm(x),  # pyright: ignore
        lambda: F.batch_norm(x, x.mean((0, 2, 3)), NORM[1]),
        lambda: F.batch_norm(x, NORM[0], x.var((0, 2, 3))),
        lambda: F.batch_norm(x, NORM[0], None),
    ]
    for function in calls:
        with pytest.raises((TypeError, RuntimeError)) as plain:
            function()
        with Ordinary(graph=True).running(), pytest.raises(plain.type) as found:
            function()
        assert str(found.value) == str(plain.value)


# --- what is around


def test_other_modes_around_and_inside() -> None:
    """Each sees the calls that it would see, and numbers do not change."""

    class Seen(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            self.names.append(getattr(func, "__name__", ""))
            return func(*args, **kwargs or {})

    inside, around = Seen(), Seen()

    def function(x: Tensor) -> Tensor:
        with inside:
            return F.relu(F.conv2d(x, NUMBERS["conv"]))

    (x,) = leaves((2, 3, 5, 5))
    with around, torch.device("cpu"):
        assert replaced(function, x) == {"RectifiedBackward", "ConvolvedBackward"}
        check(function, x, [NUMBERS["conv"]])
    assert {"relu", "conv2d"} <= set(inside.names)
    assert around.names


def test_a_gradient_inside_of_the_model() -> None:
    """It is by all that it wants, whatever is pulled back around it."""

    def function(x: Tensor) -> Tensor:
        kernel = NUMBERS["conv"].detach().clone().requires_grad_()
        e = (torch.tanh(F.relu(F.conv2d(x, kernel))) ** 3).sum()
        by_x, by_kernel = torch.autograd.grad(e, [x, kernel], create_graph=True)
        return by_x**3 * by_kernel.sum()

    (x,) = leaves((2, 3, 5, 5))
    assert replaced(function, x)
    check(function, x, [])


def test_recurrent_layers_run_without_cudnn() -> None:
    """Its kernels have no derivative in evaluation mode."""

    class Flag(TorchFunctionMode):
        found: bool | None = None

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            if func is torch.gru:
                self.found = torch.backends.cudnn.enabled
            return func(*args, **kwargs or {})

    with torch.random.fork_rng(devices=[]):
        net = nn.GRU(3, 4, batch_first=True).double().eval()
    before = torch.backends.cudnn.enabled
    for graph in (False, True):
        with Flag() as flag, Ordinary(graph).running():
            net(draw(2, 5, 3))
        assert flag.found is False
    assert torch.backends.cudnn.enabled is before
    check(lambda x: net(x)[0], *leaves((2, 5, 3)), list(net.parameters()))


def test_without_a_graph_nothing_is_replaced() -> None:
    (x,) = leaves((2, 3, 5, 5))
    mode = Ordinary(graph=False)
    with mode.running():
        y = F.relu(F.conv2d(x, NUMBERS["conv"]))
    assert not kinds(y) & REPLACED
    found = mode.gradient(y.sum(), x)
    assert found is not None
    assert not found.requires_grad


# --- models that run a part of themselves in another way


class Checkpointed(nn.Module):
    """A part that is not stored, and would run with dropout and batch statistics later on."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Softplus(),
            nn.Conv2d(4, 4, 3, padding="same"),
        )  # fmt: skip
        self.head, self.stored = nn.Linear(4, 3), False

    def forward(self, x: Tensor) -> Tensor:
        h = self.part(x) if self.stored else checkpoint(self.part, x, use_reentrant=False)
        return self.head(h.mean((2, 3)))


@pytest.mark.parametrize("method", ["xgradient", "omenn"])
def test_gradient_checkpointing(method: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Checkpointed().double().train()
    x, y, prior = draw(2, 3, 7, 7), torch.tensor([2, 0]), AttributionPrior(curved, 1.0, method)
    found = []
    for net.stored in (False, True):
        before = {name: t.clone() for name, t in net.named_buffers()}
        net.zero_grad()
        prior(net, x, y).backward()
        found.append([torch.zeros(1) if p.grad is None else p.grad for p in net.parameters()])
        for name, t in net.named_buffers():
            assert torch.equal(t, before[name])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    # The checkpoint is one again afterwards: its part runs a second time.
    runs: list[int] = []
    net.part[0].register_forward_hook(lambda *_: runs.append(1))
    net.stored = False
    net(x).sum().backward()
    assert len(runs) == 2


@pytest.mark.parametrize("method", ["gradient", "integrated-gradients", "omenn"])
def test_a_compiled_model(method: str) -> None:
    """PyTorch does not differentiate compiled code twice; the model runs as it was written."""
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.GELU(), nn.Linear(5, 3)).double()
    compiled = torch.compile(net, backend="aot_eager")
    x, y = draw(2, 4), torch.tensor([0, 2])
    compiled(x)
    prior = AttributionPrior(curved, 1.0, method)
    wanted = torch.autograd.grad(prior(net, x, y), net[0].weight)
    assert torch.equal(torch.autograd.grad(prior(compiled, x, y), net[0].weight)[0], wanted[0])
