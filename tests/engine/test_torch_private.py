"""PyTorch's private names stand in one file, and each does in this PyTorch what omenn needs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

import omenn
from omenn.engine import torch_private

SOURCE = Path(omenn.__file__).parent
HOME = Path(torch_private.__file__)

# Private attributes of tensors and modules, which are used where they act.
ATTRIBUTES = {"_base", "_version", "_is_view", "_values", "_parameters", "_buffers", "_modules"}


def trees() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(SOURCE.rglob("*.py")):
        if path != HOME:
            yield str(path.relative_to(SOURCE)), ast.parse(path.read_text("utf-8"))


def chain(node: ast.AST) -> list[str]:
    """``torch._C._nn`` as its names, and nothing of what does not begin with a name."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [*names, node.id][::-1] if isinstance(node, ast.Name) else []


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_no_other_file_names_what_torch_keeps_to_itself() -> None:
    found = []
    for path, tree in trees():
        for node in ast.walk(tree):
            names = chain(node)
            if names[:1] in (["torch"], ["forward_ad"], ["F"]) and any(map(private, names)):
                found.append(f"{path}: {'.'.join(names)}")
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
                found += [f"{path}: {a.name}" for a in node.names if private(a.name)]
    assert not found


def test_the_private_attributes_in_use_are_known() -> None:
    shared = {n for home in (Tensor, nn.Module()) for n in dir(home) if private(n)}
    own = {
        node.attr
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in shared
        if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "mode"))
    }
    assert own == ATTRIBUTES


def test_a_missing_name_is_said_with_the_version() -> None:
    with pytest.raises(ImportError) as caught:
        torch_private._private("_C._no_such_name")
    assert torch.__version__ in str(caught.value)
    assert "torch._C._no_such_name" in str(caught.value)


# --- what each must do


