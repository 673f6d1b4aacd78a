"""What surrounds an explanation: modes and settings of the user, transforms, other explanations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import omenn
from nets.small import IMAGE, convnet
from nets.whole import NETWORKS
from nets.wrapped import BODY, HEAD, X, network, plain


class Passing(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Dispatching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Doubling(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return 2 * out if func is nn.functional.linear else out


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


graph = torch.autograd.graph
AROUND: dict[str, Callable[[], Any]] = {
    "anomaly": lambda: torch.autograd.detect_anomaly(check_nan=True),
    "default float16": lambda: default_dtype(torch.float16),
    "default float64": lambda: default_dtype(torch.float64),
    "device": lambda: torch.device("cpu"),
    "meta device": lambda: torch.device("meta"),
    "default meta device": lambda: default_device("meta"),
    "deterministic": deterministic,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),  # float64 is left as it is
    "function mode": Passing,
    "dispatch mode": Dispatching,
    "subclasses off": torch._C.DisableTorchFunctionSubclass,
    "saved elsewhere": graph.save_on_cpu,
    "nothing may be packed": lambda: graph.disable_saved_tensors_hooks("no"),
    "one thread": lambda: torch.autograd.set_multithreading_enabled(False),
    "forward mode": torch.autograd.forward_ad.dual_level,
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@pytest.mark.parametrize("name", AROUND)
def test_what_the_user_has_set_does_not_matter(name: str) -> None:
    net = convnet()
    wanted = omenn.explain(net, IMAGE, 1)
    with AROUND[name]():
        e = omenn.explain(net, IMAGE, 1)
        certificate = omenn.certify(net, IMAGE, 1)
    assert torch.equal(e.matrix, wanted.matrix)
    assert torch.equal(e.weight, wanted.weight)
    assert certificate.exact


def test_a_mode_that_changes_values_is_told() -> None:
    """It changes the engine too, so the sum misses the output; that is said."""
    with Doubling():
        assert not omenn.explain(network(), X, 1).exact
        assert not omenn.certify(network(), X, 1).exact


def explained(x: Tensor) -> Tensor:
    return omenn.explain(plain, x, 1).matrix


def _fake() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        explained(X)


def _unseen() -> None:
    with torch._C.DisableTorchFunction():
        explained(X)


NUMBERS = "an explanation needs numbers, but it was called inside of {}. Call it outside."
FUNC, TRACE = NUMBERS.format("torch.func or torch.vmap"), NUMBERS.format("torch.jit.trace")
WITHOUT: dict[str, tuple[Callable[[], Any], str]] = {
    "vmap": (lambda: torch.vmap(lambda row: explained(row[None]))(X), FUNC),
    "grad": (lambda: torch.func.grad(lambda x: explained(x).sum())(X), FUNC),
    "jvp": (lambda: torch.func.jvp(explained, (X,), (X,)), FUNC),
    "jit.trace": (lambda: torch.jit.trace(explained, X), TRACE),
    "make_fx": (lambda: make_fx(explained)(X), NUMBERS.format("make_fx or torch.export")),
    "fake tensors": (_fake, NUMBERS.format("FakeTensorMode")),
    "dispatch off": (
        _unseen,
        "nothing can be seen inside of torch._C.DisableTorchFunction. Explain outside of it.",
    ),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", WITHOUT)
def test_where_there_are_no_numbers(name: str) -> None:
    call, text = WITHOUT[name]
    with pytest.raises(omenn.OmennError) as caught:
        call()
    assert str(caught.value) == text


# --- explanations inside of explanations -----------------------------------------------------

NESTED = (
    "an explanation inside of another one was given a tensor that depends on the input of the "
    "outer one, which could not follow it. Explain after the outer one has ended."
)
FROZEN = (
    "omenn.frozen was entered inside of omenn.frozen or of a model that is being explained. Give "
    "all tensors to one of them: omenn.frozen(x, y)."
)


class Explains(nn.Module):
    """Explains inside of its forward what it was told to."""

    def __init__(self, inner: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.head, self.inner = HEAD, inner

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) * self.inner(x)


def number_of(inner: Callable[[], Any]) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        inner()
        return 1 + omenn.explain(network(), X, 1).matrix.sum()

    return call


def fails() -> None:
    with pytest.raises(omenn.TargetError):
        omenn.explain(network(), X, 99)


INSIDE = {
    "explain": lambda: omenn.explain(network(), X, 1, at="0"),
    "certify": lambda: omenn.certify(network(), X, 1).exact or pytest.fail("not exact"),
    "rows": lambda: omenn.rows(network(), X, [0, 1]),
    "operator": lambda: omenn.operator(network(), X[:1]).to_dense(),
    "failed": lambda: fails(),
}


@pytest.mark.parametrize("name", INSIDE)
def test_explaining_something_else_inside_of_the_forward(name: str) -> None:
    inner = number_of(INSIDE[name])
    number = inner(X)
    e = omenn.explain(Explains(inner).eval(), X, 1)
    assert omenn.certify(Explains(inner).eval(), X, 1).exact
    wanted = omenn.explain(lambda x: HEAD(x) * number, X, 1)
    torch.testing.assert_close(e.matrix, wanted.matrix)


@pytest.mark.parametrize("where", ["target", "output", "hook"])
def test_explaining_something_else_on_the_way(where: str) -> None:
    wanted = omenn.explain(network(), X, 1).matrix

    def passing(out: Tensor) -> Tensor:
        assert torch.equal(omenn.explain(network(), X, 1).matrix, wanted)
        return out

    net = network()
    options: dict[str, Any] = {"target": 1}
    if where == "target":
        options["target"] = lambda out: passing(out)[:, 1]
    elif where == "output":
        options["output"] = passing
    else:
        net[1].register_forward_hook(lambda module, args, out: passing(out))
    torch.testing.assert_close(omenn.explain(net, X, **options).matrix, wanted)


def test_explaining_something_else_inside_of_frozen() -> None:
    x, net = X.clone().requires_grad_(), network()
    with omenn.frozen(x):
        e = omenn.explain(net, X, 1)
        y = net(x)[:, 1].sum()
    (weight,) = torch.autograd.grad(y, x)
    torch.testing.assert_close(weight, e.weight)
    torch.testing.assert_close(weight, omenn.explain(net, X, 1).weight)


def test_explaining_what_an_explanation_follows() -> None:
    x = X.clone().requires_grad_()
    leak: list[Tensor] = []

    def closure(x: Tensor) -> Tensor:
        y = BODY(x)
        return HEAD(x) + omenn.explain(lambda z: z * y[:, :3], X[:, :3], 1).matrix

    def kept(x: Tensor) -> Tensor:
        leak.append(BODY(x))
        return HEAD(x) + omenn.explain(network(), leak[-1], 1).matrix[:, :3]

    calls: list[Callable[[], Any]] = [
        lambda: omenn.explain(Explains(lambda x: explained(x)[:, :3]).eval(), X, 1),
        lambda: omenn.explain(Explains(lambda x: explained(x.detach())[:, :3]).eval(), X, 1),
        lambda: omenn.explain(closure, X, 1),
        lambda: omenn.explain(kept, X, 1),
    ]
    for call in calls:
        with pytest.raises(omenn.InputError) as caught:
            call()
        assert str(caught.value) == NESTED
    with omenn.frozen(x), pytest.raises(omenn.InputError) as caught:
        omenn.explain(network(), x, 1)
    assert str(caught.value) == NESTED
    assert not torch.overrides._get_current_function_mode_stack()


def test_frozen_inside_of_frozen() -> None:
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()

    def freezes(z: Tensor) -> Tensor:
        with omenn.frozen(y):
            return network()(z)

    with omenn.frozen(x), pytest.raises(omenn.InputError) as caught, omenn.frozen(y):
        pass
    assert str(caught.value) == FROZEN
    with pytest.raises(omenn.InputError) as caught:
        omenn.explain(freezes, X, 1)
    assert str(caught.value) == FROZEN
    with omenn.frozen(x, y):
        total = (plain(x) + plain(y))[:, 1].sum()
    gradients = torch.autograd.grad(total, [x, y])
    torch.testing.assert_close(gradients[0], omenn.explain(plain, X, 1).weight)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_frozen_needs_a_tensor_that_autograd_follows() -> None:
    text = (
        "omenn.frozen needs the tensors to differentiate by, each with requires_grad=True; call "
        "x.requires_grad_() first, outside of torch.inference_mode."
    )
    with torch.inference_mode():
        made_inside = X.clone().requires_grad_()
    for x in (X, made_inside):
        with pytest.raises(omenn.InputError) as caught, omenn.frozen(x):
            pass
        assert str(caught.value) == text


@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_pass_back_is_not_cast(name: str) -> None:
    """Autocast around the call is for the forward pass, in PyTorch's own nodes and in omenn's."""
    build, x = NETWORKS[name]
    net = build().float()
    given = x.float() if x.is_floating_point() else x
    target = lambda out: out.reshape(len(given), -1)[:, 1].float()  # noqa: E731
    plain = omenn.explain(net, given, target)
    with torch.autocast("cpu", torch.bfloat16):
        e = omenn.explain(net, given, target)
        both = omenn.rows(net, given, [target, target], chunk=2)
        op = omenn.operator(net, given)
        row = op.rows(1)[0]
    assert e.exact
    assert both.exact
    assert op.exact
    scale = float(plain.weight.abs().max())
    for weight in (e.weight, both.weight[:, 1], row.reshape(plain.weight.shape)):
        torch.testing.assert_close(weight, plain.weight, atol=0.1 * scale, rtol=0.1)
