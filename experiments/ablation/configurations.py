"""What is compared: exact configurations by axis, the other methods, maps that know no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omenn.bench.plan_entries import Entry

MODELS = ("birds-resnet", "birds-vit", "birds-convnet")
STEP = 64  # pixels at a time in insertion and deletion, 64 steps of a picture of 64 × 64
METRICS = ("funnybirds", f"insertion-deletion[step={STEP}]")
GAE = "gae"
FOCUSED = "omenn-focused"  # the axis of its rows, too
RULES = "rules"  # the method whose dials are an axis
HALF = {"path": 10}  # of the steps that it takes by default
COMBINED = "combined"  # the axis of rows that differ in several
EXACT, PEER, SMOOTHED, TRIVIAL = "exact", "peer", "smoothed peer", "trivial"


@dataclass(frozen=True)
class Row:
    """One row: its group, the axis that it is on, and its entry in the plan of a benchmark."""

    group: str
    axis: str
    entry: Entry

    @property
    def name(self) -> str:
        """Which says all options, so that a stored cell belongs to one configuration."""
        return self.entry.name

    @property
    def label(self) -> str:
        """As a table has it."""
        if self.group == EXACT:
            base, _, options = self.name.removesuffix("]").partition("[")
            words = options.replace(";", ", ")
            if base == FOCUSED:
                return f"focused: {words}" if words else "focused"
            if base == RULES:
                return f"rules: {words}"
            return words or "plain"
        if self.group == SMOOTHED:
            options = self.entry.options
            return f"{options['of']} + {options['post']}"
        return f"*{self.name}*" if self.group == TRIVIAL else self.name


def _row(group: str, axis: str, method: str, **options: Any) -> Row:
    return Row(group, axis, Entry.read({"method": method, **options}, "method"))


def _exact(axis: str, **options: Any) -> Row:
    return _row(EXACT, axis, "exact", **options)


SIGMAS = (1.0, 2.0, 3.0, 8.0)
DEPTHS: Sequence[Mapping[str, Any]] = (
    {"depth": "auto"},
    {"depth": "level:2"},
    {"depth": "level:3"},
    {"depth": ["input", "level:2", "level:3"]},
)


def axes() -> list[Row]:
    """One axis at a time, from the map as the library makes it."""
    rows = [_exact("plain")]
    rows += [_exact("constants", bias=b) for b in ("attention", "uniform", "separate")]
    rows += [_exact("depth", **options) for options in DEPTHS]
    rows += [_exact("smoothing", post=f"gaussian:{s}") for s in SIGMAS]
    rows += [_exact("outliers", post=p) for p in ("clamp:0.01", "mad:5", "clean")]
    rows += [_exact("contrast", contrast=c) for c in ("rest", "runner-up")]
    rows += [_exact("averaging", samples=10, noise=0.1, moved=moved) for moved in (False, True)]
    return rows


DIALS: Sequence[Mapping[str, Any]] = (
    {"gamma": 0.02},
    {"gamma": 0.1},
    {"gamma": 0.25},
    {"gamma": [0.25, 0.0]},
    {"gamma": [0.0, 0.25]},
    {"beta": 0.0},
    {"gamma": 0.1, "beta": 0.5},
    {"gamma": 0.1, "beta": 0.0},
    {"softmax": "taylor"},
    {"norm": "derivative"},
    {"pointwise": "tangent"},
    {"pointwise": "identity"},
    {"residual": 0.5},
    {"gamma": 0.1, "beta": 0.0, "pointwise": "identity"},
    {"gamma": 0.1, "softmax": "taylor"},
)


def dials() -> list[Row]:
    """Completed rules: one dial each from the frozen table, and some together."""
    return [_row(EXACT, RULES, RULES, **options) for options in DIALS]


def focused() -> list[Row]:
    """``omenn-focused`` as the library makes it; with half its steps; from there an axis each."""
    changes: Sequence[Mapping[str, Any]] = (
        {},
        {"path": 0},
        {"start": 0},
        {"start": 0.5},
        {"tolerance": 0.1},
        {"steps": 0},
        {"noise": 0.1},
        {"power": 0},
        {"power": 2},
        {"wide": 0},
        {"wide": 0.06},
        {"wide": 0.2},
        {"scale": 0.05},
        {"scale": 0.08},
        {"against": "rest"},
        {"bias": "uniform"},
        {"rotation": 20, "translation": 0.1, "scaling": 0.1, "flip": True},
        {"scale": 0, "wide": 0},
    )
    rows = [_row(EXACT, FOCUSED, FOCUSED, **(HALF | dict(options))) for options in changes]
    return [_row(EXACT, FOCUSED, FOCUSED), *rows]


def combined() -> list[Row]:
    """What differs in several axes: averages and widths; constants × contrast × smoothing."""
    several: Sequence[Mapping[str, Any]] = (
        {"start": 0, "path": 20},
        {"start": 0, "path": 20, "wide": 0},
        {"start": 0, "path": 20, "scale": 0, "wide": 0},
        {"start": 0, "scale": 0.05, "wide": 0.2},
        {"start": 0, "bias": "uniform"},
        {"path": 0, "scale": 0.05, "wide": 0.2},
        {"wide": 0, "against": "rest"},
        {"wide": 0, "power": 0},
    )
    rows = [_row(EXACT, COMBINED, FOCUSED, **(HALF | dict(options))) for options in several]
    for bias in ("spatial", "uniform", "separate"):
        placed = {} if bias == "spatial" else {"bias": bias}
        for contrast in (None, "rest"):
            against = {} if contrast is None else {"contrast": contrast}
            for sigma in (None, 1.0, 2.0):
                post = {} if sigma is None else {"post": f"gaussian:{sigma}"}
                if len(placed) + len(against) + len(post) > 1:
                    rows.append(_exact(COMBINED, **placed, **against, **post))
    return rows


CHEAP = (
    "xgradient input-x-gradient saliency cp-lrp attnlrp abslrp epsilon gamma zplus alpha1beta0 "
    "reslrp fullgrad deeplift generic-attention rollout grad-cam"
).split()
SLOW: Mapping[str, Mapping[str, Any]] = {
    "integrated-gradients": {"steps": 20},
    "shap-gradient": {"steps": 10},
    "smoothgrad": {"steps": 10},
    "dave": {"steps": 10},
    "occlusion": {"window": 8, "stride": 8},
}
"""What asks the model dozens of times does so less often than by default, as its name says."""


def peers(short: bool) -> list[Row]:
    """The other methods, two of them also as published; ``short`` leaves the slow ones out."""
    rows = [_row(PEER, "", name) for name in CHEAP]
    rows += [_row(PEER, "", name, psi="published") for name in ("fullgrad", "libragrad")]
    if not short:
        rows += [_row(PEER, "", name, **options) for name, options in SLOW.items()]
    return rows


def rows(short: bool = False) -> list[Row]:
    """All rows; ``short``: of the exact ones the default and those that differ from the plain map
    in one axis, and no slow method."""
    from omenn.metrics.explainers import TRIVIAL as MAPS

    found = [*axes(), *dials(), *focused(), *peers(short)]
    if short:
        found = [row for row in found if row.axis not in ("averaging", FOCUSED)]
        found.append(focused()[0])
    else:
        found += combined()
        found += [
            _row(SMOOTHED, "", "smoothed", of=name, post="gaussian:2.0")
            for name in ("xgradient", "abslrp", "attnlrp", "gamma")
        ]
    return [*found, *(Row(TRIVIAL, "", Entry(name, name, {})) for name in MAPS)]


def of(found: Sequence[Row], *groups: str) -> list[Row]:
    """The rows of these groups."""
    return [row for row in found if row.group in groups]
