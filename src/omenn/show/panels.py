"""What is shown of one explained picture: a list of panels, each with its one plain sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omenn.errors import InputError
from omenn.show.maps import as_matrix, overlay, scale_of, signed_rgb, smooth
from omenn.show.wording import collects, in_logits, is_omenn, number, symbol, through

if TYPE_CHECKING:
    from omenn import Explanation


@dataclass(frozen=True)
class View:
    """Pixels (H, W, 3), uint8, and the number at the end of their colour bar (None: no bar)."""

    pixels: np.ndarray
    scale: float | None = None


@dataclass(frozen=True)
class Panel:
    """One picture of a result.

    Attributes:
        key: short name, used in file names: input, c, weight, bias, before, overlay, contrast.
        title: heading, with the symbol of the equation.
        sentence: what it shows, for a newcomer.
        exact: the picture, entry by entry.
        smoothed: the same after ``maps.smooth``; None where nothing is smoothed.
        total: sum of all entries, in logits where the method promises that; None for a photograph.
        note: what of the number is not in the picture; empty where all of it is.
    """

    key: str
    title: str
    sentence: str
    exact: View
    smoothed: View | None = None
    total: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Case:
    """One explained picture with the words that belong to it.

    Attributes:
        name: what was explained, e.g. the name of the file.
        model: the network, e.g. ``timm:resnet18``.
        target: the answer explained, in words.
        explanation, index: the result and which sample of its batch is meant.
        image: what the network saw, (H, W, 3), uint8; None for an input that is no picture.
        before: the result as the method gave it, where ``explanation`` was changed afterwards.
        contrast, rival: explanation of target minus runner-up, and the runner-up in words.
        truth: the right answer where it is known.
        seconds: how long the explanation took.
        weights: where the weights of the network come from.
        warning: what a reader must know first, e.g. that the weights are random.
    """

    name: str
    model: str
    target: str
    explanation: Explanation
    index: int = 0
    image: np.ndarray | None = None
    before: Explanation | None = None
    contrast: Explanation | None = None
    rival: str = ""
    truth: str | None = None
    seconds: float | None = None
    weights: str = ""
    warning: str = ""


def case_of(explanation: Explanation, index: int = 0, **words: Any) -> Case:
    """A case from an explanation alone; ``words`` are further fields of ``Case``.

    Without an ``image`` the input tensor is shown if it has one or three channels, stretched to
    its own range, as nobody knows here how it was normalised.
    """
    _check_index(explanation, index)
    words.setdefault("name", f"sample {index}")
    words.setdefault("model", "model")
    words.setdefault("target", f"class {int(explanation.target[index])}")
    image = words.pop("image", None)
    if image is None:
        image = _stretched(explanation.inputs, index)
    return Case(explanation=explanation, index=index, image=image, **words)


def panels(case: Case, *, sigma: float = 0.0) -> list[Panel]:
    """All panels of a case; with ``sigma`` > 0 (in entries of the matrix) also smoothed.

    The maps of one logit share one scale; the contrast has its own, as it is another number.

    Raises:
        InputError: the matrix of this explanation has no picture (see ``grid``).
    """
    result, index = case.explanation, case.index
    whole = matrix_of(result, index)
    words = _words(case)
    shown: list[Panel] = []
    if case.image is not None:
        height, width = case.image.shape[:2]
        sentence = f"What the network received, {width} × {height} pixels."
        shown.append(Panel("input", "Input", sentence, View(case.image)))
    apart = _apart(result, index)
    entries = _entries(case)
    shown += _signed({key: entries[key] for key in words if key in entries}, words, sigma, apart)
    if case.image is not None:
        drawn = words["weight"][0] if "c" not in entries else symbol(result)
        shown.append(_overlay(case.image, whole, sigma, drawn))
    if case.contrast is not None:
        title = f"Why not {case.rival}?"
        sentence = (
            f"{symbol(result)} for the difference of two logits: red speaks for {case.target}, "
            f"blue for {case.rival}, the runner-up."
        )
        difference = case.contrast.matrix[index].detach().double()
        words = {"contrast": (title, sentence)}
        shown += _signed({"contrast": difference}, words, sigma, _apart(case.contrast, index))
    return shown


def _entries(case: Case) -> dict[str, Any]:
    """The maps of one number by key: the whole and its parts, or the whole before and after."""
    result, index = case.explanation, case.index
    whole = result.matrix[index].detach().double()
    if result.processing:  # what was done was done to the whole, so there are no parts of it
        before = case.before
        return {"c": whole} | ({"before": before.matrix[index].detach().double()} if before else {})
    if result.bias_placement == "separate":
        return {"weight": whole}
    if not collects(result):
        return {"c": whole}
    bias = result.bias[index].detach().double()
    return {"c": whole, "weight": whole - bias, "bias": bias}


def matrix_of(explanation: Explanation, index: int) -> np.ndarray:
    """The matrix C of one sample as a picture (H, W), see ``grid``."""
    _check_index(explanation, index)
    if not hasattr(explanation.matrix, "detach"):
        raise InputError(
            "an explanation of several inputs has several matrices and no one picture. "
            "Draw each with omenn.show.signed_rgb, or save it as .safetensors or .json."
        )
    return grid(explanation.matrix[index])


def grid(matrix: Any) -> np.ndarray:
    """The locations of one sample as a picture (H, W).

    Two axes are a picture already. One axis of n² tokens, 16 at least, with up to five tokens
    without a place in front (class token, registers), becomes n × n; these tokens are left out of
    the picture. Any other single axis is one row.

    Raises:
        InputError: no axis, or more than two.
    """
    shape = tuple(matrix.shape)
    if len(shape) == 1:
        for extra in range(6):
            side = math.isqrt(max(0, shape[0] - extra))
            if side > 3 and side * side == shape[0] - extra:
                return as_matrix(matrix[extra:].reshape(side, side))
        return as_matrix(matrix[None])
    if len(shape) != 2:
        raise InputError(
            f"a matrix of shape {shape} has no picture, expected (height, width) or (tokens,). "
            "Save it as .safetensors or .json."
        )
    return as_matrix(matrix)


def shortened(text: str, letters: int) -> str:
    """At most ``letters`` characters; what is cut out of the middle becomes an ellipsis.

    >>> shortened("a very long name.jpeg", 11)
    'a ver….jpeg'
    """
    if len(text) <= letters:
        return text
    return f"{text[: letters // 2]}…{text[len(text) - (letters - letters // 2 - 1) :]}"


def _check_index(explanation: Explanation, index: int) -> None:
    count = len(explanation.output)
    if not -count <= index < count:
        raise InputError(f"there is no sample {index}, the explanation has {count}.")


def _stretched(inputs: Any, index: int) -> np.ndarray | None:
    if not hasattr(inputs, "detach") or inputs.ndim != 4 or inputs.shape[1] not in {1, 3}:
        return None
    values = inputs[index].detach().to("cpu").double().numpy().transpose(1, 2, 0)
    span = float(np.ptp(values)) or 1.0
    pixels = np.rint((values - values.min()) / span * 255).astype(np.uint8)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _words(case: Case) -> dict[str, tuple[str, str]]:
    """Title and sentence of every map, in the order in which they are shown."""
    result = case.explanation
    letter = symbol(result)
    where, each = through(result)
    constants = {
        "spatial": "brought to where they acted",
        "attention": "brought to where they acted; those of the class token to where it looked",
        "uniform": "spread evenly, as was asked for",
    }
    whole = (
        f"The whole: what each place adds to the logit of {case.target} (red) "
        "or takes from it (blue)."
    )
    if not in_logits(result):
        whole = (
            f"What speaks for {case.target} (red) or against (blue), in a unit of {result.method}: "
            "no parts of the logit."
        )
    words = {"c": (letter, whole)}
    if result.processing:
        words["c"] = (f"{letter}, changed", f"{whole} After: {', '.join(result.processing)}.")
        words["before"] = (f"{letter} before", "The same as the method gave it.")
    elif is_omenn(result):
        words["weight"] = (
            "C_w ⊙ X",
            f"Through {where}: {each} times the weight the network gave it for this input.",
        )
        words["bias"] = (
            "C_b",
            "Through the constants: biases and normalisation shifts, "
            f"{constants.get(result.bias_placement, '')}.",
        )
    else:
        words["weight"] = ("R of the input", f"The part that comes through {where}.")
        words["bias"] = ("R of constants", "The part that comes from biases and shifts.")
    return words


def _apart(explanation: Explanation, index: int) -> str:
    """What ``bias="separate"`` keeps out of the picture, in words."""
    if explanation.bias_placement != "separate":
        return ""
    return f"and {number(float(explanation.bias_share[index].detach()))} from constants, kept apart"


def _signed(
    entries: dict[str, Any], words: dict[str, tuple[str, str]], sigma: float, note: str
) -> list[Panel]:
    """Panels of the same unit from the entries of one sample, on one scale."""
    maps = {key: grid(values) for key, values in entries.items()}
    scale = scale_of(*maps.values())
    soft = {key: smooth(values, sigma) for key, values in maps.items()} if sigma else {}
    soft_scale = scale_of(*soft.values()) if soft else None
    shown = []
    for key, values in maps.items():
        total = float(entries[key].sum())
        if values.size < entries[key].numel():
            note = f"{number(total - float(values.sum()))} of it at tokens without a place here"
        exact = View(signed_rgb(values, scale), scale)
        smoothed = View(signed_rgb(soft[key], soft_scale), soft_scale) if soft else None
        shown.append(Panel(key, *words[key], exact, smoothed, total, note))
    return shown


def _overlay(image: np.ndarray, whole: np.ndarray, sigma: float, symbol: str) -> Panel:
    """One view in either case: entry by entry, a noisy map would hide the picture."""
    soft = smooth(whole, sigma)
    how = f" smoothed with σ = {sigma:g}," if sigma else ""
    sentence = f"{symbol} again,{how} over a pale copy of the input."
    pixels = overlay(image, soft, scale_of(soft))
    return Panel("overlay", f"{symbol} over input", sentence, View(pixels))
