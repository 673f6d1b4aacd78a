"""The singular images of docs/operator.md, the sums beneath them, and what a product costs.

    python -m experiments.operator                  prints the tables
    python -m experiments.operator --write          and writes them, and the picture
    python -m experiments.operator --picture FILE   the picture alone, to another place

The picture: one bird, and the operator of a bundled network at it, restricted to the two largest
logits (its two singular images are all that moves this pair), and of all fifty classes.
"""

from __future__ import annotations

import gc
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import omenn
from experiments import timing
from experiments.command import DOCS, Command
from experiments.report import environment, quartiles, table
from omenn.data import birds
from omenn.data.birds.painting import MAP_COLOURS
from omenn.engine.svd import SVD
from omenn.files.atomic import write_files
from omenn.models import bundled, sources
from omenn.viz.heatmaps import colours, scale_of, signed_rgb
from omenn.viz.panels import number

NETWORK, SCENE = "birds-vit", 7
PICTURE = DOCS / "images" / "operator.png"
MODELS = ("birds-resnet", "birds-vit")
COMMAND = Command("operator", __doc__, "rounds", "threads", "write", rounds=15)
COMMAND.choose("network", bundled.names(), MODELS)
COMMAND.add("--picture", type=Path, help="write the picture here, and nothing else")
SHOWN = 4  # singular images of all classes
INK, QUIET = "#1d2433", "#5a6375"


class Views(NamedTuple):
    """What is shown: the picture, its tensor, the two classes, and both operators."""

    image: np.ndarray
    x: Tensor
    pair: tuple[int, int]
    logits: Tensor  # (2,)
    constant: Tensor  # (2,)
    two: SVD
    every: SVD


def views() -> Views:
    net = sources.load(NETWORK)
    picture = birds.render(birds.sample_scene(SCENE, "test"), size=64)
    x = net.preprocessing(picture).double()
    model = net.model.double()
    with torch.no_grad():
        a, b = model(x)[0].topk(2).indices.tolist()
    with omenn.operator(model, x, output=lambda z: z[:, [a, b]]) as pair:
        two = pair.svd(2, tolerance=1e-10)
        logits, constant, weight = pair.value, pair.constant, pair.to_dense()
    exact = two.left @ torch.diag(two.values) @ two.right.T
    assert torch.allclose(exact, weight, atol=1e-9), "two triplets are the whole of two rows"
    with omenn.operator(model, x) as op:
        every = op.svd(12, tolerance=1e-8)
    return Views(np.asarray(picture.convert("RGB")), x, (a, b), logits, constant, two, every)


def image_of(direction: Tensor) -> Tensor:
    """A vector of the input as a matrix (H, W): its colours added."""
    return direction.reshape(3, 64, 64).sum(0)


# --- tables ----------------------------------------------------------------------------------


def signed(value: Tensor) -> str:
    return f"{float(value):+.2f}".replace("-", "−")


def parts_table(v: Views) -> str:
    """How much of both logits each part of the bird brings, along each singular image."""
    scene = birds.sample_scene(SCENE, "test")
    owner = np.asarray(birds.part_map(scene, 64).convert("RGB"))
    a, b = v.pair
    names = [birds.CLASS_NAMES[c] for c in v.pair]
    masks: dict[str, np.ndarray] = {}
    for name, colour in MAP_COLOURS.items():
        mask = (owner == colour).all(-1)
        part = name.removesuffix(" far")  # the foot and the wing behind the body
        masks[part] = masks.get(part, np.zeros_like(mask)) | mask
    masks["background"] = ~np.any(list(masks.values()), axis=0)
    effects = [image_of(t * v.x.reshape(-1)) for t in v.two.right.T]
    total, rows = torch.zeros(4, dtype=torch.float64), []
    for part, mask in masks.items():
        here = [e[torch.from_numpy(mask)].sum() for e in effects]
        moved = [v.two.values[i] * v.two.left[c, i] * here[i] for i in (0, 1) for c in (0, 1)]
        total += torch.stack(moved)
        same = "–"
        if part in birds.PARTS:
            same = "the same" if birds.CLASSES[a][part] == birds.CLASSES[b][part] else "differs"
        rows.append([part, same, *map(signed, moved)])
    rows.append(["**sum**", "", *map(signed, total)])
    for k, name in enumerate(names):
        sum_ = float(total[k] + total[2 + k] + v.constant[k])
        assert abs(sum_ - float(v.logits[k])) < 1e-8, name
    header = ["", "in both classes", *(f"image {i}, {n}" for i in (1, 2) for n in names)]
    text = table(header, rows)
    return text + "\n\n" + "; ".join(
        f"{n}: {signed(total[k])}, {signed(total[2 + k])} and {signed(v.constant[k])} "
        f"from constants are the logit, {float(v.logits[k]):.2f}"
        for k, n in enumerate(names)
    ) + "."  # fmt: skip


