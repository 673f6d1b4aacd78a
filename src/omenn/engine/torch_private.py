"""The names of PyTorch that PyTorch does not promise: all of them, and only here.

Each is the narrowest way to something that has no public name. A PyTorch without one of them fails
where omenn is imported, with the name. What each must do is tested one by one.

Private attributes of tensors and modules that are as old as these (``t._base``, ``t._version``,
``t._is_view()``, ``module._modules`` and their like) are used where they act.
"""

from __future__ import annotations

from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor


def _private(path: str) -> Any:
    try:
        return attrgetter(path)(torch)
    except AttributeError as error:
        raise ImportError(
            f"PyTorch {torch.__version__} has no 'torch.{path}', which omenn uses. "
            "Install a version of PyTorch that this version of omenn was tested with."
        ) from error


# Modes that see each call of a torch function: those in force, and whether they are switched off.
DisableTorchFunction = _private("_C.DisableTorchFunction")
function_modes = _private("overrides._get_current_function_mode_stack")
function_modes_enabled = _private("_C._is_torch_function_mode_enabled")
function_modes_disabled = _private("_C._is_torch_function_all_disabled")

# What functions the modes see: the homes and forms of a call that have no public name.
nn_functions = _private("_C._nn")
set_gradients = _private("_C._set_grad_enabled")
make_dual = _private("_VF._make_dual")
FunctionBase = _private("autograd.function._SingleLevelFunction")
Overload = _private("_ops.OpOverload")
OverloadPacket = _private("_ops.OpOverloadPacket")
operator_names = _private("_C._dispatch_get_all_op_names")

# Function transforms (torch.vmap, torch.func): the innermost under way, and what they wrap.
innermost_transform = _private("_C._functorch.peek_interpreter_stack")
is_wrapped = _private("_C._functorch.is_functorch_wrapped_tensor")
_unwrapped = _private("_C._functorch.get_unwrapped")
_is_batched = _private("_C._functorch.is_batchedtensor")
_is_batched_gradient = _private("_C._functorch.is_legacy_batchedtensor")

# Traces, in which tensors have no numbers.
tracing_state = _private("_C._get_tracing_state")
fake_mode = partial(_private("_C._get_dispatch_mode"), _private("_C._TorchDispatchModeKey.FAKE"))
proxy_mode = partial(_private("_C._get_dispatch_mode"), _private("_C._TorchDispatchModeKey.PROXY"))

# The hooks that saved tensors pass: one level of their stack.
# The innermost pair of hooks that saved tensors pass now, or None. Asked at every call.
saved_tensor_hooks = partial(_private("_C._autograd._top_saved_tensors_default_hooks"), False)
push_saved_tensor_hooks = _private("_C._autograd._push_saved_tensors_default_hooks")
pop_saved_tensor_hooks = _private("_C._autograd._pop_saved_tensors_default_hooks")

# The object stays, its memory and history are those of another one.
swap_tensors = _private("_C._swap_tensor_impl")

# A kernel of ATen: a view that is no view.
unsafe_view = _private("ops.aten._unsafe_view")

# The classes that the batch norms share, the second one with the instance norms.
BatchNorm = _private("nn.modules.batchnorm._BatchNorm")
RunningNorm = _private("nn.modules.batchnorm._NormBase")


def unwrapped(t: Tensor) -> Tensor:
    """The tensor inside of those that torch.vmap and torch.func wrap around it."""
    while is_wrapped(t):
        t = _unwrapped(t)
    return t


def batched(t: Tensor) -> bool:
    """Whether torch.func.vmap or ``is_grads_batched`` (which has its own vmap) runs over t."""
    return _is_batched(t) or _is_batched_gradient(t)


def forward_ad_level() -> int:
    """The depth of ``forward_ad.dual_level`` that is entered, −1 for none."""
    return torch.autograd.forward_ad._current_level


def set_compiled_frames(callback: Any) -> Any:
    """Sets what this thread's frames are compiled with (None: nothing); returns what it was.

    Only where the compiler has been imported: ``torch._C`` has it from the start, at no cost.
    """
    return _private("_C._dynamo.eval_frame.set_eval_frame")(callback)


def node_class(function: type[torch.autograd.Function]) -> type:
    """The class of the nodes that a Function leaves in the autograd graph."""
    return function._backward_cls  # pyright: ignore[reportAttributeAccessIssue]
