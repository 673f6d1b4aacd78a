"""What an explanation cannot follow is refused in one clear line (``docs/robustness.md``)."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import omenn
from nets.wrapped import BODY, HEAD, X, both, changed, network, plain, plain_body

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*quantized tensor creation:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*quant_min and quant_max:UserWarning"),
]


class Refusal(NamedTuple):
    model: Callable[[], Any]
    error: type[omenn.OmennError]
    text: str  # a part of the message
    inputs: Tensor = X


ALIAS = (
    "a tensor shares the memory of one that depends on the input, but was made where that cannot "
    "be followed (nn.Parameter, copy.copy, DLPack, or a detached or NumPy alias of what was "
    "written later). Use the tensor itself or a .clone() of it, or explain at a later module with "
    "at=."
)
PLAIN_MODULE = "Explain the plain Python module that it was made from."
FLOAT_MODEL = "Explain the floating-point model that it was made from."
EXPORTED = (
    "the model was exported (torch.export, make_fx): it calls kernels in place of operators. "
    + PLAIN_MODULE
)
UNSEEN = "a tensor comes from code that cannot be seen"


def aliased(alias: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A constant and its alias, of which one is written and the other read."""

    def model(x: Tensor) -> Tensor:
        first = torch.ones(3, 4, dtype=x.dtype)
        second = alias(first)
        second.copy_(BODY(x))
        return HEAD(first) + HEAD(x)

    return model


def read_later(x: Tensor) -> Tensor:
    first = torch.ones(3, 4, dtype=x.dtype)
    second = first.detach()
    first.copy_(BODY(x))
    return HEAD(second) + HEAD(x)


def frozen_overwritten(x: Tensor) -> Tensor:
    soft = torch.softmax(BODY(x), 1)
    part = soft[:, :3]
    soft.copy_(x)
    return part + HEAD(x)


def set_into(x: Tensor) -> Tensor:
    there = torch.zeros(3, 4, dtype=x.dtype)
    there.data = BODY(x)
    return HEAD(there) + HEAD(x)


class Unnoticed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        ctx.mark_non_differentiable(y)
        return y


@torch.library.custom_op("omenn_tests::into", mutates_args=("out",))
def into(x: Tensor, out: Tensor) -> None:
    out.copy_(x.tanh())


@torch.library.custom_op("omenn_tests::squash", mutates_args=())
def squash(x: Tensor) -> Tensor:
    return torch.tanh(x)


def custom_write(x: Tensor) -> Tensor:
    out = torch.zeros(3, 4, dtype=x.dtype)
    into(BODY(x), out)
    return HEAD(out) + HEAD(x)


def unseen_relu(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        y = torch.relu(BODY(x))
    return HEAD(y)


def in_a_thread(x: Tensor) -> Tensor:
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(plain_body(x)))
    thread.start()
    thread.join()
    return HEAD(found[0])


