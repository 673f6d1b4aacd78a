"""Steps that remove outliers and noise from maps, in order; the sum is recomputed at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from omenn.check import quoted, wrong
from omenn.errors import InputError, OmennError, reason, unknown
from omenn.explanation import leaves, rebuilt
from omenn.viz import outliers, smoothing
from omenn.viz.map_layout import Layout, as_maps

if TYPE_CHECKING:
    from omenn import Explanation

LOSSY = "-lossy"
PRESETS = {"clean": ("clamp:0.01", "gaussian")}


@dataclass(frozen=True)
class _Kind:
    """A step by name: its numbers in order, how many of them it must have, and an example."""

    numbers: tuple[str, ...]
    least: int
    example: str
    words: tuple[str, ...] = ()


KINDS = {
    "clamp": _Kind(("q",), 0, "clamp:0.01"),
    "mad": _Kind(("k",), 0, "mad:2.5"),
    "gaussian": _Kind(("sigma", "kernel"), 0, "gaussian:2"),
    "bilateral": _Kind(("sigma", "range"), 2, "bilateral:2,0.1", ("input", "guide")),
}


@dataclass(frozen=True)
class Step:
    """One built-in step: ``name``, its numbers, its guide, and whether it may lose mass."""

    name: str
    numbers: tuple[float, ...] = ()
    word: str = ""
    lossy: bool = False

    def __str__(self) -> str:
        values = [*(f"{value:.12g}" for value in self.numbers), *filter(None, [self.word])]
        return self.name + LOSSY * self.lossy + (":" + ",".join(values) if values else "")

    def complete(self, pictures: Tensor) -> Step:
        """With defaults for the omitted numbers, as far as there are any."""
        defaults: tuple[float, ...] = {"clamp": (outliers.Q,), "mad": (outliers.K,)}.get(
            self.name, ()
        )
        if self.name == "gaussian" and pictures.ndim > 2:
            height, width = pictures.shape[-2:]
            defaults = (smoothing.default_sigma(height, width),)
        return dataclasses.replace(self, numbers=self.numbers or defaults)

    def apply(self, pictures: Tensor, guide: Tensor | None) -> Tensor:
        keep = not self.lossy
        if self.name == "clamp":
            return outliers.clamp(pictures, *self.numbers, keep_sum=keep)
        if self.name == "mad":
            return outliers.mad(pictures, *self.numbers, keep_sum=keep)
        if self.name == "bilateral":
            return smoothing.bilateral(pictures, *self.numbers, guide=guide, keep_sum=keep)
        sigma, kernel = (*self.numbers, None, None)[:2]
        # σ is missing only without a picture, which gaussian refuses
        width = smoothing.LEAST if sigma is None else sigma
        return smoothing.gaussian(pictures, width, keep_sum=keep, kernel=kernel)


Steps = list[Step | Callable[[Tensor], Tensor]]


def postprocess(
    explanation: Explanation,
    *steps: str | Callable[[Tensor], Tensor],
    keep_sum: bool = True,
    guide: Tensor | str | None = None,
    grid: tuple[int, int] | None = None,
    patch: int | tuple[int, int] | None = None,
    sequence: bool = False,
) -> Explanation:
    """The explanation with its matrix processed by ``steps``, in order, and its sum recomputed.

    ===================  ==========================================================================
    ``clean``            clamp:0.01, then gaussian with σ a fortieth of the shorter side
    ``clamp:q``          cut to the [q, 1−q] quantiles (1 %), see :func:`omenn.viz.clamp`
    ``mad:k``            cut to median ± k·1.4826·MAD (2.5), see :func:`omenn.viz.mad`
    ``gaussian:σ``       smooth; ``gaussian:σ,taps`` with that many taps; the default σ is that of
                         ``clean``, see :func:`omenn.viz.gaussian`
    ``bilateral:σ,ρ``    smooth where the map is similar, or with ``bilateral:σ,ρ,input`` where the
                         input is, see :func:`omenn.viz.bilateral`
    a callable           on the maps (B, *locations) in double precision, to the same shape
    ===================  ==========================================================================

    Each step keeps Σ C. With ``-lossy`` after the name (``clean-lossy``, ``gaussian-lossy:2``), or
    with ``keep_sum=False`` for all, it is the published form, which does not. ``processing`` of the
    result names the steps; ``residual``, ``exact`` and ``magnitude`` describe the new sum.

    ``weight``, ``contribution``, ``bias`` and ``sources`` stay raw: after processing, ``matrix`` is
    no longer contribution plus bias. For several inputs each matrix is processed alone. The given
    explanation does not change; the result has no history for gradients.

    Args:
        keep_sum: False for the lossy form of every step; it has no effect on a callable.
        guide: of ``bilateral``: ``"input"``, or a tensor, see :func:`omenn.viz.bilateral`.
        grid, patch, sequence: the layout of tokens and patches, for all steps, see
            :func:`omenn.viz.gaussian`. No step changes tokens in front of a grid.

    Raises:
        InputError: no step, an unknown one, malformed numbers; a matrix with NaN, or one that a
            step cannot process.

    Example:
        >>> import omenn
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten()).eval()
        >>> e = omenn.explain(net, torch.randn(1, 1, 16, 16), target=0)
        >>> clean = postprocess(e, "clean")
        >>> assert clean.exact and clean.processing == ("clamp:0.01", "gaussian:0.5")
        >>> postprocess(e, "clamp-lossy:0.1").processing
        ('clamp-lossy:0.1',)

    Source: the pipeline "raw weights and biases, outlier removal, smoothing" of arXiv 2412.02399;
    its quantile and width are not published.
    """
    _check(explanation, steps)
    layout = Layout.of(grid, patch, sequence)
    chosen: Steps = [one for given in steps for one in parsed(given, keep_sum, guide)]
    if guide is not None and not any(isinstance(one, Step) and one.word for one in chosen):
        raise InputError(
            "guide= is for the step 'bilateral', which is not among the steps.",
            argument="guide",
            got=quoted(guide),
            remedy="Omit guide=, or add a step such as 'bilateral:2,0.1'.",
        )
    done: list[tuple[str, ...]] = []
    maps = leaves(explanation.matrix)
    for k, matrix in enumerate(maps):
        with torch.no_grad():
            result, taken = _run(chosen, _Seen(explanation, k, guide, layout))
        maps[k] = result.to(matrix.dtype)
        done.append(taken)
    matrix = rebuilt(explanation.matrix, iter(maps))
    processing = tuple(" / ".join(dict.fromkeys(same)) for same in zip(*done, strict=True))
    return explanation.with_matrix(matrix, processing=explanation.processing + processing)


def parsed(
    given: str | Callable[[Tensor], Tensor],
    keep_sum: bool = True,
    guide: Tensor | str | None = None,
) -> Steps:
    """The steps of a specification: several for a preset, the callable itself for a callable.

    Raises:
        InputError: an unknown name; malformed numbers, too few or too many.

    >>> [str(step) for step in parsed("clean-lossy")]
    ['clamp-lossy:0.01', 'gaussian-lossy']
    """
    if not isinstance(given, str):
        if callable(given):
            return [given]
        raise wrong("step", given, "a name or a callable")
    name, colon, rest = given.strip().partition(":")
    lossy = name.endswith(LOSSY)
    base = name.removesuffix(LOSSY)
    keep = keep_sum and not lossy
    if base in PRESETS:
        if colon:
            raise _malformed(given, f": {base!r} is a preset and takes no numbers.")
        return [one for step in PRESETS[base] for one in parsed(step, keep)]
    if base not in KINDS:
        raise unknown("step", base, [*PRESETS, *KINDS])
    values = [value.strip() for value in rest.split(",")] if colon else []
    word = values.pop() if values and values[-1] in KINDS[base].words else ""
    if isinstance(guide, str) and guide != "input":
        raise wrong("guide", guide, "'input' or a tensor")
    if base == "bilateral" and not word and guide is not None:
        word = "input" if isinstance(guide, str) else "guide"
    return [Step(base, _numbers(given, KINDS[base], values), word, not keep)]


def _numbers(given: str, kind: _Kind, values: list[str]) -> tuple[float, ...]:
    if not kind.least <= len(values) <= len(kind.numbers):
        form = f"{kind.least}" if kind.least == len(kind.numbers) else f"up to {len(kind.numbers)}"
        form += f" ({', '.join(kind.numbers)}), such as {kind.example!r}"
        raise _malformed(given, f" has {len(values)} numbers, expected {form}.", form)
    numbers = []
    for value in values:
        try:
            numbers.append(float(value))
        except ValueError:
            form = f"numbers, such as {kind.example!r}"
            text = f": {value!r} is not a number, expected {form}."
            raise _malformed(given, text, form) from None
    return tuple(numbers)


def _malformed(given: str, text: str, expected: str = "no numbers") -> InputError:
    return InputError(f"step {given!r}{text}", argument="step", got=given, expected=expected)


class _Seen:
    """One matrix of an explanation in the form that steps process, and its guide."""

    def __init__(self, explanation: Explanation, k: int, guide: Any, layout: Layout) -> None:
        matrices = leaves(explanation.matrix)
        many = f"matrix {k + 1} of {len(matrices)}" if len(matrices) > 1 else "the matrix"
        self.layout, self.given = layout, guide
        self.matrix = as_maps(matrices[k], name=many)
        inputs = leaves(explanation.inputs)
        self.inputs = [inputs[k]] if len(inputs) == len(matrices) else inputs

    def guide(self, word: str) -> Tensor | None:
        """(B, C, …, h, w): the input, the given tensor, or None for the map itself."""
        if not word:
            return None
        if word == "guide":
            if not isinstance(self.given, Tensor):
                raise wrong("guide", self.given, "a tensor for 'bilateral:…,guide'")
            found = smoothing.as_guide(self.given, self.matrix)
        else:
            found = self._input()
        return self.layout.channels(found)

    def _input(self) -> Tensor:
        """The input with its channels second, whichever axis the matrix was summed over."""
        places = tuple(self.matrix.shape)
        for x in self.inputs:
            if tuple(x.shape) == places:
                return as_maps(x, name="the input")[:, None]
            for axis in sorted(range(1, x.ndim), key=lambda a: a != (1 if x.ndim > 3 else 2)):
                if tuple(x.shape[:axis]) + tuple(x.shape[axis + 1 :]) == places:
                    return as_maps(x, name="the input").movedim(axis, 1)
        raise InputError(
            f"no input has the locations of the matrix, {places}.",
            argument="guide",
            got="input",
            expected=str(places),
            remedy="Give guide= a tensor of the shape (samples, *locations) or "
            "(samples, channels, *locations).",
        )


def _run(steps: Steps, seen: _Seen) -> tuple[Tensor, tuple[str, ...]]:
    """The processed map (B, *locations) in double precision, and the steps that ran."""
    pictures = seen.layout.pictures(seen.matrix)
    taken: list[str] = []
    for step in steps:
        if isinstance(step, Step):
            step = step.complete(pictures)
            pictures = step.apply(pictures, seen.guide(step.word))
            taken.append(f"{step}{seen.layout}")
        else:
            pictures, name = _called(step, pictures)
            taken.append(f"{name}{seen.layout}")
    return seen.layout.back(pictures, seen.matrix), tuple(taken)


def _called(function: Callable[[Tensor], Any], pictures: Tensor) -> tuple[Tensor, str]:
    """The result of a callable on the map, and its name, which says whether it kept the sum."""
    name = getattr(function, "__name__", type(function).__name__)
    try:
        result = function(pictures.clone())
    except OmennError:
        raise
    except Exception as error:  # a function of the caller's may raise anything
        shape = tuple(pictures.shape)
        raise InputError(
            f"step {name!r} raised {type(error).__name__}: {reason(error)}.",
            argument="step",
            got=name,
            remedy=f"Its argument was a tensor of maps of the shape {shape}; correct the step.",
        ) from error
    if not isinstance(result, Tensor) or result.shape != pictures.shape:
        kind = type(result).__name__
        got = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else kind
        expected = f"a tensor of the shape {tuple(pictures.shape)}"
        raise InputError(
            f"step {name!r} must return {expected}, got {got}.",
            argument="step",
            got=got,
            expected=expected,
        )
    result = as_maps(result, name=f"the result of step {name!r}")
    before, after = pictures.flatten(1), result.flatten(1)
    missed = (after.sum(1) - before.sum(1)).abs()
    kept = bool((missed <= 1e-9 * (1 + before.abs().sum(1))).all())
    return result, name if kept else name + LOSSY


def _check(explanation: Any, steps: tuple[Any, ...]) -> None:
    from omenn import Explanation

    if not isinstance(explanation, Explanation):
        remedy = "For a tensor use omenn.viz.clamp, mad, gaussian or bilateral."
        raise wrong("explanation", explanation, "an Explanation", remedy)
    if not steps:
        raise InputError(
            "no step was given.",
            argument="steps",
            expected="at least one step",
            remedy=f"Name at least one, such as {next(iter(PRESETS))!r}.",
        )