def cost_rows(name: str, rounds: int) -> list[list[str]]:
    """Seconds, and ratios to a plain input gradient of the same round, batch 1."""
    model, x = bundled.load(name), torch.randn(1, 3, 64, 64)
    seconds: dict[str, list[float]] = {}
    for k in range(rounds + 1):
        for label, t in one_round(model, x).items():
            if k:  # the first one warms up
                seconds.setdefault(label, []).append(t)
    rows, plain = [], "plain input gradient"
    for label, times in seconds.items():
        ratio = "1" if label == plain else quartiles(timing.ratios(seconds, label, plain))
        rows.append([f"{name}: {label}", f"{1000 * statistics.median(times):.0f}", ratio])
    return rows


def one_round(model: nn.Module, x: Tensor) -> dict[str, float]:
    made: dict[str, Any] = {}

    def gradient() -> None:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(model(leaf).max(), leaf)

    def build() -> None:
        made["op"] = omenn.operator(model, x)

    gc.collect()
    timed = timing.seconds
    found = {"plain input gradient": timed(gradient), "operator, proved": timed(build)}
    op = made["op"]
    one = torch.ones_like(op.value)
    found["Wᵀu, one pass back"] = timed(lambda: op.rmatvec(one))
    found["W v, one pass forward"] = timed(lambda: op.matvec(op.input))
    found["svd(3)"] = timed(lambda: op.svd(3))
    return found


# --- the picture -----------------------------------------------------------------------------


def picture(v: Views) -> bytes:
    """Two rows: the pair of classes, then all classes; one scale for unit vectors."""
    from matplotlib.figure import Figure

    names = [birds.CLASS_NAMES[c] for c in v.pair]
    side, gap, height = 2.2, 0.32, 7.55
    drawn = Figure(figsize=(5 * (side + gap) + 0.1, height), dpi=130, facecolor="white")
    board = Board(drawn, side, gap, height)
    unit = [image_of(t) for s in (v.two, v.every) for t in s.right.T[:SHOWN]]
    effects = [image_of(t * v.x.reshape(-1)) for t in v.two.right.T]
    board.words(
        0.12, f"The operator of {NETWORK} at one bird", 13, INK, "bold",
    )  # fmt: skip
    board.words(
        0.42, "Singular images v of unit length, colours added: red, brighter moves the outputs "
        "along u; blue, against it; white is zero.", 9, QUIET,
    )  # fmt: skip
    top = 0.98
    board.photograph(0, top, v.image, "Input", [f"f({n}) = {number(float(z))}"
                     for n, z in zip(names, v.logits, strict=True)])  # fmt: skip
    for i in (0, 1):
        left = [f"{float(c):+.2f} {n}" for c, n in zip(v.two.left[:, i], names, strict=True)]
        lines = [f"u: {', '.join(left)}".replace("-", "−")]
        title = f"Pair: v{'₁₂'[i]}, σ = {number(float(v.two.values[i]), 3)}"
        board.map(1 + i, top, unit[i], scale_of(*unit), title, lines)
        here = float(effects[i].sum())
        moved = [f"{float(v.two.values[i] * c) * here:+.1f} {n}".replace("-", "−")
                 for c, n in zip(v.two.left[:, i], names, strict=True)]  # fmt: skip
        lines = [f"sum {number(here, 3)}, times σu:", ", ".join(moved)]
        board.map(3 + i, top, effects[i], scale_of(*effects), f"v{'₁₂'[i]} ⊙ x", lines)
    top = 4.38
    board.spectrum(0, top, v.every.values, "All 50 classes: σ")
    for i in range(SHOWN):
        order = v.every.left[:, i].argsort(descending=True).tolist()
        most = [("raises ", "lowers ")[k] + ", ".join(birds.CLASS_NAMES[c] for c in group)
                for k, group in enumerate((order[:2], order[:-3:-1]))]  # fmt: skip
        title = f"All: v{'₁₂₃₄'[i]}, σ = {number(float(v.every.values[i]), 3)}"
        board.map(1 + i, top, unit[2 + i], scale_of(*unit), title, most)
    out = io.BytesIO()
    drawn.savefig(out, format="png", metadata={"Software": "omenn"})
    return out.getvalue()


