"""Models as people wrap, compile, hook and write them: exact.

Each is held to the plain model that it stands for: the same weight, bias and output, and a
certificate. What is refused is in ``test_robust_refused``; ``docs/robustness.md`` lists both.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torch.utils.data import default_collate

import omenn
from nets.wrapped import BODY, HEAD, X, beside, both, changed, network, plain, plain_body
from opcases.case import draw

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*quantized tensor creation:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*quant_min and quant_max:UserWarning"),
    pytest.mark.filterwarnings("ignore:To copy construct:UserWarning"),
]


class Case(NamedTuple):
    """A model (made when it is needed), and the plain one that it stands for."""

    make: Callable[[], Any]
    stands_for: Callable[[Tensor], Tensor] = plain


class Method(nn.Module):
    """A method and a function that are compiled, inside of an ordinary forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = BODY, HEAD
        self.inner = torch.compile(lambda x: torch.relu(self.body(x)), backend="eager")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x))


def warm(make: Callable[[], Any]) -> Callable[[], Any]:
    def called() -> Any:
        model = make()
        model(X)
        return model

    return called


def compiled(net: nn.Module) -> nn.Module:
    return torch.compile(net, backend="eager")  # pyright: ignore[reportReturnType]


def second_compiled(net: nn.Sequential) -> None:
    net[2] = compiled(net[2])


def forward_compiled(net: nn.Sequential) -> None:
    net.forward = torch.compile(net.forward, backend="eager")


COMPILED = {
    "whole": Case(changed(compiled)),
    "whole, warm": Case(warm(changed(compiled))),
    "whole, in place": Case(changed(lambda net: net.compile(backend="eager"))),
    "whole, in place, warm": Case(warm(changed(lambda net: net.compile(backend="eager")))),
    "a submodule": Case(changed(second_compiled)),
    "a submodule, in place, warm": Case(warm(changed(lambda net: net[0].compile(backend="eager")))),
    "a function inside": Case(lambda: Method().eval()),
    "a function inside, warm": Case(warm(lambda: Method().eval())),
    "the forward": Case(changed(forward_compiled)),
    "a function": Case(lambda: torch.compile(plain, backend="eager")),
    "a function, warm, aot": Case(warm(lambda: torch.compile(plain, backend="aot_eager"))),
}


def parallel(x: Tensor) -> Tensor:
    return torch.jit.wait(torch.jit.fork(plain, x))


