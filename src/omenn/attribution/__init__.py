"""Every method of attribution on one tracer, by name.

Importing this package imports every file of it, which registers the methods; what a method needs
beyond torch is imported when it is called. ``omenn.methods()`` lists them by name. ``method`` and
the shorter decorators of :mod:`omenn.attribution.registry` register a function; ``propagate`` turns
a table of rules into an explanation.

Example:
    >>> import omenn
    >>> assert omenn.methods()["omenn"].promise == "exact"
"""

from omenn.attribution.by_name import explain
from omenn.attribution.question import propagate
from omenn.attribution.registry import Method, find, method, methods
from omenn.attribution.rule_table import RuleTable, ruled
from omenn.discovery import import_all
from omenn.engine.operators.table import Operator

__all__ = [
    "Method", "Operator", "RuleTable", "explain", "find", "method", "methods",
    "propagate", "ruled",
]  # fmt: skip

import_all(__name__)
