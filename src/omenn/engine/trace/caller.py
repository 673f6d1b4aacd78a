"""Which module of the model is running, read off the call stack."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from torch import nn

_ENGINE = "omenn.engine."
# Where PyTorch calls hooks and ``forward``.
_MODULES = "torch.nn.modules.module"
_CALLS = ("_call_impl", "inner")


def running_module(names: Mapping[int, str]) -> str:
    """Dotted name of the innermost module whose method is running; ``""`` outside of all.

    ``names``: the names of the model's modules by ``id``; any other has that of its class.
    """
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_argcount and code.co_varnames[0] == "self":
            # The engine's own frames are passed by: to read the locals of each takes time.
            home = frame.f_globals.get("__name__")
            if not (isinstance(home, str) and home.startswith(_ENGINE)):
                owner = frame.f_locals.get("self")
                if isinstance(owner, nn.Module):
                    return names.get(id(owner), type(owner).__name__)
        frame = frame.f_back
    return ""


def running_hook() -> str:
    """The name of the innermost hook of a module that is running; ``""`` where there is none."""
    frame = sys._getframe(1)
    while frame is not None and (caller := frame.f_back) is not None:
        calls = caller.f_globals.get("__name__") == _MODULES and caller.f_code.co_name in _CALLS
        inside = frame.f_globals.get("__name__") == _MODULES
        if calls and not inside:
            hook = caller.f_locals.get("hook")
            code = getattr(getattr(hook, "__func__", hook), "__code__", None)
            return frame.f_code.co_name if code is frame.f_code else ""
        frame = caller
    return ""
