"""``omenn.calibrate``: interventions on pictures without labels, made into intervals."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import omenn
from omenn.attribution import method_file
from omenn.calibration.conformal import needed
from omenn.calibration.halves import halved, sizes_from, too_few
from omenn.calibration.intervals import Calibration, model_digest
from omenn.calibration.interventions import (
    USUAL_REPLACEMENT,
    Measured,
    Replacement,
    described,
    drops_of,
    replaced_by,
    sums_over,
)
from omenn.calibration.regions import SIZES, USUAL, Recipe
from omenn.check import quoted, real, whole, wrong
from omenn.engine.digest import content
from omenn.engine.target import pick_output
from omenn.errors import InputError, ModelError
from omenn.files.atomic import write_files
from omenn.files.json_text import as_json
from omenn.metrics.maps import logits_of

SETTLED = 1e-9  # of 1 + |logit|: smaller drops are rounding


@dataclass(frozen=True, eq=False)
class Work:
    """What is done to each input, and where the results of an interrupted run lie.

    ``made``: a digest of everything that a result depends on beside the input.
    """

    model: nn.Module
    method: str
    options: Mapping[str, Any]
    target: int | None
    output: Any
    replacement: Replacement
    recipe: Recipe
    seed: int
    chunk: int
    made: str
    folder: Path | None = None

    def measured(self, x: Tensor) -> Measured:
        """The regions of one input (1, …), from the folder if they are there."""
        name = _key(x)
        path = None if self.folder is None else self.folder / f"{name}-{self.made}.json"
        found = _read(path)
        if found is None:
            found = self._measure(x, name)
            if path is not None:
                parts = {part: getattr(found, part).tolist() for part in _PARTS}
                write_files({path: as_json(parts, indent=0).encode()})
        return found

    def logits(self, x: Tensor) -> Tensor:
        return pick_output(self.model(x), self.output)

    def _measure(self, x: Tensor, name: str) -> Measured:
        logits = logits_of(self.logits, x)
        target = int(logits.argmax()) if self.target is None else self.target
        e = explained(self.model, x, target, self.method, self.options, self.output)
        seed = hashlib.sha256(f"{self.seed} {name}".encode()).digest()[:4]
        generator = torch.Generator().manual_seed(int.from_bytes(seed, "big"))
        masks = self.recipe.draw(x[0].detach().cpu(), generator)
        options = {"channel_dim": e.channel_dim, "chunk": self.chunk}
        before, drops = drops_of(self.logits, x, target, masks, self.replacement, **options)
        drops = torch.where(drops.abs() > SETTLED * (1 + abs(before)), drops, 0.0)
        shares = masks.flatten(1).double().mean(1)
        return Measured(shares, sums_over(masks, e.matrix[0]), drops)

    def forget(self) -> None:
        """Remove the results from the folder, and the folder."""
        if self.folder is not None and self.folder.is_dir():
            for path in self.folder.glob("*.json"):
                path.unlink(missing_ok=True)
            with suppress(OSError):  # something else is in it
                self.folder.rmdir()


def calibrate(
    model: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    *,
    method: str = "omenn-clear",
    options: Mapping[str, Any] | None = None,
    replacement: Replacement = USUAL_REPLACEMENT,
    target: int | None = None,
    level: float = 0.9,
    forms: Sequence[str] = USUAL,
    groups: Sequence[Sequence[int]] | None = None,
    each: int = 6,
    budget: int | None = None,
    seed: int = 0,
    chunk: int = 32,
    output: Any = None,
    name: str = "",
    folder: str | Path | None = None,
    tick: Callable[[int, int], Any] = lambda done, total: None,
) -> Calibration:
    """Measures how far a map's sum over a region is from what the logit loses without the region.

    In each input regions of several sizes are drawn, replaced one at a time, and the drop d of the
    logit is compared with the map's sum m. One half of the inputs, drawn from ``seed``, gives for
    each size the fit of a p + b m, p the region's share of the locations, and of a scale; the other
    half the quantiles q of the scores::

        |d − a p − b m| / (|m| + δ)^c

    a, b: least squares, weighted by the scale. c ∈ [0, 1]: the slope of log |d − a p − b m| on
    log(|m| + δ), δ a tenth of the mean |m|. There is one quantile for each third of |m|, as the
    regions that people look at have large sums. The unit is the input, see
    NOTE [pictures are exchangeable].

    Args:
        model: in evaluation mode; returns logits (n, classes).
        inputs: (N, …), or N inputs (1, …); those that are the same count once. No labels.
        method, options: of the explanations.
        replacement: ``"blur:0.1"`` (σ, as a share of the shorter side), ``"mean"``, ``"black"``,
            ``"white"``, ``"zero"``, a number, a tensor or a function.
        target: the output that is explained; by default the largest of each input.
        level: the usual probability of the intervals.
        forms: of the regions of pictures: cells, boxes, unions, superpixels.
        groups: of columns or tokens, by their numbers; by default each is one.
        each: regions of each size in each input.
        budget: at most so many forward passes with replaced regions; the first inputs are taken.
        chunk: inputs at a time in a forward pass.
        output: see ``omenn.explain``.
        name: of the model, for the file.
        folder: results of single inputs are kept there until all are done, so that an interrupted
            run goes on.
        tick: called with the number of finished inputs and of all.

    Raises:
        InputError: no inputs, too few that differ, a budget too small for enough of them, an
            option out of its range.
        ModelError: replacing regions changes nothing, or the model returns probabilities.

    Example:
        >>> net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
        >>> c = calibrate(net, torch.randn(40, 6), method="omenn", replacement="zero")
        >>> e = omenn.explain(net, torch.randn(1, 6), method="omenn")
        >>> found = c.interval(e, omenn.calibration.Entries([0, 2]))
        >>> assert found.low <= found.high and found.level == 0.9

    Source: the score is ours; the quantile is of Lee, Barber, Willett 2023, arXiv 2306.06342.
    """
    if not isinstance(model, nn.Module):
        raise wrong("model", model, "a torch.nn.Module")
    least = 2 * needed(real("level", level, 0.5, 0.99))
    options = dict(options or {})
    if method_file.is_file(method):
        method, options = method_file.with_options(method, options)
    first = _first(inputs, least)
    e = explained(model, first, target, method, options, output)
    recipe = Recipe(_shape(e, first), tuple(forms), _tuples(groups), each)
    weights, new = model_digest(model), replaced_by(replacement, first)
    own = "" if isinstance(replacement, (str, float, int)) else content(new).hex()
    made = _digest(
        weights, method, sorted(options.items()), described(replacement), own, target, recipe, seed,
        str(output), omenn.__version__,
    )  # fmt: skip
    work = Work(
        model, method, options, target, output, replacement, recipe, whole("seed", seed, 0),
        whole("chunk", chunk, 1), made, None if folder is None else Path(folder),
    )  # fmt: skip
    passes = 1 + each * len(SIZES[1:])
    found = _all(work, inputs, _affordable(budget, len(inputs), passes, least), tick)
    fit, rest = halved(list(found.values()), seed)
    sizes = sizes_from(fit, rest, level)
    work.forget()
    return Calibration(
        name or type(model).__name__, weights, method, options, e.processing, recipe.shape, target,
        described(replacement), level, recipe.forms if len(recipe.shape) == 2 else ("groups",),
        seed, (len(fit), len(rest)), sizes,
    )  # fmt: skip


def explained(
    model: nn.Module,
    x: Tensor,
    target: int | None,
    method: str,
    options: Mapping[str, Any],
    out: Any,
) -> Any:
    """The explanation of an input, of a number that can be compared with the model's output.

    Raises:
        ModelError: the model returns probabilities.
    """
    given = options if out is None else {"output": out, **options}
    e = omenn.explain(model, x, target, method=method, **given)
    if e.explains:
        raise ModelError(
            f"the model returns probabilities, and the explanation is of {e.explains}: "
            "what it loses cannot be seen in the output.",
            argument="model",
            got="probabilities",
            expected="logits",
            remedy="Calibrate and explain the model without its last step.",
        )
    return e


def _first(inputs: Any, least: int) -> Tensor:
    """The first input, (1, …)."""
    if not isinstance(inputs, (Tensor, Sequence)) or isinstance(inputs, (str, bytes)):
        raise wrong("inputs", inputs, "a tensor (N, …) or a list of inputs (1, …)")
    if not len(inputs):
        raise too_few("no inputs", "0", least)
    return _one(inputs, 0)


def _one(inputs: Any, k: int) -> Tensor:
    x = inputs[k : k + 1] if isinstance(inputs, Tensor) else inputs[k]
    if not isinstance(x, Tensor) or x.ndim < 2 or len(x) != 1:
        raise wrong("inputs", x, "a tensor (N, …) or a list of inputs (1, …)")
    return x


def _affordable(budget: int | None, count: int, passes: int, least: int) -> int:
    """How many inputs are measured."""
    if budget is None:
        return count
    found = whole("budget", budget, 1) // passes
    if found < least:
        raise wrong(
            "budget",
            budget,
            f"at least {least * passes} forward passes, {passes} for each of {least} inputs",
        )
    return min(count, found)


def _all(
    work: Work, inputs: Any, count: int, tick: Callable[[int, int], Any]
) -> dict[str, Measured]:
    """The results of different inputs, by their digests, sorted: their order does not matter."""
    found: dict[str, Measured] = {}
    for k in range(count):
        tick(k, count)
        x = _one(inputs, k)
        if (key := _key(x)) not in found:
            found[key] = work.measured(x)
    tick(count, count)
    return dict(sorted(found.items()))


def _shape(e: Any, x: Tensor) -> tuple[int, ...]:
    """The locations of an explanation, which are those of the input."""
    sides = list(x.shape)
    if isinstance(e.channel_dim, int) and e.channel_dim:
        sides.pop(e.channel_dim)
    if not isinstance(e.matrix, Tensor) or list(e.matrix.shape) != sides:
        got = tuple(e.matrix.shape) if isinstance(e.matrix, Tensor) else quoted(type(e.matrix))
        raise InputError(
            f"the map has the form {got}, inputs have the locations {tuple(sides)}.",
            argument="method",
            got=str(got),
            expected=str(tuple(sides)),
            remedy="Calibrate maps of one tensor at its own locations.",
        )
    return tuple(sides[1:])


def _tuples(groups: Sequence[Sequence[int]] | None) -> tuple[tuple[int, ...], ...] | None:
    return None if groups is None else tuple(tuple(map(int, group)) for group in groups)


def _digest(*settings: Any) -> str:
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:16]


def _key(x: Tensor) -> str:
    return hashlib.sha256(f"{x.dtype} {tuple(x.shape)}".encode() + content(x)).hexdigest()[:16]


_PARTS = ("shares", "sums", "drops")


def _read(path: Path | None) -> Measured | None:
    """A result that was kept, or None."""
    if path is None:
        return None
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))
        return Measured(*(torch.tensor(parts[part], dtype=torch.float64) for part in _PARTS))
    except (OSError, ValueError, KeyError, TypeError):  # none, or not whole: measured again
        return None