def quantised(net: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(net.float(), {nn.Linear}, dtype=torch.qint8)


def observed(net: nn.Module) -> nn.Module:
    net.float().qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    return torch.ao.quantization.prepare(net)


def exported(net: nn.Module) -> nn.Module:
    return torch.export.export(net, (X,)).module()


def empty(net: nn.Module) -> nn.Module:
    return net.to("meta")


def distributed(kind: str) -> Callable[[], nn.Module]:
    """A wrapper by its name alone: what it would do in several processes is not run here."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.module(x)

    def make() -> nn.Module:
        wrapper = type(kind, (nn.Module,), {"forward": forward})()
        wrapper.module = network()
        return wrapper.eval()

    return make


def many_devices(net: nn.Module) -> nn.Module:
    wrapper = nn.DataParallel(net).eval()
    wrapper.device_ids = [0, 1]
    return wrapper


REFUSED = {
    # what wraps the model
    "script": Refusal(
        changed(torch.jit.script),
        omenn.ModelError,
        "module '(model)' is a TorchScript module, which hides its operators. " + PLAIN_MODULE,
    ),
    "traced": Refusal(
        changed(lambda net: torch.jit.trace(net, X)),
        omenn.ModelError,
        "is a TorchScript module",
    ),
    "export": Refusal(changed(exported), omenn.ModelError, EXPORTED),
    "dynamic quantisation": Refusal(
        changed(quantised),
        omenn.ModelError,
        "module '0' is quantised: its weights are packed integers. " + FLOAT_MODEL,
        X.float(),
    ),
    "observers": Refusal(
        changed(observed),
        omenn.ModelError,
        "observes or imitates quantisation, which rounds. " + FLOAT_MODEL,
        X.float(),
    ),
    "several devices": Refusal(
        changed(many_devices),
        omenn.ModelError,
        "module '(model)' runs its copies in threads of their own, one a GPU. Explain its .module.",
    ),
    "DDP": Refusal(
        distributed("DistributedDataParallel"),
        omenn.ModelError,
        "module '(model)' synchronises processes at every call. Explain its .module.",
    ),
    "FSDP": Refusal(
        distributed("FSDPModule"),
        omenn.ModelError,
        "module '(model)' has its weights in several processes. Explain a model that has them all",
    ),
    "lazy": Refusal(
        lambda: nn.Sequential(nn.LazyLinear(3)).eval(),
        omenn.ModelError,
        "'0.weight' is not initialised. Call the model once on an input first.",
    ),
    "meta": Refusal(
        changed(empty),
        omenn.ModelError,
        "'0.weight' is on the meta device: it has no values. Load the weights.",
    ),
    "full backward hook": Refusal(
        changed(lambda net: net[0].register_full_backward_hook(lambda *args: None)),
        omenn.UnsupportedOperator,
        "Remove the full backward hooks of this module while you explain.",
    ),
    # a value that another name of the same memory holds
    "parameter": Refusal(lambda: both(nn.Parameter), omenn.UnsupportedOperator, ALIAS),
    "parameter without gradient": Refusal(
        lambda: both(lambda y: nn.Parameter(y, requires_grad=False)),
        omenn.UnsupportedOperator,
        ALIAS,
    ),
    "variable": Refusal(
        lambda: both(torch.autograd.Variable),
        omenn.UnsupportedOperator,
        ALIAS,  # pyright: ignore
    ),
    "copy": Refusal(lambda: both(copy.copy), omenn.UnsupportedOperator, ALIAS),
    "DLPack": Refusal(
        lambda: both(lambda y: torch.from_dlpack(torch.utils.dlpack.to_dlpack(y.detach()))),
        omenn.UnsupportedOperator,
        ALIAS,
    ),
    "detached alias written": Refusal(
        lambda: aliased(Tensor.detach), omenn.UnsupportedOperator, ALIAS
    ),
    "data written": Refusal(lambda: aliased(lambda t: t.data), omenn.UnsupportedOperator, ALIAS),
    "array written": Refusal(
        lambda: aliased(lambda t: torch.from_numpy(t.numpy())), omenn.UnsupportedOperator, ALIAS
    ),
    "set": Refusal(
        lambda: aliased(lambda t: torch.empty(0, dtype=t.dtype).set_(t)),
        omenn.UnsupportedOperator,
        ALIAS,
    ),
    "detached alias read": Refusal(lambda: read_later, omenn.UnsupportedOperator, ALIAS),
    "frozen part overwritten": Refusal(
        lambda: frozen_overwritten, omenn.UnsupportedOperator, ALIAS
    ),
    "data set": Refusal(lambda: set_into, omenn.UnsupportedOperator, "operator '__set__'"),
    # code that cannot be seen
    "function without derivative": Refusal(
        lambda: both(Unnoticed.apply),
        omenn.UnsupportedOperator,
        "a tensor that depends on the input lost its history in code that cannot be seen (a "
        "custom autograd.Function, torch._C.DisableTorchFunction)",
    ),
    "custom operator": Refusal(lambda: both(squash), omenn.UnsupportedOperator, "operator 'squash"),
    "custom operator that writes": Refusal(
        lambda: custom_write, omenn.UnsupportedOperator, "operator 'into"
    ),
    "kernel by name": Refusal(
        lambda: both(torch.ops.aten.tanh.default),
        omenn.UnsupportedOperator,
        "operator 'tanh.default' in module '(model)': there is no rule",
    ),
    "dispatch off": Refusal(lambda: unseen_relu, omenn.UnsupportedOperator, UNSEEN),
    "worker thread": Refusal(lambda: in_a_thread, omenn.UnsupportedOperator, UNSEEN),
    "reentrant checkpoint": Refusal(
        lambda: lambda x: HEAD(checkpoint(plain_body, x, use_reentrant=True)),
        omenn.UnsupportedOperator,
        "Turn gradient checkpointing off, or give it use_reentrant=False.",
    ),
    "nested tensor": Refusal(
        lambda: both(lambda y: torch.nested.nested_tensor(list(y)).to_padded_tensor(0.0)),
        omenn.UnsupportedOperator,
        "operator 'nested_tensor' in module '(model)': what is in a nested tensor cannot be "
        "followed. Use a padded tensor, or explain at a later module with at=.",
    ),
    "numpy": Refusal(
        lambda: both(lambda y: torch.from_numpy(np.tanh(y.detach().numpy()))),
        omenn.UnsupportedOperator,
        "its value leaves PyTorch, where it cannot be followed",
    ),
    "parameter of a function": Refusal(
        lambda: lambda x: HEAD(F.elu(x, alpha=x.mean())),
        omenn.UnsupportedOperator,
        "an argument that its rule takes for a constant depends on the input",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    case = REFUSED[name]
    model = case.model()
    for module in model.modules() if isinstance(model, nn.Module) else ():
        module.training = False  # not all of them have a working .eval()
    with pytest.raises(case.error) as caught:
        omenn.explain(model, case.inputs, 1)
    text = str(caught.value)
    assert case.text in text
    assert "\n" not in text
    assert not torch.overrides._get_current_function_mode_stack()


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_inputs_are_refused(layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([X[:1], X[:2]], layout=layout)
    with pytest.raises(omenn.InputError) as caught:
        omenn.explain(plain, nested, 1)
    assert str(caught.value) == "the input is nested; give an ordinary tensor of real numbers."
