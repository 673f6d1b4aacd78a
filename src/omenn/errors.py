"""The exception tree. Every error says what was wrong, what was got, and what to do.

    OmennError
    ├── InputError             the input itself: NaN, empty batch, wrong rank, unreadable file
    ├── TargetError            the target or the output it is taken from
    ├── ModelError             the model: training mode, unknown name, unknown module in ``at=``
    ├── UnsupportedOperator    an operator that is not provably linear at fixed coefficients
    ├── WeightsError           weights that do not fit, or a file that could run code
    ├── MissingExtra           an optional package that is not installed
    └── OutputError            a result that cannot be written
"""

from __future__ import annotations


class OmennError(Exception):
    """Base of every error raised on purpose by omenn."""


class InputError(OmennError):
    """The input cannot be explained: NaN, empty batch, wrong rank, unreadable file."""


class TargetError(OmennError):
    """The target does not name one number per sample of the model's output."""


class ModelError(OmennError):
    """The model cannot be explained as it stands, or is not known."""


class UnsupportedOperator(OmennError):
    """An operator is not provably linear at fixed coefficients.

    Attributes: ``operator`` (its name), ``module`` (dotted path of the module that called it).
    """

    def __init__(self, operator: str, module: str, why: str, remedy: str) -> None:
        self.operator = operator
        self.module = module
        super().__init__(
            f"operator '{operator}' in module '{module or '(model)'}': {why}. {remedy}"
        )


class WeightsError(OmennError):
    """Weights do not fit the model, or the file is not safe to read."""


class MissingExtra(OmennError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed. "
            f"Run: pip install 'omenn[{extra}]'"
        )


class OutputError(OmennError):
    """A result cannot be written where it was asked for."""
