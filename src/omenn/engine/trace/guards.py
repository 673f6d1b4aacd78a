"""What may surround an explanation: another one, compiled code, transforms of functions.

An explanation runs the model in Python, operator by operator, on real numbers. So it waits for no
other explanation that is under way in its thread (that one is paused meanwhile), runs compiled
parts in their eager form, and refuses to run where there are no numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from omenn.engine.torch_private import (
    dispatch_mode,
    function_modes,
    function_modes_disabled,
    innermost_transform,
    tracing_state,
)
from omenn.engine.trace.compiled import eager
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
        stack.enter_context(eager())
        for mode in outer:
            stack.enter_context(mode.pause())
        stack.enter_context(released())
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
    where = next((name for name, inside in _SYMBOLIC if inside()), None)
    if where is not None:
        raise InputError(
            f"an explanation needs numbers, but it was called inside of {where}. Call it outside."
        )
    if function_modes_disabled():
        raise ModelError(
            "nothing can be seen inside of torch._C.DisableTorchFunction. Explain outside of it."
        )


def _mode(key: str) -> Callable[[], bool]:
    return lambda: dispatch_mode(key) is not None


_SYMBOLIC: tuple[tuple[str, Callable[[], bool]], ...] = (
    ("torch.func or torch.vmap", lambda: innermost_transform() is not None),
    ("torch.jit.trace", lambda: tracing_state() is not None),
    ("make_fx or torch.export", _mode("PROXY")),
    ("FakeTensorMode", _mode("FAKE")),
)
