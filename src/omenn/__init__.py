"""omenn: one matrix that explains what a PyTorch network did with one input, exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from omenn.attribution import explain, method, methods
    from omenn.calibration import Calibration, calibrate
    from omenn.engine.certify import Certificate, certify
    from omenn.engine.explain import frozen
    from omenn.engine.linear_operator import Operator, operator
    from omenn.engine.operators.user_rules import rule, rules
    from omenn.engine.rows import Rows, rows
    from omenn.engine.target import Contrast
    from omenn.explanation import Explanation
    from omenn.tuning import Tuned, tune

__version__ = "0.1.0"

# Loaded on first use, so that ``omenn --help`` does not wait for torch.
_HOMES = {
    "Calibration": "calibration",
    "Certificate": "engine.certify",
    "Contrast": "engine.target",
    "Explanation": "explanation",
    "Operator": "engine.linear_operator",
    "Rows": "engine.rows",
    "Tuned": "tuning",
    "calibrate": "calibration",
    "certify": "engine.certify",
    "explain": "attribution",
    "frozen": "engine.explain",
    "method": "attribution",
    "methods": "attribution",
    "operator": "engine.linear_operator",
    "rows": "engine.rows",
    "rule": "engine.operators.user_rules",
    "rules": "engine.operators.user_rules",
    "tune": "tuning",
}

__all__ = [
    "Calibration",
    "Certificate",
    "Contrast",
    "Explanation",
    "InputError",
    "MissingExtra",
    "ModelError",
    "OmennError",
    "Operator",
    "OutputError",
    "Rows",
    "TargetError",
    "Tuned",
    "UnsupportedOperator",
    "WeightsError",
    "__version__",
    "calibrate",
    "certify",
    "explain",
    "frozen",
    "method",
    "methods",
    "operator",
    "rows",
    "rule",
    "rules",
    "tune",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'omenn' has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f"omenn.{home}")
    value = module if name == home else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
