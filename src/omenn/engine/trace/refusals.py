"""The errors of a run: whose an exception was, what passes by the tracer, why nothing flows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from omenn.engine.trace.graph import short
from omenn.errors import (
    InputError,
    ModelError,
    OmennError,
    TargetError,
    UnsupportedOperator,
    reason,
)

if TYPE_CHECKING:
    from omenn.engine.inputs import Inputs
    from omenn.engine.model_state import State
    from omenn.engine.trace.tracer import Tracer


def blame(model: Any, inputs: Inputs, error: Exception, state: State) -> OmennError:
    """The error to raise for one that a frozen pass raised."""

    def called() -> None:
        args, kwargs = inputs.arguments()
        model(*args, **kwargs)

    own: Exception | None = None
    for grad in (False, True):  # without gradients it cannot take a derivative inside
        try:
            with torch.set_grad_enabled(grad):
                state.watched(called)
        except Exception as raised:
            own = own or raised
        else:
            return ModelError(
                f"the model runs, but not in its frozen form: {reason(error)}. Explain at a later "
                "module with at=, or report it with the model."
            )
    assert own is not None
    remedy = _together(model, inputs, state)
    return InputError(f"the model cannot take {inputs.described()}: {reason(own)}.{remedy}")


def _together(model: Any, inputs: Inputs, state: State) -> str:
    """What to do about a model that takes its inputs as one dict or list; said if it does."""
    args, kwargs = inputs.arguments()
    given = kwargs or args
    if inputs.kind == "tensor":
        return ""
    try:
        with torch.no_grad():
            state.watched(lambda: model(given))
    except Exception:
        return ""
    if kwargs:
        names = ", ".join(kwargs)
        inside = ", ".join(f"{name!r}: {name}" for name in kwargs)
        return f" It takes them as one: explain lambda {names}: model({{{inside}}})."
    return " It takes them as one: explain lambda *inputs: model(list(inputs))."


def nothing_flows(operator: str, at: str | None) -> OmennError:
    """Why nothing flows through an explained number: a frozen operator, or a decision."""
    if not operator:
        where = f"the output of '{at}'" if at else "the input"
        return TargetError(
            f"the explained output does not depend on {where} but by way of whole numbers and "
            "decisions (comparisons, rounding, one-hot codes), which have no derivative. Explain a "
            "number before them with output= or target=; ids are explained where they are looked "
            "up in a table (nn.Embedding)."
        )
    return UnsupportedOperator(
        operator,
        "",
        "the output is a frozen coefficient (a softmax, a logarithm, 1/x), which has no linear "
        "part",
        "Explain the logits before it: output=... or a model without the last operator.",
    )


def no_way_back(error: Exception, batched: bool = False) -> ModelError:
    """The error of a pass back that PyTorch refuses."""
    remedy = "Pull rows back one by one with chunk=1; turn" if batched else "Turn"
    return ModelError(
        f"the model runs, but cannot be pulled back: {reason(error)}. {remedy} gradient "
        "checkpointing off; write in place only into what no other operator needs."
    )


# --- what could pass by the tracer ---------------------------------------------------------------


def alias(mode: Tracer) -> UnsupportedOperator:
    return UnsupportedOperator(
        "alias",
        mode.module_path(),
        "a tensor shares the memory of one that depends on the input, but was made where that "
        "cannot be followed (nn.Parameter, copy.copy, DLPack, or a detached or NumPy alias of "
        "what was written later)",
        "Use the tensor itself or a .clone() of it, or explain at a later module with at=.",
    )


def alien(mode: Tracer, node: Any) -> UnsupportedOperator:
    name = short(node)
    remedy = "Use the plain Python form of it, or explain at a later module with at=."
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        remedy = f"Give it a rule with omenn.rule({name!r}, ...). {remedy}"
    if name == "CheckpointFunction":
        remedy = "Turn gradient checkpointing off, or give it use_reentrant=False."
    if name == "BackwardHookFunction":
        remedy = "Remove the full backward hooks of this module while you explain."
    return UnsupportedOperator(
        name,
        mode.module_path(),
        "a tensor comes from code that cannot be seen (a TorchScript function, a compiled "
        "kernel or a custom autograd.Function)",
        remedy,
    )


def cut(mode: Tracer) -> UnsupportedOperator:
    return UnsupportedOperator(
        "no history",
        mode.module_path(),
        "a tensor that depends on the input lost its history in code that cannot be seen (a "
        "custom autograd.Function, torch._C.DisableTorchFunction)",
        "Use the plain Python form of it, or explain at a later module with at=.",
    )


def nested() -> InputError:
    return InputError(
        "an explanation inside of another one was given a tensor that depends on the input of "
        "the outer one, which could not follow it. Explain after the outer one has ended."
    )


def packed(mode: Tracer) -> UnsupportedOperator:
    return UnsupportedOperator(
        "nested_tensor",  # torch.nested.nested_tensor copies what it is given, unseen
        mode.module_path(),
        "what is in a nested tensor cannot be followed",
        "Use a padded tensor, or explain at a later module with at=.",
    )
