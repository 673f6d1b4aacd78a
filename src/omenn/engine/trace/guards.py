"""What may surround an explanation: another one, compiled code, transforms of functions.

An explanation runs the model in Python, operator by operator, on real numbers. So it waits for no
other explanation that is under way in its thread (that one is paused meanwhile), runs compiled
parts in their eager form, and refuses to run where there are no numbers.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from omenn.engine.torch_private import (
    fake_mode,
    function_modes,
    function_modes_disabled,
    innermost_transform,
    proxy_mode,
    tracing_state,
)
from omenn.engine.trace.compiled import COMPILER, eager
from omenn.engine.trace.marks import released
from omenn.engine.trace.tracer import Tracer
from omenn.errors import InputError, ModelError


@contextmanager
def alone() -> Iterator[None]:
    """Around every entry of the engine, as a decorator or a ``with`` block.

    What the runs inside have marked is plain again afterwards. Raises InputError inside of a
    function transform or a trace, ModelError where PyTorch's dispatch to modes is switched off.
    """
    _needs_numbers()
    outer = [m for m in active() if not m.paused]
    with ExitStack() as stack:
        if COMPILER in sys.modules:
            stack.enter_context(eager())
        for mode in outer:
            stack.enter_context(mode.pause())
        stack.enter_context(released())
        yield


@contextmanager
def hooked(modules: Iterable[nn.Module], hook: Callable[[nn.Module, Any], Any]) -> Iterator[None]:
    """``hook(module, output)`` behind each module, in this thread until the block ends.

    NOTE [the one use of hooks] A module's output has no other name. What a hook returns stands in
    for the output, if it is not None.
    """
    thread = threading.get_ident()

    def guarded(module: nn.Module, inputs: Any, out: Any) -> Any:
        return hook(module, out) if threading.get_ident() == thread else None

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(guarded).remove)
        yield


def active() -> list[Tracer]:
    """The tracers of this thread, the outermost first."""
    return [m for m in function_modes() if isinstance(m, Tracer)]


def not_nested() -> None:
    """Raises InputError inside of ``omenn.frozen`` and of a model that is being explained."""
    if any(not m.paused for m in active()):
        raise InputError(
            "omenn.frozen was entered inside of omenn.frozen or of a model that is being "
            "explained. Give all tensors to one of them: omenn.frozen(x, y)."
        )


def _needs_numbers() -> None:
    where = next((name for name, inside in _SYMBOLIC if inside() is not None), None)
    if where is not None:
        raise InputError(
            f"an explanation needs numbers, but it was called inside of {where}. Call it outside."
        )
    if function_modes_disabled():
        raise ModelError(
            "nothing can be seen inside of torch._C.DisableTorchFunction. Explain outside of it."
        )


_SYMBOLIC = (
    ("torch.func or torch.vmap", innermost_transform),
    ("torch.jit.trace", tracing_state),
    ("make_fx or torch.export", proxy_mode),
    ("FakeTensorMode", fake_mode),
)
