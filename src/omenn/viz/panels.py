"""The views of one explained input: a list of panels, each with one plain sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from omenn.viz.flat_map import Drawing, check_index, chosen, drawing_of
from omenn.viz.heatmaps import overlay, scale_of, smooth
from omenn.viz.wording import collects, in_logits, is_omenn, number, sentence, symbol, through

if TYPE_CHECKING:
    from omenn import Explanation
    from omenn.viz.stated_regions import StatedRegions


STRETCHED = 8
"""From this ratio of its sides on, a map is stretched, as it would look like a line."""


@dataclass(frozen=True, eq=False)
class View:
    """Pixels (H, W, 3), uint8, and the number at the end of their colour bar (None: no bar).

    ``over``: a map drawn over a picture, which is enlarged as a photograph is, without edges.
    """

    pixels: np.ndarray
    scale: float | None = None
    over: bool = False

    @property
    def form(self) -> str:
        """How it is stretched: as a ``strip``, as a ``tower``, or not at all ("")."""
        height, width = self.pixels.shape[:2]
        if self.scale is None or self.over or max(height, width) < STRETCHED * min(height, width):
            return ""
        return "strip" if width > height else "tower"


@dataclass(frozen=True)
class Panel:
    """One picture of a result.

    Attributes:
        key: short name, used in file names: readable, input, c, weight, bias, before, overlay,
            contrast. The first one is large.
        title: heading, with the symbol of the equation.
        sentence: what it shows, for a newcomer.
        exact: the picture, entry by entry.
        smoothed: the same after ``maps.smooth``; None where nothing is smoothed.
        total: sum of all entries, in logits if the method promises that; None for a photograph.
        note: the layout of the entries if it is not obvious, and the part that is not drawn.
    """

    key: str
    title: str
    sentence: str
    exact: View
    smoothed: View | None = None
    total: float | None = None
    note: str = ""


class Views(Protocol):
    """The part of a modality (``omenn.modalities``) that draws explanations and names units."""

    def views(self, case: Case, *, sigma: float = 0.0) -> Sequence[Panel]: ...

    def units(
        self, explanation: Explanation, index: int = 0, most: int | None = None
    ) -> Sequence[Any]: ...


@dataclass(frozen=True, eq=False)
class Case:
    """One explained input with the words that describe it.

    Attributes:
        name: what was explained, e.g. the name of the file.
        model: the network, e.g. ``timm:resnet18``.
        target: the explained answer, in words.
        explanation, index: the result, and a sample of its batch.
        image: the input as a picture, (H, W, 3), uint8; None if it is not a picture.
        before: the result before post-processing, if ``explanation`` was changed afterwards.
        readable: a readable exact map of the same number, shown large over the image; unreadable:
            why there is none, if that is worth saying.
        contrast, rival: explanation of target minus runner-up, by the method of ``readable`` if
            there is one, and the runner-up in words.
        truth: the right answer if it is known.
        seconds: how long the explanation took.
        weights: where the weights of the network come from.
        warning: what a reader must know first, e.g. that the weights are random.
        grid: (h, w) of the tokens of a map (tokens,), if they are a picture.
        input: which of several inputs is drawn: its name or position.
        scale: the number at the end of the colours of its maps; None: the maps of one number have a
            scale of their own.
        modality: draws the case; None: by the shape of its matrix, see ``panels``.
        regions: what a calibration says of its main regions, or None.
    """

    name: str
    model: str
    target: str
    explanation: Explanation
    index: int = 0
    image: np.ndarray | None = None
    before: Explanation | None = None
    readable: Explanation | None = None
    unreadable: str = ""
    contrast: Explanation | None = None
    rival: str = ""
    truth: str | None = None
    seconds: float | None = None
    weights: str = ""
    warning: str = ""
    grid: tuple[int, int] | None = None
    input: str | int | None = None
    scale: float | None = None
    modality: Views | None = None
    regions: StatedRegions | None = None

    def views(self, sigma: float = 0.0) -> Sequence[Panel]:
        """The panels of the case; with ``sigma`` > 0 (in entries of the matrix) also smoothed."""
        if self.modality is None:
            return panels(self, sigma=sigma)
        return self.modality.views(self, sigma=sigma)

    def value(self, name: str) -> float:
        """A number of the sample: output, total, residual or bias_share."""
        return float(getattr(self.explanation, name)[self.index].detach())

    def sample(self, structure: Any) -> Any:
        """The part of the sample in the tensor that is drawn, of a structure like the inputs."""
        return chosen(structure, self.input)[self.index].detach().double()


def case_of(explanation: Explanation, index: int = 0, **words: Any) -> Case:
    """A case from an explanation alone; ``words`` are further fields of ``Case``.

    Without an ``image`` the input tensor is shown if it has one or three channels, stretched to its
    range, as its normalisation is unknown here.
    """
    check_index(explanation, index)
    words.setdefault("name", f"sample {index}")
    words.setdefault("model", "model")
    words.setdefault("target", f"class {int(explanation.target[index])}")
    image = words.pop("image", None)
    if image is None:
        image = _stretched(explanation, index, words.get("input"))
    return Case(explanation=explanation, index=index, image=image, **words)


def panels(case: Case, *, sigma: float = 0.0) -> list[Panel]:
    """Panels of a case as pictures; with ``sigma`` > 0 (in entries of the matrix) also smoothed.

    The maps of one logit share one scale; the contrast has another, as it is another number.

    Raises:
        InputError: the matrix of this explanation has no picture, see ``drawing_of``.
    """
    result, image = case.explanation, case.image
    words = _words(case)
    entries = _entries(case)
    entries = {key: entries[key] for key in words if key in entries}
    maps = _signed(entries, words, sigma, case, result)
    shown: list[Panel] = []
    if image is not None:
        height, width = image.shape[:2]
        sentence = f"What the network received, {width} × {height} pixels."
        shown.append(Panel("input", "Input", sentence, View(image)))
    if case.readable is not None:
        return [_readable(case, case.readable), *shown, *_why_not(case, case.readable, 0), *maps]
    whole = drawing_of(case.sample(result.matrix), case.grid)
    shown += maps
    if image is not None and whole.plane:
        letter = words["weight"][0] if "c" not in entries else symbol(result)
        shown.append(_overlay(image, whole.pictures[0, 0], sigma, letter))
    return shown + _why_not(case, result, sigma)


def _entries(case: Case) -> dict[str, Any]:
    """The maps of one number by key: the whole and its parts, or the whole before and after."""
    result = case.explanation
    whole = case.sample(result.matrix)
    if result.processing:  # by the method or afterwards: the parts are those of another whole
        return {"c": whole} | ({"before": case.sample(case.before.matrix)} if case.before else {})
    if result.bias_placement == "separate":
        return {"weight": whole}
    if not collects(result):
        return {"c": whole}
    bias = case.sample(result.bias)
    return {"c": whole, "weight": whole - bias, "bias": bias}


def _readable(case: Case, result: Explanation) -> Panel:
    """The readable map, over the image if there is one."""
    title = f"What speaks for {case.target}"
    by = f"{symbol(result)}, the readable map ({result.method}): {_told(case, result)}"
    drawn = _laid(case, result)
    return Panel("readable", title, by, drawn, total=float(case.sample(result.matrix).sum()))


def _laid(case: Case, result: Explanation) -> View:
    """The map of a result on a scale of its own, over the image if there is one."""
    drawn = drawing_of(case.sample(result.matrix))
    scale = scale_of(drawn.entries())
    if case.image is None or not drawn.plane:
        return View(drawn.pixels(scale), scale)
    return View(overlay(case.image, drawn.pictures[0, 0], scale), scale, over=True)


def _why_not(case: Case, result: Explanation, sigma: float) -> list[Panel]:
    """The difference to the runner-up, drawn as ``result`` is."""
    if case.contrast is None:
        return []
    title = f"Why not {case.rival}?"
    sentence = (
        f"{symbol(result)} for the difference of two logits: red supports {case.target}, "
        f"blue supports {case.rival}, the runner-up."
    )
    difference = case.sample(case.contrast.matrix)
    if result is case.readable:
        view, total = _laid(case, case.contrast), float(difference.sum())
        return [Panel("contrast", title, sentence, view, total=total)]
    words = {"contrast": (title, sentence)}
    return _signed({"contrast": difference}, words, sigma, case, case.contrast)


def shortened(text: str, letters: int) -> str:
    """At most ``letters`` characters; an ellipsis replaces the middle.

    >>> shortened("a very long name.jpeg", 11)
    'a ver….jpeg'
    """
    if len(text) <= letters:
        return text
    return f"{text[: letters // 2]}…{text[len(text) - (letters - letters // 2 - 1) :]}"


def _stretched(explanation: Explanation, index: int, which: str | int | None) -> np.ndarray | None:
    inputs = explanation.inputs
    if explanation.mix:  # inputs by depth; the first is shown
        inputs = next(iter(inputs.values()))
    inputs = chosen(inputs, which)
    if inputs.ndim != 4 or inputs.shape[1] not in {1, 3}:
        return None
    values = inputs[index].detach().to("cpu").double().numpy().transpose(1, 2, 0)
    span = float(np.ptp(values)) or 1.0
    pixels = np.rint((values - values.min()) / span * 255).astype(np.uint8)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


_PLACEMENT = {
    "spatial": "put where they acted",
    "bilinear": "put where they acted; those of coarse maps smoothly",
    "attention": "put where they acted; those of the class token where it attends",
    "uniform": "spread evenly, as requested",
}


def _words(case: Case) -> dict[str, tuple[str, str]]:
    """Title and sentence of every map, in the order of display."""
    result = case.explanation
    letter, whole = symbol(result), sentence(_told(case, result))
    if in_logits(result):
        whole = f"The whole: {_told(case, result)}"
    if result.changed:
        return {
            "c": (f"{letter}, processed", f"{whole} After: {', '.join(result.changed)}."),
            "before": (f"{letter} before", "The same map as the method returned it."),
        }
    where, each = through(result, case.image is not None)
    if not is_omenn(result):
        return {
            "c": (letter, whole),
            "weight": ("R of the input", f"The part that comes through {where}."),
            "bias": ("R of constants", "The part that comes from biases and shifts."),
        }
    weight = f"Through {where}: {each} times the weight the network gave it for this input."
    placed = _PLACEMENT.get(result.bias_placement, "")
    bias = f"Through the constants: biases and normalisation shifts, {placed}."
    return {"c": (letter, whole), "weight": ("C_w ⊙ X", weight), "bias": ("C_b", bias)}


def _told(case: Case, result: Explanation) -> str:
    """What red and blue mean in the map of a result."""
    if in_logits(result):
        return (
            f"what each location adds to the logit of {case.target} (red) "
            "or subtracts from it (blue)."
        )
    return (
        f"evidence for {case.target} (red) or against it (blue), in units of {result.method}: "
        "not parts of the logit."
    )


def _apart(explanation: Explanation, index: int) -> str:
    """The constants that ``bias="separate"`` does not draw, in words."""
    if explanation.bias_placement != "separate":
        return ""
    share = float(explanation.bias_share[index].detach())
    return f"and {number(share)} from constants, kept separate"


def _signed(
    entries: dict[str, Any],
    words: dict[str, tuple[str, str]],
    sigma: float,
    case: Case,
    result: Explanation,
) -> list[Panel]:
    """Panels of the same unit from the entries of one sample, on one scale."""
    maps = {key: drawing_of(values, case.grid) for key, values in entries.items()}
    scale = _scale(case, maps)
    soft = {key: drawn.smoothed(sigma) for key, drawn in maps.items()} if sigma else {}
    soft_scale = _scale(case, soft)
    apart = _apart(result, case.index)
    shown = []
    for key, drawn in maps.items():
        note = "; ".join(filter(None, [drawn.words, apart]))
        exact = View(drawn.pixels(scale), scale)
        smoothed = View(soft[key].pixels(soft_scale), soft_scale) if soft else None
        shown.append(Panel(key, *words[key], exact, smoothed, float(entries[key].sum()), note))
    return shown


def _scale(case: Case, maps: dict[str, Drawing]) -> float:
    if case.scale is not None or not maps:
        return case.scale or 1.0
    return scale_of(*(drawn.entries() for drawn in maps.values()))


def _overlay(image: np.ndarray, whole: np.ndarray, sigma: float, symbol: str) -> Panel:
    """One smoothed view only: entry by entry, a noisy map would hide the picture."""
    soft = smooth(whole, sigma)
    how = f" smoothed with σ = {sigma:g}," if sigma else ""
    sentence = f"{symbol} again,{how} over a pale copy of the input."
    pixels = overlay(image, soft, scale_of(soft))
    return Panel("overlay", f"{symbol} over input", sentence, View(pixels))