class Names(TorchFunctionMode):
    """Remembers what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, *grads):
        return grads[0] * 2


def modes_are_listed_and_switched_off() -> None:
    with Names() as outer, Names() as inner:
        assert torch_private.function_modes()[-2:] == [outer, inner]
        assert torch_private.function_modes_enabled()
        assert not torch_private.function_modes_disabled()
        inner.seen.clear()
        with torch_private.DisableTorchFunction():
            torch.ones(1).relu()
            assert torch_private.function_modes_disabled()
            assert not torch_private.function_modes_enabled()
        assert torch.relu not in inner.seen
        assert Tensor.relu not in inner.seen
    assert not torch_private.function_modes_enabled()


def modes_see_the_switch_of_gradients() -> None:
    with Names() as mode, torch.no_grad():
        pass
    assert torch_private.set_gradients in mode.seen


def modes_see_dual_tensors_made() -> None:
    with forward_ad.dual_level(), Names() as mode:
        forward_ad.make_dual(torch.ones(1), torch.ones(1))
    assert torch_private.make_dual in mode.seen


def functions_of_the_kernels_are_callable() -> None:
    assert torch_private.nn_functions.avg_pool2d(torch.ones(1, 1, 2, 2), 2).item() == 1


def functions_share_a_base() -> None:
    assert issubclass(torch.autograd.Function, torch_private.FunctionBase)
    assert "apply" not in vars(torch_private.FunctionBase)  # the one in force is inherited
    y = Double.apply(torch.ones(1, requires_grad=True))
    assert isinstance(y.grad_fn, torch_private.node_class(Double))


def operators_have_packets_and_overloads() -> None:
    assert isinstance(torch.ops.aten.relu, torch_private.OverloadPacket)
    assert isinstance(torch.ops.aten.relu.default, torch_private.Overload)
    assert torch.ops.aten.relu.default.overloadpacket is torch.ops.aten.relu
    assert "aten::relu" in torch_private.operator_names()


def transforms_wrap_and_are_unwrapped() -> None:
    x, seen = torch.ones(2, 3), []

    def body(t):
        seen.append((torch_private.is_wrapped(t), torch_private.batched(t)))
        seen.append((torch_private.unwrapped(t) is x, torch_private.batched(x)))
        seen.append(torch_private.innermost_transform().key().name)
        return t

    assert torch_private.innermost_transform() is None
    torch.vmap(body)(x)
    assert seen == [(True, True), (True, False), "Vmap"]
    seen.clear()
    torch.func.grad(lambda t: body(t).sum())(x)
    assert seen == [(True, False), (True, False), "Grad"]


def batched_gradients_are_known() -> None:
    seen = []
    x = torch.ones(2, requires_grad=True)
    y = x * 1
    y.register_hook(lambda g: seen.append(torch_private.batched(g)))
    torch.autograd.grad(y, x, torch.eye(2), is_grads_batched=True)
    assert seen == [True]


def traces_are_known() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert torch_private.tracing_state() is None
    assert torch_private.proxy_mode() is None
    assert torch_private.fake_mode() is None
    with FakeTensorMode() as mode:
        assert torch_private.fake_mode() is mode


def saved_tensors_pass_hooks() -> None:
    x = torch.ones(1, requires_grad=True)
    assert torch_private.saved_tensor_hooks() is None
    torch_private.push_saved_tensor_hooks(lambda t: t * 3, lambda t: t)
    try:
        assert torch_private.saved_tensor_hooks() is not None
        y = x.exp()  # saves its output
    finally:
        torch_private.pop_saved_tensor_hooks()
    assert torch_private.saved_tensor_hooks() is None
    (grad,) = torch.autograd.grad(y, x)
    assert torch.equal(grad, 3 * torch.ones(1).exp())


def objects_change_places() -> None:
    a, b = torch.zeros(1, requires_grad=True) * 1, torch.ones(2)
    torch_private.swap_tensors(a, b)
    assert torch.equal(a, torch.ones(2))
    assert a.grad_fn is None
    assert b.grad_fn is not None


def levels_of_forward_ad_are_counted() -> None:
    assert torch_private.forward_ad_level() == -1
    with forward_ad.dual_level():
        assert torch_private.forward_ad_level() == 0


def compiled_frames_are_set_and_put_back() -> None:
    before = torch_private.set_compiled_frames(None)
    assert torch_private.set_compiled_frames(before) is None


def a_view_that_is_none() -> None:
    x = torch.rand(2, 3)
    y = torch_private.unsafe_view(x[:], [6])
    assert y.data_ptr() == x.data_ptr()
    assert not y._is_view()


def norms_share_classes() -> None:
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        assert issubclass(kind, torch_private.BatchNorm)
    assert issubclass(nn.InstanceNorm2d, torch_private.RunningNorm)
    assert not issubclass(nn.InstanceNorm2d, torch_private.BatchNorm)


USES = {
    modes_are_listed_and_switched_off: (
        "DisableTorchFunction function_modes function_modes_enabled function_modes_disabled"
    ),
    modes_see_the_switch_of_gradients: "set_gradients",
    modes_see_dual_tensors_made: "make_dual",
    functions_of_the_kernels_are_callable: "nn_functions",
    functions_share_a_base: "FunctionBase node_class",
    operators_have_packets_and_overloads: "Overload OverloadPacket operator_names",
    transforms_wrap_and_are_unwrapped: "innermost_transform is_wrapped unwrapped batched",
    batched_gradients_are_known: "batched",
    traces_are_known: "tracing_state fake_mode proxy_mode",
    saved_tensors_pass_hooks: ("saved_tensor_hooks push_saved_tensor_hooks pop_saved_tensor_hooks"),
    objects_change_places: "swap_tensors",
    levels_of_forward_ad_are_counted: "forward_ad_level",
    compiled_frames_are_set_and_put_back: "set_compiled_frames",
    a_view_that_is_none: "unsafe_view",
    norms_share_classes: "BatchNorm RunningNorm",
}


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_torch_does(use) -> None:
    use()


def test_every_name_is_checked() -> None:
    """A name that is added here needs its check above."""
    offered = {n for n in vars(torch_private) if not n.startswith("_")}
    offered -= {"annotations", "attrgetter", "partial", "Any", "torch", "Tensor"}
    assert offered == {name for names in USES.values() for name in names.split()}