def own_mode(x: Tensor) -> Tensor:
    class Doubles(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            return 2 * out if func is F.linear else out

    with Doubles():
        inner = BODY(x)
    return HEAD(torch.relu(inner / 2))


def cached(write: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """A cache that is made in the forward and written into through a view."""

    def model(x: Tensor) -> Tensor:
        cache = torch.zeros(3, 8, dtype=x.dtype)
        write(cache, BODY(x))
        return HEAD(x) + cache[:, :3]

    return model


def written(write: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    def model(x: Tensor) -> Tensor:
        y = BODY(x)
        write(y)
        return HEAD(y) + HEAD(x)

    return model


def functional(x: Tensor) -> Tensor:
    return HEAD(torch.relu(torch.func.functional_call(BODY, dict(BODY.named_parameters()), (x,))))


def swapped(x: Tensor) -> Tensor:
    there, y = torch.zeros(3, 4, dtype=x.dtype), BODY(x)
    torch.utils.swap_tensors(there, y)
    return HEAD(x) + there[:, :3]


class Keeps(nn.Module):
    """Keeps an activation as an attribute and as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = BODY, HEAD
        self.register_buffer("seen", torch.zeros(3, 4).double())

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.body(x)
        self.seen = torch.relu(self.last)
        return self.head(self.seen)


def doubled_by_a_hook(net: nn.Sequential) -> None:
    net[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    net[0].register_forward_hook(lambda module, args, out: out / 2 + module.bias / 2)


SUPPORTED = COMPILED | {
    "checkpoint": Case(lambda: lambda x: HEAD(checkpoint(plain_body, x, use_reentrant=False))),
    "checkpoint in checkpoint": Case(
        lambda: lambda x: checkpoint(_checkpointed, x, use_reentrant=False)
    ),
    "checkpoints in a row": Case(
        lambda: lambda x: checkpoint_sequential(network(), 2, x, use_reentrant=False)
    ),
    "data parallel on one device": Case(changed(lambda net: nn.DataParallel(net).eval())),
    "fx": Case(changed(torch.fx.symbolic_trace)),
    "weight norm": Case(changed(lambda net: parametrizations.weight_norm(net[0]) and net.eval())),
    "hooks that change input and output": Case(changed(doubled_by_a_hook)),
    "hook on a weight": Case(changed(lambda net: net[0].weight.register_hook(lambda g: 2 * g))),
    "keeps activations": Case(lambda: Keeps().eval()),
    "function mode inside": Case(lambda: own_mode),
    "fork": Case(lambda: parallel),
    "functional call": Case(lambda: functional),
    "swapped tensors": Case(lambda: swapped, beside),
    "collate": Case(lambda: both(lambda y: default_collate(list(y))), beside),
    "buffer": Case(lambda: both(nn.Buffer), beside),
    "copied": Case(lambda: both(torch.tensor), beside),
    "cache": Case(lambda: cached(lambda c, y: c[:, :4].copy_(y)), beside),
    "cache by index": Case(
        lambda: cached(lambda c, y: c.__setitem__((slice(None), slice(4)), y)), beside
    ),
    "data scaled": Case(
        lambda: written(lambda y: y.data.mul_(2)), lambda x: HEAD(2 * BODY(x)) + HEAD(x)
    ),
    "detached and scaled": Case(
        lambda: written(lambda y: y.detach().mul_(2)), lambda x: HEAD(2 * BODY(x)) + HEAD(x)
    ),
    "data overwritten": Case(
        lambda: written(lambda y: y.data.copy_(torch.tanh(y))),
        lambda x: HEAD(BODY(x).tanh()) + HEAD(x),
    ),
    "data filled": Case(
        lambda: written(lambda y: y.data.fill_(1.0)), lambda x: HEAD(torch.ones_like(x)) + HEAD(x)
    ),
    "printed": Case(lambda: both(lambda y: y * bool(str(y))), beside),
}


def _checkpointed(x: Tensor) -> Tensor:
    return HEAD(checkpoint(plain_body, x, use_reentrant=False))


@pytest.mark.parametrize("name", SUPPORTED)
def test_supported(name: str) -> None:
    case = SUPPORTED[name]
    model = case.make()
    e = omenn.explain(model, X, 1)
    wanted = omenn.explain(case.stands_for, X, 1)
    torch.testing.assert_close(e.output, wanted.output)
    torch.testing.assert_close(e.weight, wanted.weight)
    torch.testing.assert_close(e.matrix, wanted.matrix)
    assert omenn.certify(model, X, 1).exact
    assert not torch.overrides._get_current_function_mode_stack()


def test_a_compiled_model_is_compiled_afterwards() -> None:
    """The stance of the compiler is one for the process: it is put back, also after an error."""
    from torch._dynamo import eval_frame

    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    model = torch.compile(network(), backend=backend)
    before = eval_frame._stance
    omenn.explain(model, X, 1)
    with pytest.raises(omenn.TargetError):
        omenn.explain(model, X, 10)
    assert eval_frame._stance is before
    assert not calls
    model(X)
    assert calls


def test_explain_inside_of_a_compiled_function() -> None:
    wanted = omenn.explain(plain, X, 1).matrix
    f = torch.compile(lambda x: omenn.explain(plain, x, 1).matrix * 2, backend="eager")
    torch.testing.assert_close(f(X), 2 * wanted)


def test_hooks_on_gradients_do_not_act() -> None:
    """A hook on an activation is for the model's own derivatives; an explanation takes none."""

    def model(x: Tensor, factor: float) -> Tensor:
        y = BODY(x)
        if y.requires_grad:
            y.register_hook(lambda g: factor * g)
        return HEAD(torch.relu(y))

    wanted = omenn.explain(lambda x: HEAD(torch.relu(BODY(x))), X, 1)
    for factor in (1.0, 3.0):
        e = omenn.explain(lambda x, factor=factor: model(x, factor), X, 1)
        assert e.exact
        assert torch.equal(e.weight, wanted.weight)


def test_memory_that_is_used_again_is_no_alias() -> None:
    """The allocator gives the memory of a dead activation to a constant: that is no alias."""

    def model(x: Tensor) -> Tensor:
        total = HEAD(x)
        for _ in range(50):
            BODY(x)  # dropped at once
            total = total + torch.ones(3, 4, dtype=x.dtype)[:, :3]
        return total

    assert omenn.explain(model, X, 1).exact


def test_precision_lost_by_autocast_is_allowed_for() -> None:
    net, x = network().float(), X.float()

    class Inside(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return net(x)

    for model in (net, Inside().eval()):
        with torch.autocast("cpu", torch.bfloat16):
            e = omenn.explain(model, x, 1)
            assert omenn.certify(model, x, 1).exact
            wanted = model(x)[:, 1].float()
        assert e.exact
        assert e.tolerance > 1e-5  # it is bfloat16 that carried the values
        torch.testing.assert_close(e.output.float(), wanted)
        torch.testing.assert_close(e.weight, omenn.explain(net, x, 1).weight, atol=0.05, rtol=0.1)
    assert omenn.explain(net, x, 1).tolerance == 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    assert omenn.certify(network().to(dtype), X.to(dtype), 1).exact


def test_pruned_and_orthogonal_weights() -> None:
    net, fixed = network(), network()
    for pruned in (net, fixed):
        prune.l1_unstructured(pruned[0], "weight", 3)
    prune.remove(fixed[0], "weight")
    e = omenn.explain(net, X, 1)
    torch.testing.assert_close(e.matrix, omenn.explain(fixed, X, 1).matrix)
    turned = network()
    parametrizations.orthogonal(turned[0])
    parametrizations.spectral_norm(turned[2])
    assert omenn.certify(turned.eval(), X, 1).exact


def test_sparse_matrix_product() -> None:
    sparse = BODY.weight.detach().to_sparse()
    with pytest.raises(omenn.UnsupportedOperator, match="_sparse_mm"):
        omenn.explain(lambda x: HEAD(torch.sparse.mm(sparse, x.T).T), X, 1)
    e = omenn.explain(lambda x: HEAD((sparse @ x.T).T), X, 1)
    torch.testing.assert_close(
        e.weight, omenn.explain(lambda x: HEAD(x @ BODY.weight.T), X, 1).weight
    )


def test_subclass_of_tensor_as_input() -> None:
    class Image(Tensor):
        pass

    e = omenn.explain(network(), X.as_subclass(Image), 1)
    torch.testing.assert_close(e.matrix, omenn.explain(network(), X, 1).matrix)


def test_first_compilation_inside_of_the_explanation() -> None:
    """Where the model is the first to import the compiler, that pass is run once more without."""
    compiler = sys.modules.pop("torch._dynamo", None) or importlib.import_module("torch._dynamo")
    sys.modules.pop("torch._dynamo", None)
    calls: list[bool] = []

    def model(x: Tensor) -> Tensor:
        calls.append("torch._dynamo" in sys.modules)
        sys.modules["torch._dynamo"] = compiler
        if not calls[-1]:
            raise RuntimeError("from inside of the compiler")
        return torch.compile(torch.relu, backend=refused)(x) * 2

    def refused(*_: object) -> None:
        raise AssertionError("something was compiled")

    try:
        e = omenn.explain(model, x := draw(1, 4), 1)
        torch.testing.assert_close(e.matrix, torch.eye(4)[1:2] * x.relu() * 2)
        assert calls[:2] == [False, True]
    finally:
        sys.modules["torch._dynamo"] = compiler


def test_checkpointing_of_timm() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False, img_size=32, num_classes=3).eval()
    x = draw(1, 3, 32, 32).float()
    wanted = omenn.explain(model, x, 1).matrix
    model.set_grad_checkpointing(True)
    assert torch.equal(omenn.explain(model, x, 1).matrix, wanted)
