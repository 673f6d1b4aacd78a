"""Ways in which a value could pass by the tracer: the errors that name them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from omenn.engine.trace.graph import short
from omenn.errors import InputError, UnsupportedOperator

if TYPE_CHECKING:
    from omenn.engine.trace.tracer import Tracer


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
