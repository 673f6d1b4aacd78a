"""omenn: one matrix that explains what a PyTorch network did with one input, exactly."""

from omenn.core.certificate import Certificate, certify
from omenn.core.explain import Rows, explain, frozen, rows
from omenn.core.explanation import Explanation
from omenn.core.registry import methods, rule
from omenn.core.target import Contrast
from omenn.errors import (
    InputError,
    MissingExtra,
    ModelError,
    OmennError,
    OutputError,
    TargetError,
    UnsupportedOperator,
    WeightsError,
)

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "Contrast",
    "Explanation",
    "InputError",
    "MissingExtra",
    "ModelError",
    "OmennError",
    "OutputError",
    "Rows",
    "TargetError",
    "UnsupportedOperator",
    "WeightsError",
    "__version__",
    "certify",
    "explain",
    "frozen",
    "methods",
    "rows",
    "rule",
]
