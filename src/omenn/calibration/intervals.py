"""A calibration: what it was made of, its intervals, and its file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from omenn.calibration.conformal import Fit
from omenn.calibration.interventions import sums_over
from omenn.calibration.regions import SIZES, masks_of, size_of
from omenn.check import path as path_of
from omenn.check import wrong
from omenn.engine.digest import digest
from omenn.errors import InputError, ModelError, of_file
from omenn.files.atomic import write_files
from omenn.files.json_text import as_json
from omenn.files.reading import read_json

if TYPE_CHECKING:
    from omenn.explanation import Explanation

KIND, VERSION = "omenn calibration", 1
LEVELS = (0.5, 0.8, 0.9, 0.95)
"""The probabilities that a file has intervals for."""


@dataclass(frozen=True)
class Interval:
    """What one region gives by the map, and what replacing it costs.

    ``sum``: of the map over the region. ``low``, ``high``: the logit loses between these with
    probability ``level`` when the region is replaced; a negative loss is a gain. ``expected``:
    their middle. ``share``: of the region, of all locations.

    >>> print(Interval(3.1, 2.0, 4.4, 3.2, 0.9, 0.06))
    this region: +3.1, replacing it costs between 2 and 4.4 (90 %)
    """

    sum: float
    low: float
    high: float
    expected: float
    level: float
    share: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        return f"this region: {signed(self.sum)}, replacing it {self.cost} ({_percent(self.level)})"

    @property
    def cost(self) -> str:
        """What replacing the region does to the logit, in words.

        >>> Interval(0.1, -0.2, 0.4, 0.1, 0.9, 0.06).cost, Interval(-1, -2, -1, -1.5, 0.9, 0.1).cost
        ('changes the logit by −0.4 to +0.2', 'adds between 1 and 2')
        """
        half = self.half_width
        low, high = (_short(end, half) for end in (self.low, self.high))
        if self.low >= 0 or low == "0":
            return f"costs between {low} and {high}"
        if self.high <= 0 or high == "0":
            return f"adds between {_short(-self.high, half)} and {_short(-self.low, half)}"
        return f"changes the logit by {signed(-self.high, half)} to {signed(-self.low, half)}"


def _percent(level: float) -> str:
    return f"{100 * level:.3g} %"


def _short(value: float, unit: float | None = None) -> str:
    """In two digits of ``unit`` (of itself by default) and not below 0.0001, with a true minus.

    >>> _short(-0.123), _short(12.34), _short(0.087, 1.7), _short(2.0e-5)
    ('−0.12', '12', '0.1', '0')
    """
    size = max(abs(value if unit is None else unit), 1e-4)
    text = f"{value:.{min(4, max(0, 1 - math.floor(math.log10(size))))}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "−") if float(text) else "0"


def signed(value: float, unit: float | None = None) -> str:
    """The same with its sign.

    >>> signed(3.14), signed(-0.5), signed(0.0)
    ('+3.1', '−0.5', '0')
    """
    text = _short(value, unit)
    return f"+{text}" if value > 0 and text != "0" else text


@dataclass(frozen=True)
class Size:
    """Regions of one size: their shares, the fit, and the quantiles of the scores.

    ``cuts``: where |sum| is cut into small, middling and large ones, or nothing. ``quantiles``: for
    each of these parts, level → quantile of the scores; infinite if too few pictures have one.
    ``typical``: the mean half-width at the level of the calibration; ``without``: the same of
    intervals that know the size alone.
    """

    low: float
    high: float
    fit: Fit
    cuts: tuple[float, ...]
    quantiles: tuple[Mapping[float, float], ...]
    pictures: int
    regions: int
    typical: float = math.inf
    without: float = math.inf

    def part(self, sums: Tensor) -> Tensor:
        """Which of the quantiles is that of regions with these sums."""
        return torch.bucketize(sums.abs(), sums.new_tensor(self.cuts), right=True)

    def half_widths(self, sums: Tensor, level: float) -> Tensor:
        """Half the width of the intervals of regions with these sums."""
        quantiles = sums.new_tensor([part[level] for part in self.quantiles])
        return quantiles[self.part(sums)] * self.fit.scale(sums)


@dataclass(frozen=True)
class Calibration:
    """Split-conformal intervals for the regions of a map, by size; see :func:`calibrate`.

    ``model``, ``digest``: its name and a digest of its weights. ``method``, ``options``: of the
    explanations, and the ``processing`` that the method says. ``shape``: of the locations.
    ``target``: the explained output, None: the largest. ``replacement``: what takes the place of a
    region. ``level``: the usual probability. ``forms``: of the regions. ``pictures``: how many the
    fit and the quantiles are from.
    """

    model: str
    digest: str
    method: str
    options: Mapping[str, Any]
    processing: tuple[str, ...]
    shape: tuple[int, ...]
    target: int | None
    replacement: str
    level: float
    forms: tuple[str, ...]
    seed: int
    pictures: tuple[int, int]
    sizes: tuple[Size | None, ...] = field(repr=False)

    def interval(
        self, e: Explanation, region: Any, index: int = 0, level: float | None = None
    ) -> Any:
        """What replacing a region of an explanation costs; of a list of regions a list.

        With the map's sum m over the region, its share p of the locations, and a, b, c, δ of
        regions of that size::

            a p + b m ± q · (|m| + δ)^c

        For a new picture, and a region that is drawn as in NOTE [drawn like that], the drop of the
        logit lies inside with probability ``level`` or more (NOTE [pictures are exchangeable]). A
        region that is chosen by its map is not drawn; that the sum decides which q is taken keeps
        the promise near for it (docs/calibration.md has the measured coverage).

        Args:
            e: an explanation of the calibrated model, by the same method with the same options, of
                the same output.
            region: a mask (bool) over the locations, a ``Box``, ``Cells`` or ``Entries``; several
                in a list or as masks (R, *locations).
            index: which sample of the batch.
            level: one of ``LEVELS``; by default that of the calibration.

        Raises:
            InputError: another method or shape, an empty region, a size or level without interval.

        Example:
            >>> import omenn
            >>> from omenn.calibration import Box
            >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()
            >>> c = omenn.calibrate(net, torch.randn(40, 1, 8, 8), method="omenn", target=1,
            ...                     replacement="zero")
            >>> e = omenn.explain(net, torch.randn(1, 1, 8, 8), 1)
            >>> found = c.interval(e, Box(0, 0, 4, 4))
            >>> assert abs(found.sum - e.matrix[0, :4, :4].sum()) < 1e-5
            >>> assert found.half_width < 1e-4  # a linear network loses what the map says

        Source: arXiv 2306.06342 (the quantile); the score and its parts are ours.
        """
        level = self._level(level)
        values = self._matrix(e, index)
        masks, several = masks_of(region, self.shape)
        sums = sums_over(masks, values)
        found = [
            self._one(float(m), float(mask.double().mean()), level)
            for m, mask in zip(sums, masks, strict=True)
        ]
        return found if several else found[0]

    def _one(self, total: float, share: float, level: float) -> Interval:
        size = self.sizes[size_of(share)]
        sums = torch.tensor([total], dtype=torch.float64)
        half = math.inf if size is None else float(size.half_widths(sums, level)[0])
        if size is None or not math.isfinite(half):
            known = [s for s in self.sizes if s is not None and self._finite(s, level)]
            reach = ", ".join(f"{100 * s.low:g} to {100 * s.high:g} %" for s in known) or "none"
            raise InputError(
                f"no interval is known for a region of {100 * share:.2g} % of the locations.",
                argument="region",
                got=f"{100 * share:.2g} %",
                expected=reach,
                remedy=f"Known are: {reach}. More pictures give more.",
            )
        middle = float(size.fit.expected(sums, sums.new_tensor([share]))[0])
        return Interval(total, middle - half, middle + half, middle, level, share)

    def _finite(self, size: Size, level: float) -> bool:
        return all(math.isfinite(part[level]) for part in size.quantiles)

    def _level(self, level: float | None) -> float:
        if level is None:
            return self.level
        if level not in self._levels():
            raise wrong("level", level, f"one of {', '.join(map(str, self._levels()))}")
        return level

    def _levels(self) -> tuple[float, ...]:
        return tuple(sorted({*LEVELS, self.level}))

    def _matrix(self, e: Explanation, index: int) -> Tensor:
        matrix = e.matrix
        if not isinstance(matrix, Tensor) or tuple(matrix.shape[1:]) != self.shape:
            got = tuple(matrix.shape[1:]) if isinstance(matrix, Tensor) else type(matrix).__name__
            raise InputError(
                f"the explanation has the locations {got}, the calibration {self.shape}.",
                argument="e",
                got=str(got),
                expected=str(self.shape),
                remedy="Calibrate with inputs of this form.",
            )
        got = ", ".join([e.method, *e.processing])
        wanted = ", ".join([self.method, *self.processing])
        if got != wanted:
            raise InputError(
                f"the explanation is by '{got}', the calibration of '{wanted}'.",
                argument="e",
                got=got,
                expected=wanted,
                remedy="Explain with the calibrated method and its options, unprocessed.",
            )
        if self.target is not None and int(e.target[index]) != self.target:
            got = int(e.target[index])
            raise wrong("e", got, f"an explanation of output {self.target}")
        return matrix[index]

    def check(self, model: nn.Module, name: str = "this model") -> None:
        """Raises ModelError unless the calibration is of a model with these weights."""
        found = model_digest(model)
        if found != self.digest:
            raise ModelError(
                f"the calibration is of '{self.model}' (weights {self.digest}), not of '{name}' "
                f"(weights {found}).",
                argument="calibration",
                got=name,
                expected=self.model,
                remedy="Calibrate this model: omenn calibrate.",
            )

    def save(self, path: str | Path) -> Path:
        """Writes a JSON file. Raises OutputError if it cannot be written."""
        file = path_of("path", path)
        content = {"kind": KIND, "version": VERSION, **asdict(self)}
        content["sizes"] = [None if size is None else _record(size) for size in self.sizes]
        write_files({file: (as_json(content) + "\n").encode()})
        return file

    @staticmethod
    def load(path: str | Path) -> Calibration:
        """Reads what ``save`` wrote.

        Raises:
            InputError: no such file, or one of another kind or version, or incomplete.
        """
        file = path_of("path", path)
        content = read_json(file, "calibration")
        if not isinstance(content, dict) or content.get("kind") != KIND:
            text = f"'{file}' is not a calibration."
            raise of_file(InputError, file, text, "Make one with omenn calibrate.")
        if content.get("version") != VERSION:
            text = f"'{file}' has version {content.get('version')}, and version {VERSION} is read."
            raise of_file(InputError, file, text, "Make it again with this version of omenn.")
        try:
            return _read(content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            text = f"'{file}' is damaged: {type(error).__name__} {error}."
            raise of_file(InputError, file, text, "Make it again with omenn calibrate.") from error


def _record(size: Size) -> dict[str, Any]:
    quantiles = [{str(level): q for level, q in part.items()} for part in size.quantiles]
    return {**asdict(size), "quantiles": quantiles}


def _read(content: Mapping[str, Any]) -> Calibration:
    names = ("model", "digest", "method", "options", "target", "replacement", "level", "seed")
    sizes = tuple(None if one is None else _size(one) for one in content["sizes"])
    if len(sizes) != len(SIZES) - 1:
        raise ValueError(f"it has {len(sizes)} sizes of {len(SIZES) - 1}")
    fit, quantiles = map(int, content["pictures"])
    return Calibration(
        **{name: content[name] for name in names},
        processing=tuple(map(str, content["processing"])),
        shape=tuple(map(int, content["shape"])),
        forms=tuple(map(str, content["forms"])),
        pictures=(fit, quantiles),
        sizes=sizes,
    )


def _size(one: Mapping[str, Any]) -> Size:
    parts = tuple(
        {float(level): math.inf if q is None else float(q) for level, q in part.items()}
        for part in one["quantiles"]
    )
    widths = {
        name: math.inf if one[name] is None else float(one[name]) for name in ("typical", "without")
    }
    cuts = tuple(map(float, one["cuts"]))
    if len(parts) != len(cuts) + 1:
        raise ValueError(f"{len(parts)} quantiles for {len(cuts)} cuts")
    fit = Fit(**{name: float(one["fit"][name]) for name in ("a", "b", "c", "delta")})
    low, high = float(one["low"]), float(one["high"])
    return Size(low, high, fit, cuts, parts, int(one["pictures"]), int(one["regions"]), **widths)


def model_digest(model: nn.Module) -> str:
    """A digest of the weights and buffers of a model, with their names."""
    state = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    return digest(list(state.values()), list(state))