class Board:
    """Places pictures on a figure; lengths in inches, from the upper left corner."""

    def __init__(self, figure: Any, side: float, gap: float, height: float) -> None:
        self.figure, self.side, self.gap, self.height = figure, side, gap, height
        self.width = figure.get_size_inches()[0]

    def box(self, left: float, top: float, width: float, height: float) -> Any:
        bottom = (self.height - top - height) / self.height
        return self.figure.add_axes(
            (left / self.width, bottom, width / self.width, height / self.height)
        )

    def words(self, top: float, text: str, size: float, colour: str, weight: str = "normal",
              left: float = 0.2) -> None:  # fmt: skip
        self.figure.text(left / self.width, 1 - top / self.height, text, fontsize=size,
                         color=colour, weight=weight, va="top")  # fmt: skip

    def photograph(self, column: int, top: float, pixels: np.ndarray, title: str,
                   lines: list[str]) -> Any:  # fmt: skip
        left = 0.2 + column * (self.side + self.gap)
        self.words(top - 0.22, title, 10, INK, left=left)
        axes = bare(self.box(left, top, self.side, self.side))
        axes.imshow(pixels, interpolation="nearest")
        for k, line in enumerate(lines):
            self.words(top + self.side + 0.36 + 0.18 * k, line, 8.5, INK, left=left)
        return axes

    def map(self, column: int, top: float, matrix: Tensor, scale: float, title: str,
            lines: list[str]) -> None:  # fmt: skip
        left = 0.2 + column * (self.side + self.gap)
        self.photograph(column, top, signed_rgb(matrix, scale), title, lines)
        bare(self.box(left, top + self.side + 0.05, self.side, 0.07)).imshow(
            colours()[None], aspect="auto"
        )
        end = number(scale, 2)
        for share, text, align in ((0, f"−{end}", "left"), (0.5, "0", "center"), (1, end, "right")):
            self.figure.text(
                (left + share * self.side) / self.width,
                1 - (top + self.side + 0.15) / self.height, text,
                fontsize=7, color=QUIET, va="top", ha=align,
            )  # fmt: skip

    def spectrum(self, column: int, top: float, values: Tensor, title: str) -> None:
        left = 0.2 + column * (self.side + self.gap)
        self.words(top - 0.22, title, 10, INK, left=left)
        axes = self.box(left + 0.2, top, self.side - 0.2, self.side)
        places = range(1, len(values) + 1)
        axes.bar(
            places, values.tolist(), color=["#8a1f2d" if p <= SHOWN else "#c9ced8" for p in places]
        )
        axes.set_ylim(0)
        axes.set_xticks([1, 4, 8, 12])
        axes.tick_params(labelsize=7.5, colors=QUIET, length=2)
        for name, spine in axes.spines.items():
            spine.set_visible(name in {"left", "bottom"})
            spine.set_color("#c9ced8")
        self.words(top + self.side + 0.36, "the 12 largest of 50; dark: shown", 8.5, INK, left=left)


def bare(axes: Any) -> Any:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#d5d9e0")
        spine.set_linewidth(0.6)
    return axes


def main(words: Sequence[str] | None = None) -> None:
    a = COMMAND.parse(words)
    found = views()
    if a.picture or a.write:
        write_files({a.picture or PICTURE: picture(found)})
    if a.picture:
        return
    costs = [row for name in a.models for row in cost_rows(name, a.rounds)]
    note = f"{COMMAND.written()}: batch 1, float32, {a.rounds} paired rounds; {environment()}."
    cost = table(["", "milliseconds (median)", "ratio (quartiles)"], costs)
    COMMAND.publish(a, "operator.md", parts=parts_table(found), cost=f"{cost}\n\n{note}")


if __name__ == "__main__":
    main()
