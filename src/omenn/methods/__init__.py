"""Every method of attribution on one tracer, by name.

Importing this package registers them all; what a method needs beyond torch is imported when it is
called. ``omenn.list_methods()`` is :func:`omenn.methods.registry.list_methods`, all by name.
``method`` registers a function as a method, and so do the shorter forms of
:mod:`omenn.methods.registry`; ``propagate`` turns a table of rules into an explanation.

Example:
    >>> import omenn
    >>> assert omenn.list_methods()["omenn"].promise == "exact"
"""

from omenn.engine.operators import Operator
from omenn.methods import (  # noqa: F401
    abslrp,
    attnlrp,
    composite,
    dave,
    depths,
    focused,
    fullgrad,
    grad_cam,
    gradients,
    lrp,
    occlusion,
    rollout,
    xgradient,
)
from omenn.methods.by_name import explain
from omenn.methods.question import propagate
from omenn.methods.registry import Method, find, list_methods, method
from omenn.methods.rule_table import RuleTable, ruled

methods = list_methods

__all__ = [
    "Method", "Operator", "RuleTable", "explain", "find", "list_methods", "method", "methods",
    "propagate", "ruled",
]  # fmt: skip
