"""The exception tree. Every error says what was wrong, what was given, and what to do.

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

import difflib
from collections.abc import Iterable
from typing import Any, TypeVar


class OmennError(Exception):
    """Base of every error raised on purpose by omenn.

    Its text is one line and ends in the remedy. Programs can read these fields, which are ""
    where they do not apply: ``argument`` (its name), ``got`` and ``expected`` (as quoted),
    ``operator``, ``module`` (dotted path), ``remedy`` (what to do), ``package`` and ``extra`` (to
    install).

    >>> error = InputError("steps is 'a'.", argument="steps", remedy="Give an integer.")
    >>> error.argument, error.operator, str(error)
    ('steps', '', "steps is 'a'. Give an integer.")
    """

    def __init__(
        self,
        message: object = "",
        *,
        argument: str = "",
        got: str = "",
        expected: str = "",
        operator: str = "",
        module: str = "",
        remedy: str = "",
    ) -> None:
        super().__init__(f"{message} {remedy}" if remedy else message)
        self.argument, self.got, self.expected = argument, got, expected
        self.operator, self.module, self.remedy = operator, module, remedy
        self.package = self.extra = ""


class InputError(OmennError):
    """The input cannot be explained: NaN, empty batch, wrong rank, unreadable file."""


class TargetError(OmennError):
    """The target does not name one number per sample of the model's output."""


class ModelError(OmennError):
    """The model cannot be explained in its current state, or is not known."""


class UnsupportedOperator(OmennError):
    """An operator is not provably linear at fixed coefficients.

    Attributes: ``operator`` (its name), ``module`` (dotted path of the module that called it),
    ``why`` it is not, and the ``remedy``.
    """

    def __init__(self, operator: str, module: str, why: str, remedy: str) -> None:
        super().__init__(
            f"operator '{operator}' in module '{module or '(model)'}': {why}.",
            operator=operator,
            module=module,
            remedy=remedy,
        )
        self.why = why

    def __reduce__(self) -> tuple[Any, ...]:  # to be copied and pickled
        return type(self), (self.operator, self.module, self.why, self.remedy)


class WeightsError(OmennError):
    """Weights do not fit the model, or the file is not safe to read."""


class MissingExtra(OmennError):
    """An optional package is not installed.

    Attributes: ``package``, the ``extra`` of omenn that installs it, ``purpose``, ``remedy``.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed.",
            remedy=f"Run: pip install 'omenn[{extra}]'",
        )
        self.package, self.extra, self.purpose = package, extra, purpose

    def __reduce__(self) -> tuple[Any, ...]:  # to be copied and pickled
        return type(self), (self.package, self.extra, self.purpose)


class OutputError(OmennError):
    """A result cannot be written to the requested place."""


def reason(error: BaseException) -> str:
    """The first line of a foreign error, to be quoted inside an error of omenn.

    >>> reason(ValueError("it is odd.\\nA long story follows"))
    'it is odd'
    """
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


E = TypeVar("E", bound=OmennError)


def of_file(kind: type[E], path: object, text: str, remedy: str) -> E:
    """The error about a file: its path is ``got``."""
    return kind(text, argument="path", got=str(path), remedy=remedy)


def unknown(
    what: str, name: str, known: Iterable[str], kind: type[OmennError] | None = None
) -> OmennError:
    """The error for a name that is not known: an InputError, or of another kind.

    >>> unknown("model", "resnet8", ["resnet18", "vgg11"])
    InputError("unknown model 'resnet8': did you mean 'resnet18'?")
    """
    names = list(known)
    return (kind or InputError)(
        f"unknown {what} '{name}':",
        argument=what,
        got=name,
        expected=", ".join(names),
        remedy=did_you_mean(name, names),
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the most similar known names, or the first few.

    >>> did_you_mean("resnet8", ["resnet18", "vgg11"])
    "did you mean 'resnet18'?"
    >>> did_you_mean("xyz", ["resnet18", "vgg11"])
    'known are resnet18, vgg11.'
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(repr(entry) for entry in near)}?"
    if not names:
        return "there is none to choose from."
    return f"known are {', '.join(names[:8])}{', …' if len(names) > 8 else ''}."
